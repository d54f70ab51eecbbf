"""Examples: what a network on sound or pictures takes at once, a fixed-size piece of a clip; and batches of them.

Batches are of static shape, the same for any number of devices and processes: B examples in C equal chunks, one a
device. A process reads only the chunks of its own devices. Places beyond the last example have weight 0.
"""

import abc
import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from jax_avh.data.batches import Plan, even_plan
from jax_avh.data.source import FeatureSource


class ExampleBatch(NamedTuple):
    """B examples, or chunks of them along a leading axis."""

    inputs: dict[str, Array]  # [B, ...] each, as they are stored
    label: Int[Array, " B"]  # of the example's clip: 0 real, 1 fake, -1 unknown
    weight: Float[Array, " B"]  # 1 = an example that counts, 0 = padding


class Examples(abc.ABC):
    """All examples of a source, clip by clip."""

    def __init__(self, source: FeatureSource, clip: Int[np.ndarray, " E"]):
        self.source, self.clip = source, clip  # the clip that each example is of, in rising order

    @abc.abstractmethod
    def read(self, example: int) -> dict[str, np.ndarray]:
        """An example's inputs; the shapes are the same for all."""


@dataclasses.dataclass(frozen=True)
class ExampleBatches(Sequence):
    """The batches of one pass over examples; their arrays have a leading axis of chunks."""

    examples: Examples
    order: Int[np.ndarray, " E"]
    size: int  # B, of the whole batch; a multiple of `chunks`
    full_only: bool = False  # whether an incomplete last batch is left out
    chunks: int = 1  # C, of the whole batch
    own: range | None = None  # consecutive chunks that this process reads; None = all

    @functools.cached_property
    def plan(self) -> Plan:
        """Which examples make each batch."""
        count = len(self.order) // self.size * self.size if self.full_only else len(self.order)
        return even_plan(count, self.size)

    @property
    def source(self) -> FeatureSource:
        """Whose examples they are."""
        return self.examples.source

    def __len__(self) -> int:
        return len(self.plan.items)

    def __getitem__(self, index: int) -> ExampleBatch:
        if not 0 <= index < len(self):
            raise IndexError(index)
        own, part = self.own or range(self.chunks), self.size // self.chunks
        places = np.arange(index * self.size + own.start * part, index * self.size + own.stop * part)
        there = places < len(self.order)
        chosen = self.order[np.minimum(places, len(self.order) - 1)]  # padding repeats an example
        read = [self.examples.read(int(example)) for example in chosen]
        batch = ExampleBatch(
            inputs={name: np.stack([arrays[name] for arrays in read]) for name in read[0]},
            label=self.source.labels[self.examples.clip[chosen]].astype(np.int32),
            weight=there.astype(np.float32),
        )
        return jax.tree.map(lambda array: array.reshape(len(own), part, *array.shape[1:]), batch)


def shuffled(examples: Examples, seed: tuple[int, int] | None = None) -> Int[np.ndarray, " E"]:
    """An order of the examples: a function of (seed, epoch); their own order without one."""
    count = len(examples.clip)
    return np.arange(count) if seed is None else np.random.default_rng(seed).permutation(count)
