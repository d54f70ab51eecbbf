"""Decoding of video into 25 Hz frames, on the same timeline as the waveform of `audio`.

Time zero is the earlier start of the chosen video and audio streams, which keeps picture and sound in sync as a player
would: a stream that starts later is padded with its first frame or with silence. Pictures keep the order in which the
decoder returns them, at the file's sorted times; samples are placed by their timestamps.
"""

import collections
import contextlib
import errno
import heapq
import io
import math
import os
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import av
import av.error
import av.stream
import cv2
import numpy as np
from av.container import InputContainer
from av.format import Flags
from av.stream import Disposition
from av.video.reformatter import Interpolation, VideoReformatter
from jaxtyping import Int, UInt8

from avh_shards.clip import FRAME_RATE
from avh_shards.clip_list import near_name
from avh_shards.errors import ClipError
from avh_shards.text import one_line

FPS_POLICIES = ("resample", "native")
LISTS = (b"ffconcat version", b"#EXTM3U")  # first bytes of files that only list other files
BUFFER = 2**18  # bytes per read
MAX_HELD = 600  # seconds for which a picture may be shown
MIN_DECODED = 0.95  # fraction of the length in the header; below, the file is cut short
RESTART = 0.1  # seconds: a clock that goes back by more has been restarted
REORDERED = 16  # frames: largest reordering delay of H.264 and HEVC
# Pixel aspect ratios - 1: below the first, too close to square to matter; above the second, implausible.
SQUARE_PIXELS = (0.01, 4.0)

Frame = UInt8[np.ndarray, "H W 3"]  # RGB, upright, square pixels


def iterate_video(path: str | os.PathLike, fps_policy: str = "resample", heard: float | None = None) -> Iterator[Frame]:
    """Decodes the best video stream of a file, as FFmpeg ranks them, frame by frame.

    Args:
      path: a media file.
      fps_policy: "resample": frame k is the one nearest in presentation time to k / 25 s, which keeps sound and picture
        in sync at any source frame rate. "native": every frame of the file, treated as 25 fps, for parity with the
        official program.
      heard: seconds of sound in the file, if known. Formats without a frame count (Matroska, FLV, ...) are rejected if
        their header gives a duration longer than both sound and picture.

    Yields:
      Upright RGB frames with square pixels, uint8, all of the first frame's size. A repeated frame is the same object.

    Raises:
      ClipError: the file is missing, damaged or cut short, has no video, or shows one picture for more than MAX_HELD
        seconds (only "resample").
    """
    assert fps_policy in FPS_POLICIES, fps_policy
    frames = timed_pictures(path, heard)
    yield from _resampled(frames) if fps_policy == "resample" else (picture for _, picture in frames)


def read_video(path: str | os.PathLike, fps_policy: str = "resample") -> UInt8[np.ndarray, "T H W 3"]:
    """Decodes all frames of `iterate_video` into one array; a minute of 640x480 takes 1.4 GB.

    Args:
      path: a media file.
      fps_policy: "resample" or "native", as for `iterate_video`.

    Returns:
      Upright RGB frames with square pixels.

    Raises:
      ClipError: as for `iterate_video`.
    """
    return np.stack(list(iterate_video(path, fps_policy)))


def timed_pictures(path: str | os.PathLike, heard: float | None = None) -> Iterator[tuple[float, Frame]]:
    """Decodes the pictures of `iterate_video` at the file's own frame rate.

    Args:
      path: a media file.
      heard: seconds of sound in the file, if known; see `iterate_video`.

    Yields:
      The time in seconds since the start of the timeline, which never decreases, and the picture.

    Raises:
      ClipError: the file is missing, damaged or cut short, or has no video.
    """
    with opened(path, "video") as (container, stream):
        rate = float(stream.average_rate or FRAME_RATE)
        duration = float(stream.duration * (stream.time_base or 0)) if stream.duration else math.inf
        frames = _timed_frames(container, stream, rate)
        frames = _checked_whole(frames, stream.frames, duration)
        seen = 0.0
        for time, picture in _of_one_size(_as_shown(frames, stream)):
            yield time, picture
            seen = time + 1 / rate
        if heard is not None and not stream.frames:
            _check_length(container, max(seen, heard))


