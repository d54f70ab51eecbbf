"""What a training run carries from step to step, and the rules that end it or cut its learning rate."""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from jax_avh.config import Config
from jax_avh.methods import avh_align
from jax_avh.models import FrameBatch

PLATEAU_THRESHOLD = 1e-4  # relative improvement that counts for the plateau rule; PyTorch's default
SMALLEST_CUT = 1e-8  # of the learning rate; PyTorch leaves out smaller ones
ADAM = optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-8)


class TrainState(NamedTuple):
    """Arrays on the devices."""

    params: nnx.State
    adam: optax.ScaleByAdamState


def init_state(network: nnx.Module) -> TrainState:
    """The state before the first step."""
    params = nnx.state(network)
    return TrainState(params, ADAM.init(params))


def total_loss(graph: nnx.GraphDef, config: Config, params: nnx.State, batch: FrameBatch) -> jax.Array:
    """Sum of a batch's frame losses, in nats. A sum, not a mean, so that a short last batch weighs as its frames do."""
    losses = avh_align.frame_losses(nnx.merge(graph, params), batch, config.model)
    return jnp.sum(losses * batch.weight)


def train_step(
    graph: nnx.GraphDef, config: Config, state: TrainState, batch: FrameBatch, learning_rate: jax.Array
) -> tuple[TrainState, jax.Array]:
    """One Adam step; returns the new state and the batch's loss before it."""
    loss, gradient = jax.value_and_grad(total_loss, argnums=2)(graph, config, state.params, batch)
    with jax.numpy_dtype_promotion("standard"):  # optax mixes weak types
        direction, adam = ADAM.update(gradient, state.adam)
    params = jax.tree.map(lambda p, d: p - learning_rate * d, state.params, direction)
    return TrainState(params, adam), loss


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
