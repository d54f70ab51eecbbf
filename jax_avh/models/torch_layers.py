"""Layers that compute, learn and start as PyTorch's do: for networks whose released weights come from there.

Axes are the batch first, channels last. Letters: B examples, C channels.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import variance_scaling
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from jax_avh.models.layers import DTYPES, row

BATCH_NORM_EPSILON = 1e-5
MOMENTUM = 0.1  # of a batch's statistics in the running ones

torch_uniform = variance_scaling(1 / 3, "fan_in", "uniform")  # within 1 / sqrt(fan in)
he_normal_by_outputs = variance_scaling(2.0, "fan_out", "normal")


class BatchNorm(nnx.Module):
    """Batch norm over all axes but the last.

    In training it takes the batch's own statistics. What it keeps of the variance is the unbiased one (n / (n - 1)),
    as in PyTorch; flax.nnx.BatchNorm keeps the biased one.
    """

    def __init__(self, channels: int, dtype: DTypeLike = jnp.float32):
        self.scale, self.bias = nnx.Param(jnp.ones(channels, dtype)), nnx.Param(jnp.zeros(channels, dtype))
        self.mean, self.var = nnx.BatchStat(jnp.zeros(channels, dtype)), nnx.BatchStat(jnp.ones(channels, dtype))

    def __call__(self, inputs: Float[Array, "B *S C"], training: bool = False) -> Float[Array, "B *S C"]:
        """Normalises, in the precision of the statistics."""
        inputs = inputs.astype(self.mean.dtype)
        mean, variance = self.observe(inputs) if training else (self.mean[...], self.var[...])
        return scaled(inputs, row(mean, inputs.ndim), row(variance, inputs.ndim), self)

    def observe(self, inputs: Float[Array, "B *S C"]) -> tuple[Float[Array, " C"], Float[Array, " C"]]:
        """The batch's mean and biased variance, which move the running statistics."""
        axes = tuple(range(inputs.ndim - 1))
        mean, variance = jnp.mean(inputs, axes), jnp.var(inputs, axes)
        count = inputs.size // inputs.shape[-1]
        unbiased = variance * (count / max(count - 1, 1))
        for kept, seen in ((self.mean, mean), (self.var, unbiased)):
            kept.set_value((1 - MOMENTUM) * kept[...] + MOMENTUM * jax.lax.stop_gradient(seen))
        return mean, variance


class InstantNorm(nnx.Module):
    """Batch norm without memory: the statistics of the batch at hand, or of each example alone, always."""

    def __init__(self, channels: int, dtype: DTypeLike = jnp.float32):
        self.scale, self.bias = nnx.Param(jnp.ones(channels, dtype)), nnx.Param(jnp.zeros(channels, dtype))

    def __call__(self, inputs: Float[Array, "B *S C"], together: bool) -> Float[Array, "B *S C"]:
        """Normalises over the whole batch, or else over each example."""
        inputs = inputs.astype(self.scale.dtype)
        axes = tuple(range(0 if together else 1, inputs.ndim - 1))
        mean, variance = jnp.mean(inputs, axes, keepdims=True), jnp.var(inputs, axes, keepdims=True)
        return scaled(inputs, mean, variance, self)


def scaled(
    inputs: Float[Array, "*S C"],
    mean: Float[Array, "*M C"],
    variance: Float[Array, "*M C"],
    norm: BatchNorm | InstantNorm,
) -> Float[Array, "*S C"]:
    """Inputs less a mean, over a standard deviation, times the norm's scale plus its bias."""
    scale, bias = (row(parameter[...], inputs.ndim) for parameter in (norm.scale, norm.bias))
    factor = jax.lax.rsqrt(variance + BATCH_NORM_EPSILON) * scale
    return inputs * factor + (bias - mean * factor)


def convolution(
    inputs: int,
    outputs: int,
    kernel: tuple[int, ...],
    rngs: nnx.Rngs,
    *,
    padding: int = 0,
    precision: str = "float32",
) -> nnx.Conv:
    """A convolution over the axes between batch and channels, drawn as PyTorch draws it.

    Args:
      inputs: channels in.
      outputs: channels out.
      kernel: its size along each axis.
      rngs: draws the parameters.
      padding: zeros on both sides of each axis.
      precision: of DTYPES.
    """
    param_dtype, dtype = DTYPES[precision]
    return nnx.Conv(
        inputs,
        outputs,
        kernel,
        padding=((padding, padding),) * len(kernel),  # hashable, as what a compiled step hangs on must be
        kernel_init=torch_uniform,
        bias_init=_like(kernel, inputs),
        param_dtype=param_dtype,
        dtype=dtype,
        precision=jax.lax.Precision.HIGHEST,
        rngs=rngs,
    )


def dropout(inputs: Float[Array, "*S"], rate: float, key: Key[Array, ""] | None) -> Float[Array, "*S"]:
    """Sets each value to zero with a probability and scales the rest up; the inputs as they are without a key."""
    if key is None:
        return inputs
    kept = jax.random.bernoulli(key, 1 - rate, inputs.shape)
    return jnp.where(kept, inputs / (1 - rate), jnp.zeros((), inputs.dtype))


def _like(kernel: tuple[int, ...], inputs: int) -> nnx.Initializer:
    """Draws a bias as a kernel of this size and so many inputs is drawn."""
    fan_in = inputs
    for size in kernel:
        fan_in *= size
    bound = fan_in**-0.5
    return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)
