"""Layers and the arithmetic between them, in the precision asked for.

Letters: T frames, D feature width, J and K widths of any layer.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import variance_scaling
from jax.typing import DTypeLike
from jaxtyping import Array, Float

LAYER_NORM_EPSILON = 1e-5

# Precision -> dtype of parameters, norms and scores; dtype of the products.
DTYPES = {
    "float32": (jnp.float32, jnp.float32),
    "bfloat16": (jnp.float32, jnp.bfloat16),
    "float64": (jnp.float64, jnp.float64),
}


def normalise(features: Float[Array, "*T D"], dtype: DTypeLike = jnp.float32) -> Float[Array, "*T D"]:
    """Scales each frame to unit length, in `dtype`; a zero vector stays zero, and its gradient is zero."""
    features = features.astype(dtype)
    return features * inverse_norm(features, dtype)


def inverse_norm(features: Float[Array, "*T D"], dtype: DTypeLike = jnp.float32) -> Float[Array, "*T 1"]:
    """What scales each frame to unit length; 1 for a zero vector."""
    square = jnp.sum(jnp.square(features.astype(dtype)), axis=-1, keepdims=True)
    return jax.lax.rsqrt(jnp.where(square > 0, square, 1))


def centred(layer: nnx.Linear) -> tuple[Float[Array, "J K"], Float[Array, " K"]]:
    """Kernel and bias of a linear layer whose outputs have mean 0: its own outputs less their mean."""
    kernel, bias = layer.kernel[...], layer.bias[...]
    return kernel - jnp.mean(kernel, axis=1, keepdims=True), bias - jnp.mean(bias, keepdims=True)


def normalised_relu(inputs: Float[Array, "*T K"], norm: nnx.LayerNorm) -> Float[Array, "*T K"]:
    """Layer norm of inputs of mean 0, and ReLU."""
    mean_square = jnp.mean(jnp.square(inputs), axis=-1, keepdims=True)
    scale, bias = (row(parameter[...], inputs.ndim) for parameter in (norm.scale, norm.bias))
    return nnx.relu(inputs * jax.lax.rsqrt(mean_square + LAYER_NORM_EPSILON) * scale + bias)


def product(inputs: Float[Array, "*T J"], kernel: Float[Array, "J K"]) -> Float[Array, "*T K"]:
    """A matrix product that is as exact as its dtype: accelerators would round float32 to less."""
    return jnp.matmul(inputs, kernel, precision=jax.lax.Precision.HIGHEST)


def cast_product(inputs: Float[Array, "*T J"], kernel: Float[Array, "J K"], dtype: DTypeLike) -> Float[Array, "*T K"]:
    """A product taken in another dtype than the inputs', and given back in theirs."""
    return product(inputs.astype(dtype), kernel.astype(dtype)).astype(inputs.dtype)


def apply_linear(layer: nnx.Linear, inputs: Float[Array, "*T J"], dtype: DTypeLike) -> Float[Array, "*T K"]:
    """What a linear layer gives, its product taken in another dtype."""
    outputs = cast_product(inputs, layer.kernel[...], dtype)
    return outputs if layer.bias is None else outputs + row(layer.bias[...], outputs.ndim)


def linear(inputs: int, outputs: int, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32) -> nnx.Linear:
    """A linear layer, its weights drawn as PyTorch draws them: uniform within 1 / sqrt(inputs), biases too."""
    bound = 1 / math.sqrt(inputs)

    def bias_init(key, shape, dtype):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    kernel_init = variance_scaling(1 / 3, "fan_in", "uniform")
    return nnx.Linear(inputs, outputs, kernel_init=kernel_init, bias_init=bias_init, param_dtype=dtype, rngs=rngs)


def layer_norm(width: int, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32) -> nnx.LayerNorm:
    """Layer norm with PyTorch's epsilon."""
    return nnx.LayerNorm(width, epsilon=LAYER_NORM_EPSILON, use_fast_variance=False, param_dtype=dtype, rngs=rngs)


def row(bias: Float[Array, " K"], rank: int) -> Float[Array, "... K"]:
    """A vector shaped to be added to every frame, without implicit promotion of ranks."""
    return bias.reshape((1,) * (rank - 1) + (-1,))
