"""One clip's media files become the encoder's inputs, or a reason why not."""

import dataclasses
import os

import numpy as np
from jaxtyping import Float, UInt8

from extract.clips import ClipError, inside, shift_segments
from extract.prepare.audio import check_sound, filterbank_frames, frames_to_trim, leading_silence
from extract.prepare.landmarks import detect_landmarks
from extract.prepare.media import iterate_video, read_audio, read_video, to_grey
from extract.prepare.mouth import CROP, crop_mouths
from extract.schema import FRAME_RATE, SAMPLES_PER_FRAME, ClipMeta

INPUTS = ("media", "roi")
MIN_FRAMES = 2  # of a usable clip
MAX_FRAMES = 15_000  # 10 minutes: the encoder sees a clip in one piece


@dataclasses.dataclass(frozen=True)
class PrepareSettings:
    """Every choice in preparation that changes a number."""

    input: str = "media"  # "media": a video file with sound; "roi": x_roi.mp4 (mouth crops at 25 fps) + x.wav for x.mp4
    fps_policy: str = "resample"  # see media.read_video
    trimmed: bool = False  # drop the leading silence from both modalities


@dataclasses.dataclass(frozen=True)
class PreparedClip:
    """A clip's network inputs, both of T frames at 25 Hz."""

    meta: ClipMeta
    crops: UInt8[np.ndarray, "T 96 96"]  # grey
    audio: Float[np.ndarray, "T 104"]


def prepare_clip(clip: ClipMeta, root: str | os.PathLike, settings: PrepareSettings) -> PreparedClip:
    """Prepares one clip of a list.

    Args:
      clip: its path is relative to `root`.
      root: folder of the media files.
      settings: what to read and how.

    Returns:
      Both modalities cut to the shorter, and the clip's record with its leading silence, the number of trimmed frames,
      and its fake segments in the time of what is left.

    Raises:
      ClipError: the clip cannot be used.
    """
    media = inside(root, clip.path)
    # Sound first: it is cheap, and a clip without sound needs no landmarks.
    waveform = read_audio(media if settings.input == "media" else inside(root, clip.path, ".wav"))
    check_sound(waveform)
    trimmed = frames_to_trim(waveform) if settings.trimmed else 0
    if settings.input == "media":
        # Decoded twice, so that only one frame is in memory at a time.
        landmarks = detect_landmarks(iterate_video(media, settings.fps_policy))
        crops = crop_mouths(iterate_video(media, settings.fps_policy), landmarks)
    else:
        crops = _read_crops(inside(root, clip.path, "_roi.mp4"))
    sound = waveform[trimmed * SAMPLES_PER_FRAME :]
    audio = filterbank_frames(sound) if len(sound) else ()
    length = min(len(crops) - trimmed, len(audio))
    if length < MIN_FRAMES:
        raise ClipError("clip", f"is shorter than {MIN_FRAMES} frames{' after trimming' if trimmed else ''}")
    if length > MAX_FRAMES:
        raise ClipError("clip", f"is longer than {MAX_FRAMES // FRAME_RATE // 60} minutes; cut it into pieces")
    meta = dataclasses.replace(
        clip,
        leading_silence=leading_silence(waveform),
        trimmed_frames=trimmed,
        segments=shift_segments(clip.segments, trimmed / FRAME_RATE),
    )
    return PreparedClip(meta, crops[trimmed : trimmed + length], audio[:length])


def _read_crops(path: os.PathLike) -> UInt8[np.ndarray, "T 96 96"]:
    """Mouth crops that another program made, one a frame."""
    frames = read_video(path, "native")
    if frames.shape[1:3] != (CROP, CROP):
        raise ClipError("video", f"its mouth crops are {frames.shape[2]}x{frames.shape[1]}, not {CROP}x{CROP}")
    return to_grey(frames)
