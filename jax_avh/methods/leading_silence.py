"""The shortcut itself: how long a clip stays silent at its start, or how quiet its first moment is.

Source: AVH-Align, section 3: fakes of several data sets start with some 30 ms of digital silence.
"""

from typing import Any

from avh_shards import leading_silence
from avh_shards.clip import SAMPLE_RATE
from avh_shards.silence import START, leading_amplitude
from jax_avh.data.source import Source
from jax_avh.methods.base import ClipMethod, Reference


def _duration(source: Source, clip: int) -> float:
    silence = leading_silence(source.waveform(clip, 0, SAMPLE_RATE))
    return silence if silence < 1 else leading_silence(source.waveform(clip))


def _quietness(source: Source, clip: int) -> float:
    return -leading_amplitude(source.waveform(clip, 0, round(START * SAMPLE_RATE)))


_AUDIT: dict[str, Any] = {
    "reference": Reference("AVH-Align, Smeu et al., CVPR 2025, section 3"),
    "reads": ("waveform",),
}
DURATION = ClipMethod(name="leading_silence", score=_duration, **_AUDIT)
AMPLITUDE = ClipMethod(name="leading_amplitude", score=_quietness, **_AUDIT)