def to_grey(frame: Frame) -> UInt8[np.ndarray, "H W"]:
    """Converts an RGB frame to grey with OpenCV's weights and rounding, as the official program does."""
    return cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)


@contextlib.contextmanager
def open_media(path: str | os.PathLike, kind: str = "media") -> Iterator[InputContainer]:
    """Opens one media file; FFmpeg only receives its bytes, so file names and playlists cannot open other files.

    Args:
      path: a file; colons, percent signs and protocols in its name have no special meaning.
      kind: stage for error messages, such as "video".

    Yields:
      The PyAV container.

    Raises:
      ClipError: the file is missing or cannot be decoded; FFmpeg errors inside the block are converted as well.
    """
    if not Path(path).is_file():
        raise ClipError("media", f"no such file: {one_line(path)}{near_name(path)}", passing=True)
    try:
        with _Bytes(path) as file:
            if file.read(32).startswith(LISTS):
                raise ClipError(kind, "is a list of other files, not a media file")
            file.seek(0)
            nowhere = {"protocol_whitelist": "none"}
            with av.open(file, metadata_errors="replace", container_options=nowhere, buffer_size=BUFFER) as container:
                assert isinstance(container, InputContainer)
                yield container
    except av.error.FFmpegError as error:
        raise ClipError(kind, f"cannot be decoded: {error.strerror}") from error
    except OSError as error:
        raise ClipError("media", f"cannot be read: {error.strerror}") from error


class _Bytes(io.FileIO):
    """A file for FFmpeg that returns an error code instead of raising when a seek fails; FFmpeg handles the code."""

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        try:
            return super().seek(offset, whence)
        except OSError as error:
            return -(error.errno or errno.EINVAL)


@contextlib.contextmanager
def opened(path: str | os.PathLike, kind: Literal["video", "audio"]) -> Iterator[tuple[InputContainer, Any]]:
    """Yields the container of a media file and its best stream of a kind.

    Raises:
      ClipError: the file is missing or damaged, or has no such stream.
    """
    with open_media(path, kind) as container:
        stream: Any = container.streams.best(kind)
        if stream is None or stream.disposition & Disposition.attached_pic:
            raise ClipError(kind, f"holds no {kind} stream")
        if stream.codec_context is None:
            raise ClipError(kind, f"cannot be decoded: its {kind} codec is unknown")
        stream.thread_type = "AUTO"
        yield container, stream


def _best_streams(container: InputContainer) -> list:
    streams = [container.streams.best(kind) for kind in ("video", "audio")]
    return [stream for stream in streams if stream is not None]


def timeline_start(container: InputContainer) -> float:
    """Returns the earlier start of video and audio, in seconds on the container's clock."""
    starts = [float(s.start_time * s.time_base) for s in _best_streams(container) if s.start_time is not None]
    return min(starts, default=0.0)


def packets(container: InputContainer, wanted: av.stream.Stream) -> Iterator[av.Packet]:
    """Yields the packets of a stream, with times on the clock shared by both streams."""
    clock = _Clock()
    restarts = bool(container.format.flags & Flags.ts_discont.value)
    for packet in container.demux(*_best_streams(container)):
        if packet.stream.type == "video" and container.format.name == "avi":
            packet.pts = packet.dts  # AVI stores only an order; FFmpeg's presentation times guessed from it are late
        if restarts:
            clock.join(packet)
        if packet.stream.index == wanted.index:
            yield packet


