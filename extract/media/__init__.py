"""Decoding of media files into 25 Hz frames and 16 kHz mono sound."""

from extract.media.audio import read_audio
from extract.media.decode import iterate_video, read_video

__all__ = ["iterate_video", "read_audio", "read_video"]
