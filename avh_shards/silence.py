"""Leading silence and initial loudness, the shortcut that fakes of several data sets leave for a detector.

Source: AVH-Align, section 3: fakes start with some 30 ms of digital silence.
Waveforms are 16 kHz mono, int16 or floats in [-1, 1]; |x| is in [0, 1] for both.
"""

import numpy as np
from jaxtyping import Float, Int, Real

from avh_shards.clip import FULL_SCALE, SAMPLE_RATE, SAMPLES_PER_FRAME

SILENCE = 0.0005  # |x| up to this is silence; AVH-Align's threshold
START = 0.030  # seconds; the largest |x| of this first moment is the most informative


def leading_silence(waveform: Real[np.ndarray, " S"], threshold: float = SILENCE) -> float:
    """Returns the seconds before the first sample louder than a threshold, or the clip's length if there is none.

    Args:
      waveform: mono samples at 16 kHz, int16 or floats in [-1, 1]; NaN is silent.
      threshold: largest |x| that is silent, as a share of full scale; by default AVH-Align's.

    References:
      AVH-Align, section 3.
    """
    return first_sound(waveform, threshold) / SAMPLE_RATE


def leading_silences(waveform: Real[np.ndarray, " S"], thresholds: Float[np.ndarray, " K"]) -> Float[np.ndarray, " K"]:
    """Returns the leading silence in seconds at each of K thresholds on |x|, in one pass over the samples."""
    return _first_sounds(waveform, thresholds) / SAMPLE_RATE


def first_sound(waveform: Real[np.ndarray, " S"], threshold: float = SILENCE) -> int:
    """Returns the index of the first sample louder than a threshold, or the number of samples."""
    return int(_first_sounds(waveform, np.array([threshold]))[0])


def frames_of_silence(samples: int) -> int:
    """Returns how many video frames (25 Hz) begin within a leading silence of a number of samples.

    Takes samples because rounded seconds could fall just below an exact multiple of 640 samples and lose a frame.
    """
    return samples // SAMPLES_PER_FRAME + 1 if samples else 0


def leading_amplitude(waveform: Real[np.ndarray, " S"], seconds: float = START) -> float:
    """Returns the largest |x| in the first `seconds` of a clip, or in the whole clip if it is shorter."""
    return float(leading_amplitudes(waveform, np.array([seconds]))[0])


def leading_amplitudes(waveform: Real[np.ndarray, " S"], moments: Float[np.ndarray, " K"]) -> Float[np.ndarray, " K"]:
    """Returns the largest |x| within each of K initial durations in seconds, in one pass over the samples."""
    counts = np.rint(moments * SAMPLE_RATE).astype(np.int64)
    loudest, unit = _loudest_so_far(waveform[: counts.max(initial=0)])
    after = np.concatenate([[0], loudest])  # largest |x| after 0, 1, 2, ... samples
    return after[np.minimum(counts, len(loudest))] / unit


def _first_sounds(waveform: Real[np.ndarray, " S"], thresholds: Float[np.ndarray, " K"]) -> Int[np.ndarray, " K"]:
    loudest, unit = _loudest_so_far(waveform)
    # The unit is a power of two, so the product is exact; floats are compared in their own precision.
    limits = thresholds * unit if unit != 1 else thresholds.astype(loudest.dtype)
    return np.searchsorted(loudest, limits, side="right")  # a sample on the threshold is silent


def _loudest_so_far(waveform: Real[np.ndarray, " S"]) -> tuple[Real[np.ndarray, " S"], int]:
    """Returns the largest |x| up to each sample, and the value that represents |x| = 1."""
    if waveform.dtype == np.int16:
        return np.maximum.accumulate(np.abs(waveform.astype(np.int32))), FULL_SCALE  # int16 has no +32768
    return np.maximum.accumulate(np.fmax(np.abs(waveform), 0)), 1  # NaN is silent
