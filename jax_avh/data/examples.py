"""Examples: what a network on sound or pictures takes at once, a fixed-size piece of a clip; and batches of them.

Batches are of static shape, the same for any number of devices and processes: B examples in C equal chunks, one a
device. A process reads only the chunks of its own devices. Places beyond the last example have weight 0.
"""

import abc
import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int, Shaped

from jax_avh.data.batches import Seed, even_borders
from jax_avh.data.source import Source


class ExampleBatch(NamedTuple):
    """B examples; a batch for several devices has a leading axis of chunks."""

    inputs: dict[str, Shaped[Any, "..."]]  # as they are stored; on the host or on the devices
    label: Int[Any, "*chunks B"]  # of the example's clip: 0 real, 1 fake, -1 unknown
    weight: Float[Any, "*chunks B"]  # 1 = an example that counts, 0 = padding


class Examples(abc.ABC):
    """All examples of a source, clip by clip."""

    def __init__(self, source: Source, clip: Int[np.ndarray, " E"]):
        self.source = source
        self.clip = clip  # the clip that each example is of, in rising order

    @abc.abstractmethod
    def read(self, example: int) -> dict[str, np.ndarray]:
        """Reads an example's inputs; the shapes are the same for all."""


@dataclasses.dataclass(frozen=True)
class ExampleBatches(Sequence[ExampleBatch]):
    """The batches of one pass over examples; their arrays have a leading axis of chunks."""

    examples: Examples
    order: Int[np.ndarray, " E"]  # example at each place of the pass
    size: int  # B, of the whole batch; a multiple of `chunks`
    full_only: bool = False  # whether an incomplete last batch is left out
    chunks: int = 1  # C, of the whole batch
    own: range | None = None  # consecutive chunks that this process reads; None = all

    @property
    def border(self) -> Int[np.ndarray, "borders"]:
        """Batch i is the examples order[border[i]:border[i+1]]."""
        count = len(self.order) // self.size * self.size if self.full_only else len(self.order)
        return even_borders(count, self.size)

    @property
    def items(self) -> Int[np.ndarray, " steps"]:
        """Examples of each batch."""
        return np.diff(self.border)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> ExampleBatch:
        if not 0 <= index < len(self):
            raise IndexError(index)
        own = self.own or range(self.chunks)
        part = self.size // self.chunks
        places = np.arange(index * self.size + own.start * part, index * self.size + own.stop * part)
        chosen = self.order[np.minimum(places, len(self.order) - 1)]  # padding repeats an example
        read = [self.examples.read(int(example)) for example in chosen]
        batch = ExampleBatch(
            inputs={name: np.stack([arrays[name] for arrays in read]) for name in read[0]},
            label=self.examples.source.labels[self.examples.clip[chosen]].astype(np.int32),
            weight=(places < len(self.order)).astype(np.float32),
        )
        return jax.tree.map(lambda array: array.reshape(len(own), part, *array.shape[1:]), batch)


def example_order(examples: Examples, seed: Seed | None = None) -> Int[np.ndarray, " E"]:
    """Returns an order of the examples: a function of (seed, epoch); their own order without one."""
    count = len(examples.clip)
    return np.arange(count) if seed is None else np.random.default_rng(seed).permutation(count)
