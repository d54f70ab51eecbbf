"""What a training run carries from step to step, and the rules that end it or cut its learning rate."""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from jax_avh.config import Config

PLATEAU_THRESHOLD = 1e-4  # relative improvement that counts for the plateau rule; PyTorch's default
SMALLEST_CUT = 1e-8  # of the learning rate; PyTorch leaves out smaller ones
DECAYS = 0.9, 0.999  # of Adam's two moments
EPSILON = 1e-8  # Adam's


class TrainState(NamedTuple):
    """Arrays on the devices."""

    params: nnx.State  # what is trained
    fixed: nnx.State  # the network's other arrays: running statistics, frozen parts
    adam: optax.ScaleByAdamState


def init_state(network: nnx.Module, trained: nnx.filterlib.Filter = nnx.Param) -> tuple[nnx.GraphDef, TrainState]:
    """What a network is apart from its arrays, and the state before the first step."""
    graph, params, fixed = nnx.split(network, trained, ...)
    return graph, TrainState(params, fixed, optax.scale_by_adam().init(params))


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
        if config.optimizer.schedule == "cosine":
            rate = cosine_rate(config, self.epoch + 1)
        elif plateau_epochs > config.optimizer.plateau_patience:
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

    @staticmethod
    def before(config: Config) -> "Progress":
        """The standing before anything has been measured."""
        cosine = config.optimizer.schedule == "cosine"
        rate = cosine_rate(config, 0) if cosine else config.optimizer.learning_rate
        return Progress(epoch=-1, step=0, loss_sum=0.0, learning_rate=rate)

    def finished(self, config: Config) -> bool:
        """Whether no epoch follows."""
        return self.epoch >= config.train.epochs or self.stale_epochs >= config.train.early_stop


def cosine_rate(config: Config, epoch: int) -> float:
    """Learning rate of an epoch, counted from 0: a linear warm-up, then half a cosine, 0 after the last."""
    warmup, rate = config.optimizer.warmup_epochs, config.optimizer.learning_rate
    if epoch < warmup:
        return rate * (epoch + 1) / warmup
    done = (epoch - warmup) / max(config.train.epochs - warmup, 1)
    return rate * (1 + math.cos(math.pi * min(done, 1.0))) / 2
