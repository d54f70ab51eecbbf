"""Videos in a form that every browser plays."""

import contextlib
import tempfile
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av

PLAYED = {"h264", "vp8", "vp9", "av1"}  # video codecs
SUFFIXES = {".mp4", ".m4v", ".webm"}
TIME_BASE = Fraction(1, 90_000)  # seconds, of the copy's pictures: MPEG's clock, which all frame rates fit
AUDIO_RATE = 48_000  # Hz


@contextlib.contextmanager
def playable(video: Path) -> Iterator[Path]:
    """The video itself if browsers play it, else a copy in H.264 and AAC for the time of the block."""
    with av.open(str(video)) as source:
        played = source.streams.video[0].codec_context.name in PLAYED
    if played and video.suffix.lower() in SUFFIXES:
        yield video
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / f"{video.stem}.mp4"
        _encode(video, copy)
        yield copy


def _encode(video: Path, copy: Path) -> None:
    with av.open(str(video)) as source, av.open(str(copy), "w") as target:
        picture, voice = source.streams.video[0], next(iter(source.streams.audio), None)
        seen = target.add_stream("libx264", options={"preset": "veryfast", "crf": "26"})
        seen.width, seen.height = (size // 2 * 2 for size in (picture.width, picture.height))  # as H.264 wants them
        seen.pix_fmt, seen.codec_context.time_base = "yuv420p", TIME_BASE
        heard = target.add_stream("aac", rate=AUDIO_RATE, layout="stereo") if voice else None
        resampler = av.AudioResampler("fltp", "stereo", AUDIO_RATE)
        for frame in source.decode(*filter(None, (picture, voice))):
            if isinstance(frame, av.VideoFrame):
                target.mux(seen.encode(frame.reformat(seen.width, seen.height, "yuv420p")))
            else:
                target.mux(packet for part in resampler.resample(frame) for packet in heard.encode(part))
        for stream in filter(None, (seen, heard)):
            target.mux(stream.encode(None))
