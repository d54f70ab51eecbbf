"""Preparation of one clip: from its media files to the encoder's inputs, or a reason for failure."""

import dataclasses
import math
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import python_speech_features
from jaxtyping import Float, Int16, UInt8

from avh_shards import ClipMeta
from avh_shards.clip import FRAME_RATE, FULL_SCALE, SAMPLE_RATE, SAMPLES_PER_FRAME
from avh_shards.clip_list import MAX_FRAMES, inside, shift_segments
from avh_shards.errors import ClipError
from avh_shards.format import Variant
from avh_shards.silence import frames_of_silence
from extract.face.landmarks import SEARCH_SIDE, CountingFinder, GivenPoints, Points, every_frame, tracked
from extract.face.mouth import CROP, Mouths, find_mouths
from extract.media.audio import Sound, read_sound
from extract.media.decode import Frame, iterate_video, to_grey
from extract.progress import Stopwatch

INPUTS = ("media", "roi")
FINDERS = {"dlib": every_frame, "dlib-tracked": tracked}  # values of --landmarks other than a file or folder
MIN_FRAMES = 2  # of a usable clip
STACK = 4  # filterbank rows (100 Hz) in one audio frame (25 Hz)
LAYER_NORM_EPSILON = 1e-5


@dataclasses.dataclass(frozen=True)
class PrepareSettings:
    """Settings of preparation; all of them affect the numbers."""

    input: str = "media"  # "media": a video file with sound; "roi": x_roi.mp4 (mouth crops) + x.wav for x.mp4
    fps_policy: str = "resample"  # see media.iterate_video
    landmarks: str = "dlib-tracked"  # or "dlib", a folder with an npz file per clip, or the npz file of the only clip
    min_face_share: float = 0.5  # smallest fraction of frames with a face in a usable clip; not applied to "roi"
    faces: str = ""  # faces of each shot that become clips, from faces.CHOICES; "" = the whole video is one clip

    @property
    def finds_faces(self) -> bool:
        """Whether faces and landmarks are found by dlib's models."""
        return self.input == "media" and self.landmarks in FINDERS


@dataclasses.dataclass(frozen=True)
class ReadClip:
    """Mouths and sound of a clip, untrimmed."""

    meta: ClipMeta
    mouths: Mouths
    sound: Sound
    seconds: dict[str, float]  # time spent, by stage


@dataclasses.dataclass(frozen=True)
class PreparedClip:
    """Network inputs of a clip, both with T frames at 25 Hz; `audio` comes from `filterbank_frames`."""

    meta: ClipMeta
    crops: UInt8[np.ndarray, "T 96 96"]  # grey
    audio: Float[np.ndarray, "T 104"]
    waveform: Int16[np.ndarray, " S"]  # 16 kHz, with the same start as the frames
    variant: Variant = Variant.UNTRIMMED
    points: Float[np.ndarray, "T 68 2"] | None = None  # landmarks in pixels of the crops, where known


def prepare_clip(
    clip: ClipMeta, root: str | os.PathLike, settings: PrepareSettings, variant: Variant = Variant.UNTRIMMED
) -> PreparedClip:
    """Prepares one clip of a list: `read_clip`, then `cut_clip`.

    Args:
      clip: the clip; its path is relative to `root`.
      root: folder of the media files.
      settings: preparation settings.
      variant: whether to cut off the leading silence.

    Returns:
      The encoder's inputs and the clip's completed record.

    Raises:
      ClipError: the clip cannot be used: its files are missing or damaged, no sound is heard, too few frames show a
        face, or it is too short or too long.
      UserError: the landmark model is not installed.
    """
    return cut_clip(read_clip(clip, root, settings), variant)


def read_clip(clip: ClipMeta, root: str | os.PathLike, settings: PrepareSettings) -> ReadClip:
    """Decodes a clip and crops the mouth in every frame.

    Args:
      clip: the clip; its path is relative to `root`.
      root: folder of the media files.
      settings: preparation settings.

    Returns:
      Mouths and sound, and the clip's record with its shares of frames with a face and with several faces.

    Raises:
      ClipError: the clip cannot be used.
    """
    watch = Stopwatch()
    media = inside(root, clip.path)
    # Sound comes first because it is cheap, and a clip without sound needs no landmarks.
    with watch.stage("sound"):
        sound = read_sound(media if settings.input == "media" else inside(root, clip.path, ".wav"))
        if sound.silent == len(sound.waveform):
            raise ClipError("audio", "silent audio")
    if settings.input == "roi":
        with watch.stage("decode"):
            mouths = Mouths(_read_crops(inside(root, clip.path, "_roi.mp4"), settings.fps_policy))
    else:
        find = _finder(clip, settings.landmarks)
        heard = len(sound.waveform) / SAMPLE_RATE

        def decode() -> Iterator[Frame]:
            side = 0
            for frame in watch.waiting("decode", limited(iterate_video(media, settings.fps_policy, heard))):
                yield frame
                side = max(frame.shape)
            _check_faces(find, settings, side)

        def look(frame: Frame) -> Points | None:
            with watch.stage("landmarks"):
                return find(frame)

        with watch.stage("crops"):  # includes decoding and landmarks, which are subtracted below
            mouths = find_mouths(decode, look)
        watch.seconds["crops"] -= watch.seconds["decode"] + watch.seconds["landmarks"]
        faces = find.faces()
        several = math.nan if isinstance(find, GivenPoints) else float((faces > 1).mean())
        clip = dataclasses.replace(clip, face_share=float((faces > 0).mean()), several_faces=several)
    return ReadClip(clip, mouths, sound, dict(watch.seconds))


