"""A training step: the state, and the compiled loop of steps."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key

from jax_avh.data.loaders import Batch, Batches
from jax_avh.methods.base import BatchLoss, TrainableMethod


class TrainState(NamedTuple):
    """Arrays on the devices."""

    params: nnx.State  # what is trained
    fixed: nnx.State  # the network's other arrays: running statistics, frozen parts
    optimizer: tuple[Any, ...]  # state of each part of the optax chain


def init_state(
    network: nnx.Module, trained: nnx.filterlib.Filter, optimizer: optax.GradientTransformation
) -> tuple[nnx.GraphDef, TrainState]:
    """Splits a network into what it is apart from its arrays, and the state before the first step."""
    graph, params, fixed = nnx.split(network, trained, ...)
    return graph, TrainState(params, fixed, cast(tuple, optimizer.init(cast(Any, params))))


@dataclasses.dataclass(frozen=True)  # equal ones share their compiled programs
class Objective:
    """What a run lowers: a method's loss of its network."""

    method: TrainableMethod
    graph: nnx.GraphDef
    mesh: Mesh
    boundary: str  # of the alignment window
    seed: int  # of dropout

    def __call__(
        self, params: nnx.State, fixed: nnx.State, batch: Batch, key: Key[Array, ""] | None
    ) -> tuple[Float[Array, ""], BatchLoss]:
        """Returns what a step lowers, and the batch's loss; without a key nothing is trained."""
        return self.method.batch_loss((self.graph, params, fixed), batch, key, self.mesh, self.boundary)


def train_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    batch: Batch,
    learning_rate: Float[Array, ""],
) -> tuple[TrainState, Float[Array, ""]]:
    """Takes one step of the optimiser; returns the new state and the batch's loss before it."""
    count: Any = optax.tree_utils.tree_get(state.optimizer, "count")
    key = jax.random.fold_in(jax.random.key(objective.seed), count)  # a resumed run draws the same
    gradient, loss = jax.grad(objective, has_aux=True)(state.params, state.fixed, batch, key)
    with jax.numpy_dtype_promotion("standard"):  # parts of optax mix dtypes
        updates, optimizer_state = optimizer.update(gradient, state.optimizer, cast(Any, state.params))
        updates = jax.tree.map(lambda update: -learning_rate * update, updates)
        params: Any = optax.apply_updates(cast(Any, state.params), updates)
    return TrainState(params, loss.fixed, cast(tuple, optimizer_state)), loss.total


# The shardings are those of the arrays: parallel.py puts the state on every device, and of a batch a chunk on each. The
# old state is donated, so that its memory holds the new one. The objective and the optimiser are constants of the
# program, so that equal runs share it.
@functools.partial(jax.jit, static_argnames=("objective", "optimizer"), donate_argnames="state")
def train_steps(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    batches: Batches,
    learning_rate: Float[Array, ""],
) -> tuple[TrainState, Float[Array, " steps"]]:
    """Takes a step on each of some batches; returns the new state and each batch's loss before its step."""

    def step(state: TrainState, index: int | Int[Array, ""]) -> tuple[TrainState, Float[Array, ""]]:
        return train_step(objective, optimizer, state, batches[index], learning_rate)

    return _loop(step, state, len(batches))


@functools.partial(jax.jit, static_argnames="objective")
def batch_losses(objective: Objective, state: TrainState, batches: Batches) -> Float[Array, " steps"]:
    """Returns the loss of each of some batches, without training."""

    def step(carry: tuple, index: int | Int[Array, ""]) -> tuple[tuple, Float[Array, ""]]:
        return carry, objective(state.params, state.fixed, batches[index], None)[1].total

    return _loop(step, (), len(batches))[1]


def _loop(step: Callable, carry: Any, steps: int) -> tuple[Any, Float[Array, " steps"]]:
    """Scans over the indices of steps. A single one needs no loop, where XLA's convolutions take 7 times as long."""
    if steps == 1:
        carry, result = step(carry, 0)
        return carry, result[None]
    return jax.lax.scan(step, carry, jnp.arange(steps, dtype=jnp.int32))
