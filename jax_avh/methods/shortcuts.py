"""Shortcuts as scores, without a network: how long a clip is silent at its start, how quiet it begins, how long it is.

A data set whose labels they tell leaks them; the length also exposes poolings that grow with it.

Source: AVH-Align, section 3: fakes of several data sets start with some 30 ms of digital silence.
"""

from avh_shards import leading_silence
from avh_shards.clip import FRAME_RATE, SAMPLE_RATE
from avh_shards.silence import START, leading_amplitude
from jax_avh.data.source import Source
from jax_avh.methods.base import ClipMethod, Reference


def silence_duration(source: Source, clip: int) -> float:
    """Returns the seconds that a clip stays silent at its start."""
    silence = leading_silence(source.waveform(clip, 0, SAMPLE_RATE))
    return silence if silence < 1 else leading_silence(source.waveform(clip))


def quietness(source: Source, clip: int) -> float:
    """Returns minus the largest |x| of a clip's first moment, 0 to 1."""
    return -leading_amplitude(source.waveform(clip, 0, round(START * SAMPLE_RATE)))


def length(source: Source, clip: int) -> float:
    """Returns the seconds of a clip."""
    return float(source.lengths[clip]) / FRAME_RATE


SILENCE_PAPER = Reference("AVH-Align, Smeu et al., CVPR 2025, section 3")
LEADING_SILENCE = ClipMethod(
    name="leading_silence", reference=SILENCE_PAPER, reads=("waveform",), score=silence_duration
)
LEADING_AMPLITUDE = ClipMethod(name="leading_amplitude", reference=SILENCE_PAPER, reads=("waveform",), score=quietness)
CLIP_LENGTH = ClipMethod(name="clip_length", reference=Reference("an audit of ours"), score=length)
