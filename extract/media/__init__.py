"""A media file -> frames at 25 per second, and mono sound at 16 kHz."""

from extract.media.audio import read_audio
from extract.media.decode import iterate_video, read_video

__all__ = ["iterate_video", "read_audio", "read_video"]
