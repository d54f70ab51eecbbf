"""Features outside the devices: each batch comes from the shards, or from host memory, when its turn is."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
from jax.sharding import Mesh

from jax_avh.data import FeatureSource, FrameBatches, prefetched
from jax_avh.data.batches import Plan
from jax_avh.data.examples import ExampleBatches
from jax_avh.parallel import put_parts
from jax_avh.training.trainer import Batch

Batches = FrameBatches | ExampleBatches


class StreamedSegment(NamedTuple):
    """One step."""

    items: Batch  # a chunk for each device

    steps = 1

    def batch(self, index: jax.Array) -> Batch:
        """The batch of the step."""
        del index  # there is but one
        return self.items


class StreamedPass(NamedTuple):
    """A pass over a source, a batch at a time, read ahead in the background."""

    batches: Batches
    mesh: Mesh

    @property
    def plan(self) -> Plan:
        """What each step takes."""
        return self.batches.plan

    def segments(self, first: int = 0) -> Iterator[tuple[int, StreamedSegment]]:
        """(steps done after it, segment) from step `first` on."""
        for done, batch in enumerate(prefetched(self.batches, first), start=first + 1):
            yield done, StreamedSegment(put_parts(self.mesh, batch))


class Streamed:
    """Passes over a source."""

    def __init__(self, source: FeatureSource, batches: Callable[[tuple[int, int] | None], Batches], mesh: Mesh):
        self.source, self.mesh = source, mesh
        self._batches = batches  # of a pass, in an order drawn by (seed, epoch)

    def one_pass(self, shuffle_seed: tuple[int, int] | None) -> StreamedPass:
        """A pass, in the order of (seed, epoch); None = the source's own."""
        return StreamedPass(self._batches(shuffle_seed), self.mesh)
