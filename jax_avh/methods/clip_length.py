"""The length of a clip as its score: an audit of what a data set, or a pooling that grows with the length, leaks."""

from avh_shards import FRAME_RATE
from jax_avh.data.source import FeatureSource
from jax_avh.methods.interface import ClipMethod


def score(source: FeatureSource, clip: int) -> float:
    """Seconds of a clip."""
    return float(source.lengths[clip]) / FRAME_RATE


METHOD = ClipMethod("clip_length", score)
