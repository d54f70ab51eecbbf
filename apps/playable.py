"""Conversion of videos to a form that every browser plays."""

import contextlib
import itertools
import tempfile
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from avh_shards.clip import SAMPLE_RATE
from extract.media.audio import read_audio
from extract.media.decode import open_media, timed_pictures

PLAYED = {"h264", "vp8", "vp9", "av1"}  # video codecs
HEARD = {"aac", "mp3", "opus", "vorbis", "flac"}  # audio codecs
PIXELS = {"yuv420p", "yuvj420p"}  # 8-bit pixel formats
PLAYABLE_SUFFIXES = {".mp4", ".m4v", ".webm"}
TIME_BASE = Fraction(1, 90_000)  # seconds: time base of the copy's pictures, MPEG's clock, which fits all frame rates
LATE = 0.1  # seconds: a file that starts later is converted, since some players wait for its start and others do not
FIRST = 32  # packets inspected to find out how times are stored


@contextlib.contextmanager
def playable(video: Path) -> Iterator[Path]:
    """Yields the video if browsers play it as it was scored, else a temporary copy in H.264 and AAC.

    The copy is deleted at the end of the `with` block.
    """
    if _plays(video):
        yield video
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / f"{video.stem}.mp4"
        _encode(video, copy)
        yield copy


def _plays(video: Path) -> bool:
    """Returns whether browsers show a video upright, with the right shape and timing, and with its sound."""
    if video.suffix.lower() not in PLAYABLE_SUFFIXES:
        return False
    with open_media(video) as source:
        picture: Any = source.streams.best("video")
        voice: Any = source.streams.best("audio")
        codec = picture.codec_context
        if codec.name not in PLAYED or codec.pix_fmt not in PIXELS:
            return False
        if voice is not None and voice.codec_context.name not in HEARD:
            return False
        if (source.start_time or 0) > LATE * av.time_base or picture.sample_aspect_ratio not in (None, 1):
            return False
        times = [packet.pts for packet in itertools.islice(source.demux(picture), FIRST) if packet.pts is not None]
        if codec.has_b_frames and times == sorted(times):  # decoding times: see extract/media/decode.py
            return False
        source.seek(0)
        frame: Any = next(source.decode(picture))
        return "DISPLAYMATRIX" not in {side.type.name for side in frame.side_data}


def _encode(video: Path, copy: Path) -> None:
    """Writes the pictures and the sound that are scored, with the same timing."""
    with open_media(video) as source:
        silent = source.streams.best("audio") is None
    with av.open(str(copy), "w") as target:
        seen = target.add_stream("libx264", options={"preset": "veryfast", "crf": "26"})
        seen.pix_fmt = "yuv420p"
        seen.codec_context.time_base = TIME_BASE
        heard = None if silent else target.add_stream("aac", rate=SAMPLE_RATE, layout="mono")
        last = -1
        for time, picture in timed_pictures(video):
            if last < 0:
                seen.height, seen.width = (side // 2 * 2 for side in picture.shape[:2])  # even, as H.264 requires
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame = frame.reformat(seen.width, seen.height, "yuv420p")
            frame.pts = max(round(time / TIME_BASE), last + 1)
            frame.time_base = TIME_BASE
            target.mux(seen.encode(frame))
            last = frame.pts
        target.mux(seen.encode(None))
        if heard is not None:
            frame = av.AudioFrame.from_ndarray(read_audio(video)[np.newaxis], format="fltp", layout="mono")
            frame.sample_rate = SAMPLE_RATE
            frame.pts = 0
            target.mux(heard.encode(frame))
            target.mux(heard.encode(None))
