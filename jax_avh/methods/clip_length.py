"""The length of a clip as its score: an audit of what a data set, or a pooling that grows with the length, leaks."""

from avh_shards.clip import FRAME_RATE
from jax_avh.data.source import Source
from jax_avh.methods.base import ClipMethod, Reference


def seconds(source: Source, clip: int) -> float:
    """Seconds of a clip."""
    return float(source.lengths[clip]) / FRAME_RATE


METHOD = ClipMethod(name="clip_length", reference=Reference("an audit of ours"), score=seconds)
