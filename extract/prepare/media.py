"""Media files become frames at 25 Hz and a 16 kHz waveform on one common timeline.

Time zero is the earliest start of the chosen video and audio streams, so what a player shows and sounds together stays
together: a stream that starts later is led by its first frame held, or by silence.
"""

import contextlib
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import av
import cv2
import numpy as np
import soxr
from av.stream import Disposition
from jaxtyping import Float, UInt8

from extract.clips import ClipError, near_name
from extract.schema import FRAME_RATE, SAMPLE_RATE

FPS_POLICIES = ("resample", "native")
PLAYLISTS = {"concat", "dash", "hls", "imf", "rtsp", "sdp"}  # demuxers that read other files than the one named
MAX_SECONDS = 3600  # of sound
MIN_DECODED = 0.95  # of the frames that the header promises; fewer means that the file is cut short
GAP = 0.02  # seconds between audio timestamps that count as a hole and are filled with silence


def iterate_video(path: str | os.PathLike, fps_policy: str = "resample") -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    """Decodes the video stream that FFmpeg holds for the best of a file, one frame after the other.

    Args:
      path: a media file.
      fps_policy: "resample": frame k is the one nearest in presentation time to k / 25 s, so that sound and picture
        stay together whatever the source's rate. "native": every frame of the file, taken for 25 fps (what the
        official program does, for parity).

    Yields:
      RGB frames, upright; one that is shown for several is the same object each time.

    Raises:
      ClipError: the file is missing, damaged or cut short, or holds no video.
    """
    assert fps_policy in FPS_POLICIES, fps_policy
    with _opened(path, "video") as (container, stream):
        start = _timeline_start(container)
        rate = float(stream.average_rate or FRAME_RATE)
        duration = float(stream.duration * stream.time_base) if stream.duration else math.inf
        frames = _timed_frames(container.decode(stream), rate, start)
        frames = _checked_whole(frames, stream.frames, duration - 1 / rate)
        yield from _of_one_size(_resampled(frames) if fps_policy == "resample" else (frame for _, frame in frames))


def read_audio(path: str | os.PathLike) -> Float[np.ndarray, " S"]:
    """Decodes the audio stream that FFmpeg holds for the best of a file.

    Returns:
      float32 samples in [-1, 1] at 16 kHz: the mean of the channels, resampled by soxr at quality HQ.

    Raises:
      ClipError: the file is missing, damaged, or holds no sound.
    """
    with _opened(path, "audio") as (container, stream):
        start = _timeline_start(container)
        rate = stream.rate
        to_float = av.AudioResampler(format="fltp")  # sample format only
        pieces, length = [], 0
        for frame in container.decode(stream):
            gap = 0 if frame.time is None else round((frame.time - start) * rate) - length
            if length + gap > MAX_SECONDS * rate:
                raise ClipError("audio", f"its sound, or a gap in it, is longer than {MAX_SECONDS} s")
            if gap > GAP * rate or (not pieces and gap > 0):
                pieces.append(np.zeros(gap, np.float32))
                length += gap
            for part in to_float.resample(frame):
                pieces.append(part.to_ndarray().mean(axis=0))
                length += part.samples
    if not length:
        raise ClipError("audio", "its audio stream holds no samples")
    return soxr.resample(np.concatenate(pieces), rate, SAMPLE_RATE, quality="HQ").astype(np.float32)


def check_length(path: str | os.PathLike, seconds: float) -> None:
    """Refuses a file of a kind that counts no frames (Matroska, FLV, ...) of which less is there than its header says.

    Args:
      path: a media file.
      seconds: what could be decoded, of the longer of sound and picture.

    Raises:
      ClipError: the file is cut short.
    """
    with _opened(path, "video") as (container, stream):
        promised = (container.duration or 0) / av.time_base
        if not stream.frames and seconds < MIN_DECODED * promised - 1 / FRAME_RATE:
            raise ClipError("media", f"is cut short: {seconds:.2f} of {promised:.2f} s can be decoded")


def to_grey(frame: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "H W"]:
    """Luma of an RGB frame, with OpenCV's weights and rounding (those of the official program)."""
    return cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)


@contextlib.contextmanager
def _opened(path: str | os.PathLike, kind: str):
    """The container and its best stream of a kind; FFmpeg's own words reach the user."""
    if not Path(path).is_file():
        raise ClipError("media", f"no such file: {path}{near_name(path)}")
    try:
        with av.open(str(path), metadata_errors="replace") as container:
            if container.format.name in PLAYLISTS:
                raise ClipError(kind, "is a list of other files, not a media file")
            stream = container.streams.best(kind)
            if stream is None or stream.disposition & Disposition.attached_pic:
                raise ClipError(kind, f"holds no {kind} stream")
            stream.thread_type = "AUTO"
            yield container, stream
    except av.error.FFmpegError as error:
        raise ClipError(kind, f"cannot be decoded: {error.strerror}") from error


def _timeline_start(container: av.container.InputContainer) -> float:
    """Seconds of the earliest of the video's and the audio's starts, in the container's clock."""
    streams = [container.streams.best(kind) for kind in ("video", "audio")]
    starts = [float(s.start_time * s.time_base) for s in streams if s is not None and s.start_time is not None]
    return min(starts, default=0.0)


def _timed_frames(
    decoded: Iterable[av.VideoFrame], rate: float, start: float
) -> Iterator[tuple[float, UInt8[np.ndarray, "H W 3"]]]:
    """(seconds since the timeline's start, upright picture); a frame without a time follows the one before it."""
    time = -1 / rate
    for frame in decoded:
        time = max(time, frame.time - start) if frame.time is not None else time + 1 / rate
        picture = frame.to_ndarray(format="rgb24")
        yield time, np.rot90(picture, round(frame.rotation / 90) % 4)


def _checked_whole(frames: Iterable[tuple[float, np.ndarray]], promised: int, duration: float) -> Iterator:
    """Passes timed frames on; refuses a stream that ends long before its header says, in frames and in seconds.

    Frames alone would not do: an AVI file counts pictures that are shown twice. Nor would seconds: a last picture may
    be shown for a minute.
    """
    count, first, last = 0, None, 0.0
    for time, picture in frames:
        first, last, count = time if first is None else first, time, count + 1
        yield time, picture
    if count == 0:
        raise ClipError("video", "its video stream holds no frame")
    if count < MIN_DECODED * promised and last - first < MIN_DECODED * duration:
        raise ClipError("video", f"is cut short: {count} of {promised} frames can be decoded")


def _resampled(frames: Iterator[tuple[float, np.ndarray]]) -> Iterator[np.ndarray]:
    """The frame nearest to each k / 25 s, up to the end of the last frame."""
    index, previous, time = 0, None, 0.0
    duration = 1 / FRAME_RATE
    for next_time, picture in frames:
        if previous is not None:
            duration = next_time - time
            while index / FRAME_RATE < (time + next_time) / 2:
                yield previous
                index += 1
        time, previous = next_time, picture
    while previous is not None and (index == 0 or (index + 0.5) / FRAME_RATE < time + duration):
        yield previous
        index += 1


def _of_one_size(frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Brings frames to the first one's size (a stream may change it midway)."""
    shape = None
    for frame in frames:
        shape = shape or frame.shape
        yield frame if frame.shape == shape else cv2.resize(frame, shape[1::-1], interpolation=cv2.INTER_AREA)
