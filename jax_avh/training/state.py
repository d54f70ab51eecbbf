"""What a training run carries from step to step, and the rules that end it or cut its learning rate."""

import dataclasses
import functools
import math
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from jax_avh.config import Config
from jax_avh.methods import METHODS, Training
from jax_avh.models import FrameBatch
from jax_avh.training.sharding import DATA_AXIS, on_own_part

PLATEAU_THRESHOLD = 1e-4  # relative improvement that counts for the plateau rule; PyTorch's default
SMALLEST_CUT = 1e-8  # of the learning rate; PyTorch leaves out smaller ones
DECAYS = 0.9, 0.999  # of Adam's two moments
EPSILON = 1e-8  # Adam's


@runtime_checkable
class Segment(Protocol):
    """Consecutive steps that run in one compiled loop."""

    steps: int

    def batch(self, index: jax.Array) -> FrameBatch:
        """The batch of a step, counted from the segment's first, a chunk for each device."""


def halo(config: Config) -> int:
    """Audio frames on each side of a visual frame that training needs."""
    return 0 if METHODS[config.method.name].training.whole_clips else config.model.tau


class TrainState(NamedTuple):
    """Arrays on the devices."""

    params: nnx.State
    adam: optax.ScaleByAdamState


def init_state(network: nnx.Module) -> TrainState:
    """The state before the first step."""
    params = nnx.state(network)
    return TrainState(params, optax.scale_by_adam().init(params))


def adam_direction(gradient: nnx.State, adam: optax.ScaleByAdamState) -> tuple[nnx.State, optax.ScaleByAdamState]:
    """What a step of Adam subtracts, per unit of learning rate, and its new state.

    As optax's, but for the bias correction: 1 - 0.999**n, taken in float32, is 1e-5 off in the first steps, which moved
    the losses of supervised training by 1e-3 within twenty steps.
    """
    count = adam.count + 1
    moments = [
        jax.tree.map(lambda m, g, decay=decay, order=order: decay * m + (1 - decay) * g**order, moment, gradient)
        for order, (decay, moment) in enumerate(zip(DECAYS, (adam.mu, adam.nu), strict=True), start=1)
    ]

    def direction(mean: jax.Array, square: jax.Array) -> jax.Array:
        corrections = (-jnp.expm1(count.astype(mean.dtype) * math.log(decay)) for decay in DECAYS)
        mean, square = (moment / correction for moment, correction in zip((mean, square), corrections, strict=True))
        return mean / (jnp.sqrt(square) + EPSILON)

    return jax.tree.map(direction, *moments), optax.ScaleByAdamState(count, *moments)


@dataclasses.dataclass(frozen=True, eq=False)  # compiled once for each
class Trainer:
    """What the compiled steps of a run have in common."""

    graph: nnx.GraphDef
    config: Config
    mesh: Mesh

    @property
    def training(self) -> Training:
        """How the run's method learns."""
        return METHODS[self.config.method.name].training

    def loss(self, params: nnx.State, batch: FrameBatch) -> Float[Array, ""]:
        """Sum of a batch's losses, in nats. Not the mean: a short last batch shall weigh as its items do."""

        def own_values(params: nnx.State, chunks: FrameBatch) -> Float[Array, " T"]:
            # Each device works on its own copy, so that gradients are summed over the devices once, at the very end.
            params = jax.tree.map(lambda p: jax.lax.pcast(p, DATA_AXIS, to="varying"), params)
            chunk = jax.tree.map(lambda array: array[0], chunks)  # a device has one
            return self.training.frame_values(nnx.merge(self.graph, params), chunk, self.config.model)

        values = on_own_part(self.mesh, own_values)(params, batch)
        frames = batch.visual.shape[1]
        clip = batch.clip[:, self.tau : self.tau + frames]
        return self.training.loss(values, *(array.reshape(-1) for array in (clip, batch.label, batch.weight)))

    @property
    def tau(self) -> int:
        """Audio frames on each side of a batch's chunks."""
        return halo(self.config)

    def step(
        self, state: TrainState, batch: FrameBatch, learning_rate: Float[Array, ""]
    ) -> tuple[TrainState, Float[Array, ""]]:
        """One Adam step; returns the new state and the batch's loss before it."""
        loss, gradient = jax.value_and_grad(self.loss)(state.params, batch)
        direction, adam = adam_direction(gradient, state.adam)
        params = jax.tree.map(lambda p, d: p - learning_rate * d, state.params, direction)
        return TrainState(params, adam), loss

    @functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
    def train(
        self, state: TrainState, segment: Segment, learning_rate: Float[Array, ""]
    ) -> tuple[TrainState, Float[Array, " steps"]]:
        """The steps of a segment, in one compiled loop; returns the new state and each batch's loss before its step."""

        def step(state: TrainState, index: Int[Array, ""]) -> tuple[TrainState, Float[Array, ""]]:
            return self.step(state, segment.batch(index), learning_rate)

        return jax.lax.scan(step, state, jnp.arange(segment.steps, dtype=jnp.int32))

    @functools.partial(jax.jit, static_argnums=0)
    def losses(self, params: nnx.State, segment: Segment) -> Float[Array, " steps"]:
        """Each batch's loss, without training."""
        indices = jnp.arange(segment.steps, dtype=jnp.int32)
        return jax.lax.map(lambda index: self.loss(params, segment.batch(index)), indices)


@dataclasses.dataclass(frozen=True)
class Progress:
    """Where a run stands: plain numbers, saved with the arrays."""

    epoch: int  # completed epochs
    step: int  # completed steps of the epoch under way
    loss_sum: float  # over the frames of those steps
    learning_rate: float
    best_loss: float = math.inf  # lowest validation loss so far
    stale_epochs: int = 0  # since then
    plateau_best: float = math.inf  # validation loss that the plateau rule compares with
    plateau_epochs: int = 0  # without a relative improvement on it

    def after_epoch(self, loss: float, config: Config) -> "Progress":
        """The standing after an epoch with this validation loss.

        The rate is cut on the epoch after `plateau_patience` without a relative improvement of 1e-4; the best epoch is
        the one with the strictly lowest loss.
        """
        better, improved = loss < self.best_loss, loss < self.plateau_best * (1 - PLATEAU_THRESHOLD)
        plateau_epochs = 0 if improved else self.plateau_epochs + 1
        rate = self.learning_rate
        if plateau_epochs > config.optimizer.plateau_patience:
            plateau_epochs = 0
            cut = rate * config.optimizer.plateau_factor
            rate = cut if rate - cut > SMALLEST_CUT else rate
        return Progress(
            epoch=self.epoch + 1,
            step=0,
            loss_sum=0.0,
            learning_rate=rate,
            best_loss=min(loss, self.best_loss),
            stale_epochs=0 if better else self.stale_epochs + 1,
            plateau_best=loss if improved else self.plateau_best,
            plateau_epochs=plateau_epochs,
        )

    def finished(self, config: Config) -> bool:
        """Whether no epoch follows."""
        return self.epoch >= config.train.epochs or self.stale_epochs >= config.train.early_stop
