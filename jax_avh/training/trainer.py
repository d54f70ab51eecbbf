"""The compiled steps of a run: losses of batches, and Adam on them, many steps in one loop."""

import abc
import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key

from jax_avh.config import Config
from jax_avh.data.examples import ExampleBatch
from jax_avh.methods import METHODS
from jax_avh.models import FrameBatch
from jax_avh.parallel import DATA_AXIS, on_own_part
from jax_avh.training.state import TrainState, adam_direction

Batch = FrameBatch | ExampleBatch


@runtime_checkable
class Segment(Protocol):
    """Consecutive steps that run in one compiled loop."""

    steps: int

    def batch(self, index: jax.Array) -> Batch:
        """The batch of a step, counted from the segment's first, a chunk for each device."""


class Loss(NamedTuple):
    """Of a batch."""

    total: Float[Array, ""]  # sum over its items, in nats
    fixed: nnx.State  # the network's other arrays afterwards: running statistics move


@dataclasses.dataclass(frozen=True)  # equal ones share their compiled programs
class Trainer(abc.ABC):
    """What the compiled steps of a run have in common."""

    graph: nnx.GraphDef
    mesh: Mesh
    method: str
    boundary: str  # of the window
    weight_decay: float
    seed: int  # of dropout

    @classmethod
    def of(cls, config: Config, graph: nnx.GraphDef, mesh: Mesh) -> "Trainer":
        """For a run with these settings."""
        return cls(graph, mesh, config.method.name, config.model.boundary, config.optimizer.weight_decay, config.seed)

    @abc.abstractmethod
    def loss(
        self, params: nnx.State, fixed: nnx.State, batch: Batch, key: Key[Array, ""] | None
    ) -> tuple[Float[Array, ""], Loss]:
        """What a step lowers, and the batch's loss. Without a key nothing is learnt: no dropout, fixed statistics."""

    def step(
        self, state: TrainState, batch: Batch, learning_rate: Float[Array, ""]
    ) -> tuple[TrainState, Float[Array, ""]]:
        """One Adam step; returns the new state and the batch's loss before it."""
        key = jax.random.fold_in(jax.random.key(self.seed), state.adam.count)  # a resumed run draws the same
        (_, loss), gradient = jax.value_and_grad(self.loss, has_aux=True)(state.params, state.fixed, batch, key)
        if self.weight_decay:
            gradient = jax.tree.map(lambda g, p: g + self.weight_decay * p, gradient, state.params)
        direction, adam = adam_direction(gradient, state.adam)
        params = jax.tree.map(lambda p, d: p - learning_rate * d, state.params, direction)
        return TrainState(params, loss.fixed, adam), loss.total

    @functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
    def train(
        self, state: TrainState, segment: Segment, learning_rate: Float[Array, ""]
    ) -> tuple[TrainState, Float[Array, " steps"]]:
        """The steps of a segment, in one compiled loop; returns the new state and each batch's loss before its step."""

        def step(state: TrainState, index: Int[Array, ""]) -> tuple[TrainState, Float[Array, ""]]:
            return self.step(state, segment.batch(index), learning_rate)

        return loop(step, state, segment.steps)

    @functools.partial(jax.jit, static_argnums=0)
    def losses(self, state: TrainState, segment: Segment) -> Float[Array, " steps"]:
        """Each batch's loss, without training."""

        def step(_: tuple, index: Int[Array, ""]) -> tuple[tuple, Float[Array, ""]]:
            return (), self.loss(state.params, state.fixed, segment.batch(index), None)[1].total

        return loop(step, (), segment.steps)[1]


def loop(step: Callable, carry: object, steps: int) -> tuple[object, Float[Array, " steps"]]:
    """A scan over the indices of steps. A single one needs no loop, where XLA's convolutions take 7 times as long."""
    if steps == 1:
        carry, result = step(carry, jnp.zeros((), jnp.int32))
        return carry, result[None]
    return jax.lax.scan(step, carry, jnp.arange(steps, dtype=jnp.int32))


class FrameTrainer(Trainer):
    """Of methods on frames. It lowers the sum of losses, not their mean: a short last batch weighs as its items do."""

    def loss(
        self, params: nnx.State, fixed: nnx.State, batch: FrameBatch, key: Key[Array, ""] | None
    ) -> tuple[Float[Array, ""], Loss]:
        """See Trainer."""
        del key
        learns = METHODS[self.method].training

        def own_values(params: nnx.State, chunks: FrameBatch) -> Float[Array, " T"]:
            # Each device works on its own copy, so that gradients are summed over the devices once, at the very end.
            params = jax.tree.map(lambda p: jax.lax.pcast(p, DATA_AXIS, to="varying"), params)
            chunk = jax.tree.map(lambda array: array[0], chunks)  # a device has one
            return learns.frame_values(nnx.merge(self.graph, params, fixed), chunk, self.boundary)

        values = on_own_part(self.mesh, own_values)(params, batch)
        halo = (batch.audio.shape[1] - batch.visual.shape[1]) // 2
        clip = batch.clip[:, halo : halo + batch.visual.shape[1]]
        total = learns.loss(values, *(array.reshape(-1) for array in (clip, batch.label, batch.weight)))
        return total, Loss(total, fixed)


class ExampleTrainer(Trainer):
    """Of methods on examples. It lowers their mean loss; statistics are those of the whole batch, over all devices."""

    def loss(
        self, params: nnx.State, fixed: nnx.State, batch: ExampleBatch, key: Key[Array, ""] | None
    ) -> tuple[Float[Array, ""], Loss]:
        """See Trainer."""
        method = METHODS[self.method]

        def prepared(_: tuple, chunks: dict[str, Array]) -> object:
            return method.prepare({name: chunk[0] for name, chunk in chunks.items()})  # a device has one

        inputs = on_own_part(self.mesh, prepared)((), batch.inputs)
        network = nnx.merge(self.graph, params, fixed, copy=True)  # its statistics move
        label, weight = batch.label.reshape(-1), batch.weight.reshape(-1)
        mean = method.loss(network, inputs, label, weight.astype(network.dtype), key)
        _, _, fixed = nnx.split(network, method.trained, ...)
        return mean, Loss(mean * jnp.sum(weight).astype(mean.dtype), fixed)
