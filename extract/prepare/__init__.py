"""Media files become the encoder's inputs: frames, landmarks, mouth crops, waveforms, filterbank frames."""

from extract.prepare.audio import filterbank_frames, leading_silence
from extract.prepare.clip import PreparedClip, PrepareSettings, cut_clip, prepare_clip, read_clip
from extract.prepare.landmarks import detect_landmarks
from extract.prepare.media import iterate_video, read_audio
from extract.prepare.mouth import crop_mouths, find_mouths

__all__ = [
    "PrepareSettings",
    "PreparedClip",
    "crop_mouths",
    "cut_clip",
    "detect_landmarks",
    "filterbank_frames",
    "find_mouths",
    "iterate_video",
    "leading_silence",
    "prepare_clip",
    "read_audio",
    "read_clip",
]
