"""Features outside the devices: each batch comes from the shards, or from host memory, when its turn is."""

from collections.abc import Iterator
from typing import NamedTuple

import jax
from jax.sharding import Mesh

from jax_avh.data import Batching, FeatureSource, FrameBatches, frame_stream, prefetched
from jax_avh.models import FrameBatch
from jax_avh.training.sharding import own_devices, put_parts


class StreamedSegment(NamedTuple):
    """One step."""

    frames: FrameBatch  # a chunk for each device

    steps = 1

    def batch(self, index: jax.Array) -> FrameBatch:
        """The batch of the step."""
        del index  # there is but one
        return self.frames


class Streamed:
    """A source's steps, a batch at a time, read ahead in the background."""

    def __init__(self, source: FeatureSource, batching: Batching, tau: int, mesh: Mesh):
        self.source, self.batching, self.mesh = source, batching, mesh
        self._layout = {"tau": tau, "chunks": mesh.size, "own": own_devices(mesh)}

    def segments(self, shuffle_seed: tuple[int, int] | None, first: int = 0) -> Iterator[tuple[int, StreamedSegment]]:
        """(steps done after it, segment) from step `first` of a pass on."""
        stream = frame_stream(self.source, shuffle_seed)
        batches = FrameBatches(stream, self.batching.plan(stream), **self._layout)
        for done, batch in enumerate(prefetched(batches, first), start=first + 1):
            yield done, StreamedSegment(put_parts(self.mesh, batch))