def cut_clip(read: ReadClip, variant: Variant) -> PreparedClip:
    """Builds the encoder's inputs, with or without the leading silence.

    Args:
      read: the decoded clip.
      variant: whether to cut off the leading silence.

    Returns:
      Both modalities cut to the shorter one, and the clip's record with its leading silence, the number of trimmed
      frames, and its fake segments shifted to the trimmed clip. The shares of frames with faces are of the whole clip.

    Raises:
      ClipError: the remaining clip is too short.
    """
    trimmed = variant is Variant.TRIMMED
    start = frames_of_silence(read.sound.silent) if trimmed else 0
    sound = read.sound.waveform[start * SAMPLES_PER_FRAME :]
    audio = filterbank_frames(sound) if len(sound) else np.zeros((0, 104), np.float32)
    length = min(len(read.mouths.crops) - start, len(audio))
    if length < MIN_FRAMES:
        reason = f"is shorter than {MIN_FRAMES} frames{' after trimming' if trimmed else ''}"
        still = "; its video is a single picture" if len(read.mouths.crops) == 1 else ""
        raise ClipError("clip", reason + still)
    meta = dataclasses.replace(
        read.meta,
        leading_silence=read.sound.silent / SAMPLE_RATE,
        trimmed_frames=start,
        segments=shift_segments(read.meta.segments, start / FRAME_RATE),
    )
    samples = np.clip(np.round(sound * FULL_SCALE), -FULL_SCALE, FULL_SCALE - 1).astype(np.int16)
    part = slice(start, start + length)
    points = None if read.mouths.points is None else read.mouths.points[part]
    return PreparedClip(meta, read.mouths.crops[part], audio[:length], samples, variant, points)


def filterbank_frames(waveform: Float[np.ndarray, " S"]) -> Float[np.ndarray, "T 104"]:
    """Computes AV-HuBERT's audio input at 25 Hz.

    Rows of 26 log mel filters every 10 ms (python_speech_features' defaults) are padded with zeros to a multiple of 4
    and stacked by 4; each frame is then normalised to mean 0 and variance 1 over its 104 values.

    Args:
      waveform: mono samples at 16 kHz, in [-1, 1]; at least one.

    Returns:
      The frames, float32.
    """
    rows = python_speech_features.logfbank(waveform, samplerate=SAMPLE_RATE).astype(np.float32)
    rows = np.pad(rows, ((0, -len(rows) % STACK), (0, 0)))
    frames = rows.reshape(-1, STACK * rows.shape[1])
    centred = frames - frames.mean(axis=1, keepdims=True)
    variance = np.square(centred).mean(axis=1, keepdims=True)
    return centred / np.sqrt(variance + np.float32(LAYER_NORM_EPSILON))


def _finder(clip: ClipMeta, landmarks: str) -> CountingFinder | GivenPoints:
    if landmarks in FINDERS:
        return FINDERS[landmarks]()
    return GivenPoints(landmarks if Path(landmarks).is_file() else inside(landmarks, clip.path, ".npz"))


def _check_faces(find: CountingFinder | GivenPoints, settings: PrepareSettings, side: int) -> None:
    """Rejects a clip with a face in too few frames.

    Args:
      find: the finder, after the last frame.
      settings: preparation settings.
      side: longer side of the frames in pixels.

    Raises:
      ClipError: too few frames show a face, or the number of given points differs from the number of frames.
    """
    if isinstance(find, GivenPoints) and find.used != len(find.points):  # made for a different video
        raise ClipError("landmarks", f"{find.path} has points for {len(find.points)} frames, not {find.used}")
    faces = find.faces()
    found = np.count_nonzero(faces)
    advice = ""
    if settings.landmarks == "dlib-tracked" and side > SEARCH_SIDE:
        advice = f"; frames were searched at {SEARCH_SIDE} pixels, use --landmarks=dlib to find smaller faces"
    if not found:
        raise ClipError("landmarks", f"no face found{advice}")
    if found / len(faces) < settings.min_face_share:
        least = f"--min_face_share={settings.min_face_share:g}"
        raise ClipError("landmarks", f"a face in {found} of {len(faces)} frames, less than {least}{advice}")


def limited(frames: Iterator[Frame]) -> Iterator[Frame]:
    """Passes frames through and rejects the clip once it exceeds the longest length allowed."""
    for count, frame in enumerate(frames):
        if count == MAX_FRAMES:
            raise ClipError("clip", f"is longer than {MAX_FRAMES // FRAME_RATE // 60} minutes; cut it into pieces")
        yield frame


def _read_crops(path: os.PathLike, fps_policy: str) -> UInt8[np.ndarray, "T 96 96"]:
    """Reads mouth crops made by another program."""
    crops = []
    for frame in limited(iterate_video(path, fps_policy)):
        if frame.shape[:2] != (CROP, CROP):
            raise ClipError("video", f"its mouth crops are {frame.shape[1]}x{frame.shape[0]}, not {CROP}x{CROP}")
        crops.append(to_grey(frame))
    return np.stack(crops)