class _Clock:
    """Continuous clock for a transport stream whose recorder restarted: times jump back, stream by stream.

    The first stream to jump back sets the offset for all later times; the others use it once they jump back too.
    """

    def __init__(self):
        self.added = [Fraction(0)]  # offsets in seconds: before the first restart, after it, ...
        self.restarts = collections.Counter()  # by stream
        self.last: dict[int, Fraction] = {}  # time of the previous packet in seconds, by stream

    def join(self, packet: av.Packet) -> None:
        """Shifts a packet's times onto the continuous clock."""
        stream = packet.stream.index
        base = packet.time_base
        if packet.dts is not None:
            time = packet.dts * base
            if time < self.last.get(stream, time) - Fraction(RESTART):
                self.restarts[stream] += 1
                if self.restarts[stream] == len(self.added):
                    length = (packet.duration or 0) * base
                    self.added.append(self.added[-1] + self.last[stream] + length - time)
            self.last[stream] = time
        ticks = round(self.added[self.restarts[stream]] / base) if base else 0
        if ticks and packet.dts is not None:
            packet.dts += ticks
        if ticks and packet.pts is not None:
            packet.pts += ticks


def _timed_frames(
    container: InputContainer, stream: av.VideoStream, rate: float
) -> Iterator[tuple[float, av.VideoFrame]]:
    """Yields (seconds since the start of the timeline, frame); a frame without a time follows the previous one.

    Some files have no presentation times (AVI, streams copied from AVI, raw H.264 in a container). Their packet times
    only count up in decoding order, so a decoder that reorders frames returns them permuted; times are then held back
    until all earlier ones have arrived. In other files the first reordered packet has an earlier time than the previous
    packet, and from then on nothing is held back.
    """
    start = timeline_start(container)
    held: collections.deque[av.VideoFrame] = collections.deque()
    times: list[float] = []  # a heap
    first: float | None = None  # seconds of the first packet
    packet_time = -math.inf
    counting = True
    time = -1 / rate
    shown = -math.inf
    late = 0.0
    for packet in packets(container, stream):
        if packet.pts is not None:
            first = packet.pts * float(packet.time_base) - start if first is None else first
            counting = counting and packet.pts > packet_time
            packet_time = packet.pts
        for frame in packet.decode():
            before = time
            time = frame.time - start if frame.time is not None else time + 1 / rate
            if counting and time < before and first is not None and -REORDERED / rate <= first < 0:
                late = -first  # no picture is shown before the start, so these were decoding times
            held.append(frame)
            heapq.heappush(times, time)
        wait = REORDERED if counting and stream.codec_context.has_b_frames and packet.size else 0
        while len(held) > wait:
            shown = max(shown, heapq.heappop(times) + late)
            yield shown, held.popleft()


def _checked_whole(frames: Iterable[tuple[float, av.VideoFrame]], promised: int, duration: float) -> Iterator:
    """Passes timed frames through; rejects a stream that ends long before its header says, in frames and in seconds.

    A frame count is not enough because AVI counts repeated pictures; a duration is not enough because the last picture
    may be shown for a minute.
    """
    count = 0
    first = last = 0.0
    for time, frame in frames:
        first = first if count else time
        last = time
        count += 1
        yield time, frame
    if count == 0:
        raise ClipError("video", "its video stream has no frames")
    lasted = (last - first) * count / max(count - 1, 1)  # the last picture counts as long as the others
    if count < MIN_DECODED * promised and lasted < MIN_DECODED * duration:
        raise ClipError("video", f"is cut short: {count} of {promised} frames can be decoded")


def _check_length(container: InputContainer, seconds: float) -> None:
    """Rejects a file whose sound and picture are both shorter than its header says; `seconds` is the longer one."""
    promised = (container.duration or 0) / av.time_base
    if container.format.name.startswith("matroska"):  # its duration is the end time
        promised -= max(container.start_time or 0, 0) / av.time_base
    if seconds < MIN_DECODED * promised - 1 / FRAME_RATE:
        raise ClipError("media", f"is cut short: {seconds:.2f} of {promised:.2f} s can be decoded")


