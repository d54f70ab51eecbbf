"""Shards -> frame stream -> batches; and simulated corpora."""

from jax_avh.data.batches import Batching, FrameBatches, prefetched
from jax_avh.data.simulate import Corpus, simulate_corpus
from jax_avh.data.source import FeatureSource, open_source
from jax_avh.data.stream import FrameStream, frame_stream

__all__ = [
    "Batching",
    "Corpus",
    "FeatureSource",
    "FrameBatches",
    "FrameStream",
    "frame_stream",
    "open_source",
    "prefetched",
    "simulate_corpus",
]
