"""Waveforms: leading silence, trimming, and the encoder's log-filterbank frames."""

import numpy as np
import python_speech_features
from jaxtyping import Float

from avh_shards import SAMPLE_RATE, SAMPLES_PER_FRAME, SILENCE

STACK = 4  # filterbank rows (100 Hz) in one audio frame (25 Hz)
LAYER_NORM_EPSILON = 1e-5


def leading_silence(waveform: Float[np.ndarray, " S"]) -> float:
    """Seconds before the first sample louder than 0.0005; the whole length if there is none.

    Source: AVH-Align, section 3: fakes of several data sets start with a moment of it.
    """
    return first_sound(waveform) / SAMPLE_RATE


def first_sound(waveform: Float[np.ndarray, " S"]) -> int:
    """Index of the first sample above the threshold, or the number of samples."""
    loud = np.abs(waveform) > SILENCE
    return int(loud.argmax()) if loud.any() else len(waveform)


def frames_to_trim(waveform: Float[np.ndarray, " S"]) -> int:
    """Video frames (25 Hz) to drop at the start so that no leading silence is left; 0 if there is none."""
    return frames_of_silence(first_sound(waveform))


def frames_of_silence(samples: int) -> int:
    """Video frames (25 Hz) that begin within leading silence of a number of samples.

    Counted in samples: rounding seconds would slip a frame just below exact multiples of 640 samples.
    """
    return samples // SAMPLES_PER_FRAME + 1 if samples else 0


def filterbank_frames(waveform: Float[np.ndarray, " S"]) -> Float[np.ndarray, "T 104"]:
    """AV-HuBERT's audio input at 25 Hz.

    26 log mel filters every 10 ms (python_speech_features' defaults), zero rows up to a multiple of 4, 4 rows stacked,
    each frame normalised to mean 0 and variance 1 over its 104 values.

    Args:
      waveform: mono, 16 kHz, in [-1, 1].

    Returns:
      float32 frames.
    """
    rows = python_speech_features.logfbank(waveform, samplerate=SAMPLE_RATE).astype(np.float32)
    rows = np.pad(rows, ((0, -len(rows) % STACK), (0, 0)))
    frames = rows.reshape(-1, STACK * rows.shape[1])
    centred = frames - frames.mean(axis=1, keepdims=True)
    variance = np.square(centred).mean(axis=1, keepdims=True)
    return centred / np.sqrt(variance + np.float32(LAYER_NORM_EPSILON))