def _as_shown(frames: Iterable[tuple[float, av.VideoFrame]], stream: av.VideoStream) -> Iterator[tuple[float, Frame]]:
    """Converts frames to upright RGB pictures with square pixels.

    A pixel aspect ratio or orientation applies until a frame changes it. As in FFmpeg, the container's aspect ratio
    takes precedence over the codec's, unless the codec's changes midway.
    """
    context = stream.codec_context
    converter = VideoReformatter()
    shape = stream.sample_aspect_ratio
    codecs_shape = context.sample_aspect_ratio
    matrix = None
    for time, frame in frames:
        if context.sample_aspect_ratio not in (codecs_shape, None):
            codecs_shape = shape = context.sample_aspect_ratio
        size = _square_size(frame.width, frame.height, float(shape or 1))
        if size == (frame.width, frame.height):
            picture = converter.reformat(frame, format="rgb24").to_ndarray()
        else:
            picture = converter.reformat(frame, *size, "rgb24", interpolation=Interpolation.BICUBIC).to_ndarray()
        side = frame.side_data.get("DISPLAYMATRIX")
        matrix = matrix if side is None else np.frombuffer(side, np.int32)
        yield time, picture if matrix is None else _oriented(picture, matrix)


def _square_size(width: int, height: int, shape: float) -> tuple[int, int]:
    """Returns a picture's size in square pixels; the short side is stretched, so no detail is lost."""
    off = max(shape, 1 / shape)
    if not SQUARE_PIXELS[0] < off - 1 < SQUARE_PIXELS[1]:
        return width, height
    return (round(width * off), height) if shape > 1 else (width, round(height * off))


def _oriented(picture: UInt8[np.ndarray, "h w 3"], matrix: Int[np.ndarray, " 9"]) -> Frame:
    """Rotates and mirrors a picture to the nearest of the eight axis-aligned orientations.

    Args:
      picture: the stored picture.
      matrix: FFmpeg's display matrix, which shows (x, y) at (x m[0] + y m[3], x m[1] + y m[4]).
    """
    across = matrix[0]
    down = matrix[4]
    if abs(int(matrix[1])) + abs(int(matrix[3])) > abs(int(across)) + abs(int(down)):
        picture = picture.transpose(1, 0, 2)
        across = matrix[3]
        down = matrix[1]
    return np.ascontiguousarray(picture[:: -1 if down < 0 else 1, :: -1 if across < 0 else 1])


def _of_one_size(frames: Iterable[tuple[float, np.ndarray]]) -> Iterator[tuple[float, np.ndarray]]:
    """Fits pictures into the first one's size, with black borders; a stream may change size midway."""
    first = None
    for time, picture in frames:
        first = picture.shape if first is None else first
        yield time, picture if picture.shape == first else _fitted(picture, *first[:2])


def _fitted(picture: UInt8[np.ndarray, "h w 3"], height: int, width: int) -> Frame:
    """Scales a picture, keeping its aspect ratio, and centres it on a black one."""
    scale = min(height / picture.shape[0], width / picture.shape[1])
    inner = [max(round(scale * side), 1) for side in picture.shape[:2]]
    inner = [whole if whole - side <= 1 else side for side, whole in zip(inner, (height, width), strict=True)]
    fitted = np.zeros((height, width, 3), np.uint8)
    top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
    fitted[top : top + inner[0], left : left + inner[1]] = cv2.resize(
        picture, inner[::-1], interpolation=cv2.INTER_AREA
    )
    return fitted


def _resampled(frames: Iterable[tuple[float, np.ndarray]]) -> Iterator[np.ndarray]:
    """Yields the frame nearest to each k / 25 s, up to the end of the last frame."""
    index = 0
    previous = None
    time = 0.0
    duration = 1 / FRAME_RATE
    for next_time, picture in frames:
        if next_time - time > MAX_HELD:
            raise ClipError("video", f"shows one picture for {next_time - time:.0f} s, more than {MAX_HELD} s")
        if previous is not None:
            duration = next_time - time
            while index / FRAME_RATE < (time + next_time) / 2:
                yield previous
                index += 1
        time = next_time
        previous = picture
    while previous is not None and (index == 0 or (index + 0.5) / FRAME_RATE < time + duration):
        yield previous
        index += 1
