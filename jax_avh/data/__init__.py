"""Shards -> sources -> batches -> loaders."""

from jax_avh.data.batches import PADDING, FrameBatch, FrameStream, frame_batches, frame_stream, prefetched
from jax_avh.data.examples import ExampleBatch, Examples
from jax_avh.data.source import Source, open_source

__all__ = [
    "PADDING",
    "ExampleBatch",
    "Examples",
    "FrameBatch",
    "FrameStream",
    "Source",
    "frame_batches",
    "frame_stream",
    "open_source",
    "prefetched",
]
