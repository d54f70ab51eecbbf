"""Shards -> frame stream -> batches."""

from jax_avh.data.batches import Batching, FrameBatches, prefetched
from jax_avh.data.source import FeatureSource, open_source
from jax_avh.data.stream import FrameStream, frame_stream

__all__ = [
    "Batching",
    "FeatureSource",
    "FrameBatches",
    "FrameStream",
    "frame_stream",
    "open_source",
    "prefetched",
]
