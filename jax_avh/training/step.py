"""Training steps: the state, the objective, and the compiled loop of steps."""

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
    """Arrays of a run, on the devices."""

    params: nnx.State  # trained parameters
    fixed: nnx.State  # the network's other arrays: running statistics, frozen parts
    optimizer: tuple[Any, ...]  # state of each part of the optax chain


def init_state(
    network: nnx.Module, trained: nnx.filterlib.Filter, optimizer: optax.GradientTransformation
) -> tuple[nnx.GraphDef, TrainState]:
    """Splits a network into its graph and the state before the first step.

    Args:
      network: the untrained network.
      trained: selects the parameters to train.
      optimizer: the optimiser, which gets its initial state.
    """
    graph, params, fixed = nnx.split(network, trained, ...)
    return graph, TrainState(params, fixed, cast(tuple, optimizer.init(cast(Any, params))))


@dataclasses.dataclass(frozen=True)  # equal objectives share compiled programs
class Objective:
    """Objective that a run minimises: a method's loss of its network."""

    method: TrainableMethod
    graph: nnx.GraphDef
    mesh: Mesh
    boundary: str  # how the alignment window treats audio frames outside the clip
    seed: int  # seed of dropout

    def __call__(
        self, params: nnx.State, fixed: nnx.State, batch: Batch, key: Key[Array, ""] | None
    ) -> tuple[Float[Array, ""], BatchLoss]:
        """Returns the value to minimise, and the batch's loss; without a key, as in evaluation."""
        return self.method.batch_loss((self.graph, params, fixed), batch, key, self.mesh, self.boundary)


def train_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    batch: Batch,
    learning_rate: Float[Array, ""],
) -> tuple[TrainState, Float[Array, ""]]:
    """Takes one step of the optimiser.

    Args:
      objective: the loss to minimise.
      optimizer: the optimiser, as of `make_optimizer`.
      state: the state before the step.
      batch: the batch on the devices.
      learning_rate: factor on the optimiser's updates.

    Returns:
      The new state, and the loss of the batch before the step.
    """
    count: Any = optax.tree_utils.tree_get(state.optimizer, "count")
    key = jax.random.fold_in(jax.random.key(objective.seed), count)  # a resumed run draws the same numbers
    gradient, loss = jax.grad(objective, has_aux=True)(state.params, state.fixed, batch, key)
    with jax.numpy_dtype_promotion("standard"):  # parts of optax mix dtypes
        updates, optimizer_state = optimizer.update(gradient, state.optimizer, cast(Any, state.params))
        updates = jax.tree.map(lambda update: -learning_rate * update, updates)
        params: Any = optax.apply_updates(cast(Any, state.params), updates)
    return TrainState(params, loss.fixed, cast(tuple, optimizer_state)), loss.total


# The shardings are those of the arrays: parallel.py copies the state to every device, and gives each device one chunk
# of a batch. The old state is donated, so that the new one reuses its memory. The objective and the optimiser are
# constants of the program, so that equal runs share it.
@functools.partial(jax.jit, static_argnames=("objective", "optimizer"), donate_argnames="state")
def train_steps(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    batches: Batches,
    learning_rate: Float[Array, ""],
) -> tuple[TrainState, Float[Array, " steps"]]:
    """Takes a step on each of several batches.

    Args:
      objective: the loss to minimise.
      optimizer: the optimiser, as of `make_optimizer`.
      state: the state before; it is donated, so do not use it afterwards.
      batches: consecutive batches on the devices.
      learning_rate: the rate of all these steps.

    Returns:
      The new state, and the loss of each batch before its step.
    """

    def step(state: TrainState, index: int | Int[Array, ""]) -> tuple[TrainState, Float[Array, ""]]:
        return train_step(objective, optimizer, state, batches[index], learning_rate)

    return _loop(step, state, len(batches))


@functools.partial(jax.jit, static_argnames="objective")
def batch_losses(objective: Objective, state: TrainState, batches: Batches) -> Float[Array, " steps"]:
    """Returns the loss of each of several batches, without training."""

    def step(carry: tuple, index: int | Int[Array, ""]) -> tuple[tuple, Float[Array, ""]]:
        return carry, objective(state.params, state.fixed, batches[index], None)[1].total

    return _loop(step, (), len(batches))[1]


def _loop(step: Callable, carry: Any, steps: int) -> tuple[Any, Float[Array, " steps"]]:
    """Scans over the indices of steps; a single step runs without a loop, in which XLA's convolutions are 7x slower."""
    if steps == 1:
        carry, result = step(carry, 0)
        return carry, result[None]
    return jax.lax.scan(step, carry, jnp.arange(steps, dtype=jnp.int32))
