"""The shortcut itself: how long a clip stays silent at its start, or how quiet its first moment is.

Source: AVH-Align, section 3: fakes of several data sets start with some 30 ms of digital silence.
"""

import numpy as np
from jaxtyping import Float, Int16, Int32

from avh_shards import FULL_SCALE, SAMPLE_RATE, SILENCE
from jax_avh.data.source import FeatureSource
from jax_avh.methods.interface import ClipMethod

START = 0.030  # seconds whose largest |x| tells most


def leading_silence(waveform: Int16[np.ndarray, " S"], threshold: float = SILENCE) -> float:
    """Seconds before the first sample louder than a threshold; the whole length if there is none."""
    return float(leading_silences(waveform, np.array([threshold]))[0])


def leading_amplitude(waveform: Int16[np.ndarray, " S"], seconds: float = START) -> float:
    """Largest |x| of the first moment, in 0..1; of all there is if the clip is shorter."""
    return float(leading_amplitudes(waveform, np.array([seconds]))[0])


def leading_silences(waveform: Int16[np.ndarray, " S"], thresholds: Float[np.ndarray, " K"]) -> Float[np.ndarray, " K"]:
    """Leading silence in seconds at each of many thresholds on |x|, in one look at the samples."""
    loudest = _loudest_so_far(waveform)
    # A power of two: the product is exact, and a sample on the threshold counts as silence.
    return np.searchsorted(loudest, thresholds * FULL_SCALE, side="right") / SAMPLE_RATE


def leading_amplitudes(waveform: Int16[np.ndarray, " S"], deltas: Float[np.ndarray, " K"]) -> Float[np.ndarray, " K"]:
    """Largest |x|, in 0..1, of each of many first moments (seconds), in one look at the samples."""
    counts = np.rint(deltas * SAMPLE_RATE).astype(np.int64)
    loudest = _loudest_so_far(waveform[: counts.max(initial=0)])
    heard = np.concatenate([[0], loudest])  # after so many samples
    return heard[np.minimum(counts, len(loudest))] / FULL_SCALE


def _loudest_so_far(waveform: Int16[np.ndarray, " S"]) -> Int32[np.ndarray, " S"]:
    return np.maximum.accumulate(np.abs(waveform.astype(np.int32)))  # int16 has no +32768


def _duration(source: FeatureSource, clip: int) -> float:
    silence = leading_silence(source.waveform(clip, 0, SAMPLE_RATE))
    return silence if silence < 1 else leading_silence(source.waveform(clip))


def _quietness(source: FeatureSource, clip: int) -> float:
    return -leading_amplitude(source.waveform(clip, 0, round(START * SAMPLE_RATE)))


DURATION = ClipMethod("leading_silence", _duration, needs=("waveform",))
AMPLITUDE = ClipMethod("leading_amplitude", _quietness, needs=("waveform",))
