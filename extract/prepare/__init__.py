"""Media files become the encoder's inputs: frames, landmarks, mouth crops, waveforms, filterbank frames."""

from extract.prepare.audio import filterbank_frames, leading_silence
from extract.prepare.clip import PreparedClip, PrepareSettings, prepare_clip
from extract.prepare.landmarks import detect_landmarks
from extract.prepare.media import read_audio, read_video
from extract.prepare.mouth import crop_mouths

__all__ = [
    "PrepareSettings",
    "PreparedClip",
    "crop_mouths",
    "detect_landmarks",
    "filterbank_frames",
    "leading_silence",
    "prepare_clip",
    "read_audio",
    "read_video",
]
