"""The shortcut itself: how long a clip stays silent at its start, or how quiet its first moment is.

Source: AVH-Align, section 3: fakes of several data sets start with some 30 ms of digital silence.
"""

from avh_shards import SAMPLE_RATE, leading_silence
from avh_shards.silence import START, leading_amplitude
from jax_avh.data.source import FeatureSource
from jax_avh.methods.interface import ClipMethod


def _duration(source: FeatureSource, clip: int) -> float:
    silence = leading_silence(source.waveform(clip, 0, SAMPLE_RATE))
    return silence if silence < 1 else leading_silence(source.waveform(clip))


def _quietness(source: FeatureSource, clip: int) -> float:
    return -leading_amplitude(source.waveform(clip, 0, round(START * SAMPLE_RATE)))


DURATION = ClipMethod("leading_silence", _duration, needs=("waveform",))
AMPLITUDE = ClipMethod("leading_amplitude", _quietness, needs=("waveform",))
