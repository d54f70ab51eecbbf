"""The optimiser, as an optax chain without a learning rate, and the cosine schedule of the rate.

The other schedule cuts the rate when the validation loss stops improving; it needs that loss: see RunProgress.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jax_avh.config import OptimizerConfig

ADAM_DECAYS = 0.9, 0.999  # decay rates of Adam's two moments
ADAM_EPSILON = 1e-8  # added to Adam's denominator


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """Returns the optimiser of a run.

    Its updates are those of a learning rate of -1; `train_step` scales them. Exactly one part of the chain holds
    arrays, among them the count of steps; checkpoints rely on that.
    """
    return _make_optimizer(config.name, config.weight_decay, config.clip_norm)


@functools.cache  # the same for equal settings, which then share programs
def _make_optimizer(name: str, weight_decay: float, clip_norm: float) -> optax.GradientTransformation:
    clip = [optax.clip_by_global_norm(clip_norm)] if clip_norm else []
    decay = [optax.add_decayed_weights(weight_decay)] if weight_decay else []
    return {
        "adam": optax.chain(*clip, *decay, scale_by_exact_adam()),  # decay is added to the gradient, as in PyTorch
        "adamw": optax.chain(*clip, scale_by_exact_adam(), *decay),
        "lion": optax.chain(*clip, optax.scale_by_lion(), *decay),
        "sgd": optax.chain(*clip, *decay, optax.scale_by_schedule(optax.constant_schedule(1.0))),  # counts the steps
    }[name]


def scale_by_exact_adam() -> optax.GradientTransformation:
    """Returns Adam as a gradient transformation with exact bias correction.

    optax's own computes 1 - 0.999**n in float32, which is 1e-5 off in the first steps; that moved the losses of
    supervised training by 1e-3 within twenty steps.
    """

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, optax.ScaleByAdamState]:
        count = state.count + 1
        mean = jax.tree.map(lambda m, g: ADAM_DECAYS[0] * m + (1 - ADAM_DECAYS[0]) * g, state.mu, updates)
        square = jax.tree.map(lambda m, g: ADAM_DECAYS[1] * m + (1 - ADAM_DECAYS[1]) * g**2, state.nu, updates)

        def direction(mean: jax.Array, square: jax.Array) -> jax.Array:
            corrections = [-jnp.expm1(count.astype(mean.dtype) * math.log(decay)) for decay in ADAM_DECAYS]
            return mean / corrections[0] / (jnp.sqrt(square / corrections[1]) + ADAM_EPSILON)

        return jax.tree.map(direction, mean, square), optax.ScaleByAdamState(count, mean, square)

    return optax.GradientTransformation(optax.scale_by_adam().init, update)


def cosine_rate(config: OptimizerConfig, epochs: int, epoch: int) -> float:
    """Returns the learning rate of an epoch: a linear warm-up, then half a cosine that reaches 0 after the last epoch.

    Args:
      config: the optimiser's settings.
      epochs: epochs of the run.
      epoch: the epoch, counted from 0.
    """
    rate, warmup = config.learning_rate, config.warmup_epochs
    schedule = optax.cosine_decay_schedule(rate, max(epochs - warmup, 1))
    if warmup:
        rising = optax.linear_schedule(rate / warmup, rate + rate / warmup, warmup)
        schedule = optax.join_schedules([rising, schedule], [warmup])
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):  # float32 would keep only 7 digits of the rate
        return float(np.asarray(schedule(epoch)))
