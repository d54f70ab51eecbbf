"""Layers with PyTorch's arithmetic, training behaviour and initial values, in a given precision.

The batch or frame axis comes first, channels last. Letters: B examples, T frames, C channels, D feature width, J and K
widths of any layer.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.lax import DotAlgorithmPreset, Precision, PrecisionLike
from jax.nn.initializers import variance_scaling
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from avh_shards import UserError
from jax_avh.parallel import target_platform

BATCH_NORM_EPSILON = 1e-5
LAYER_NORM_EPSILON = 1e-5
MOMENTUM = 0.1  # weight of a batch's statistics in the running ones


class Products(NamedTuple):
    """How factors are multiplied: matrices, and kernels of convolutions."""

    dtype: DTypeLike  # of the factors
    precision: Precision = Precision.HIGHEST  # full, for that dtype; by default, accelerators round float32 to less

    @property
    def of_matrices(self) -> PrecisionLike:
        """Precision of products of matrices: on GPUs, TensorFloat-32 by name, as not all kernels use it for "high"."""
        high_on_gpu = self.precision == Precision.HIGH and target_platform() == "gpu"
        return DotAlgorithmPreset.TF32_TF32_F32 if high_on_gpu else self.precision


# Precision -> (dtype of parameters, norms and scores; the products). "High" precision is one pass of TensorFloat-32 on
# an NVIDIA GPU and three of bfloat16 on a TPU; a CPU computes float32.
ARITHMETIC = {
    "float32": (jnp.float32, Products(jnp.float32)),
    "tensorfloat32": (jnp.float32, Products(jnp.float32, Precision.HIGH)),
    "bfloat16_3x": (jnp.float32, Products(jnp.float32, Precision.HIGH)),
    "bfloat16": (jnp.float32, Products(jnp.bfloat16)),
    "float64": (jnp.float64, Products(jnp.float64)),
}
HIGH_PRECISIONS = {"gpu": "tensorfloat32", "tpu": "bfloat16_3x"}  # platform -> what "high" means there

torch_uniform = variance_scaling(1 / 3, "fan_in", "uniform")  # within 1 / sqrt(fan in)


def check_precision(precision: str) -> None:
    """Checks that programs can be compiled in a precision.

    Args:
      precision: a key of ARITHMETIC.

    Raises:
      UserError: JAX or the platform does not have it.
    """
    flag, platform = f"--config.train.precision={precision}", target_platform()
    if precision == "float64" and not jax.config.read("jax_enable_x64"):
        raise UserError(f"{flag}: disabled in JAX; set JAX_ENABLE_X64=1 in the environment")
    others = {name for other, name in HIGH_PRECISIONS.items() if other != platform}
    if platform in HIGH_PRECISIONS and precision in others:
        raise UserError(f"{flag}: a {platform.upper()} does not have it; set {HIGH_PRECISIONS[platform]}")


# --- frames and layer norms ------------------------------------------------------------------------------------------


def normalise(features: Float[Array, "*T D"], dtype: DTypeLike = jnp.float32) -> Float[Array, "*T D"]:
    """Scales each frame to unit length in `dtype`; a zero vector stays zero and has a zero gradient."""
    features = features.astype(dtype)
    return features * inverse_norm(features, dtype)


def inverse_norm(features: Float[Array, "*T D"], dtype: DTypeLike = jnp.float32) -> Float[Array, "*T 1"]:
    """Returns the factor that scales each frame to unit length; 1 for a zero vector."""
    square = jnp.sum(jnp.square(features.astype(dtype)), axis=-1, keepdims=True)
    return jax.lax.rsqrt(jnp.where(square > 0, square, 1))


def centred(layer: nnx.Linear) -> tuple[Float[Array, "J K"], Float[Array, " K"]]:
    """Returns a linear layer's kernel and bias, changed so that the mean is subtracted from its outputs."""
    assert layer.bias is not None
    kernel, bias = layer.kernel[...], layer.bias[...]
    return kernel - jnp.mean(kernel, axis=1, keepdims=True), bias - jnp.mean(bias, keepdims=True)


def normalised_relu(inputs: Float[Array, "*T K"], norm: nnx.LayerNorm) -> Float[Array, "*T K"]:
    """Applies layer norm to inputs of mean 0, then ReLU."""
    assert norm.scale is not None
    assert norm.bias is not None
    mean_square = jnp.mean(jnp.square(inputs), axis=-1, keepdims=True)
    scale, bias = (row(parameter[...], inputs.ndim) for parameter in (norm.scale, norm.bias))
    return nnx.relu(inputs * jax.lax.rsqrt(mean_square + LAYER_NORM_EPSILON) * scale + bias)


def layer_norm(width: int, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32) -> nnx.LayerNorm:
    """Builds a layer norm with PyTorch's epsilon."""
    return nnx.LayerNorm(width, epsilon=LAYER_NORM_EPSILON, use_fast_variance=False, param_dtype=dtype, rngs=rngs)


# --- linear layers ---------------------------------------------------------------------------------------------------


def product(
    inputs: Float[Array, "*T J"], kernel: Float[Array, "J K"], precision: PrecisionLike = Precision.HIGHEST
) -> Float[Array, "*T K"]:
    """Multiplies matrices in their dtype."""
    return jnp.matmul(inputs, kernel, precision=precision)


def cast_product(inputs: Float[Array, "*T J"], kernel: Float[Array, "J K"], products: Products) -> Float[Array, "*T K"]:
    """Multiplies matrices as given and returns the product in the dtype of the inputs."""
    dtype = products.dtype
    if dtype == jnp.bfloat16:
        return _bfloat16_product(inputs, kernel)
    return product(inputs.astype(dtype), kernel.astype(dtype), products.of_matrices).astype(inputs.dtype)


@jax.custom_vjp
def _bfloat16_product(inputs: Float[Array, "*T J"], kernel: Float[Array, "J K"]) -> Float[Array, "*T K"]:
    """Multiplies in bfloat16, but keeps the kernel's gradient in its own dtype, in which devices then add it up."""
    return _bfloat16_forward(inputs, kernel)[0]


def _bfloat16_forward(inputs, kernel):
    factors = inputs.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)
    return product(*factors).astype(inputs.dtype), factors


def _bfloat16_backward(factors, cotangents):
    inputs, kernel = factors
    narrow = cotangents.astype(jnp.bfloat16)
    of_kernel = jnp.matmul(
        inputs.reshape(-1, inputs.shape[-1]).T,
        narrow.reshape(-1, narrow.shape[-1]),
        precision=Precision.HIGHEST,
        preferred_element_type=cotangents.dtype,
    )
    return product(narrow, kernel.T).astype(cotangents.dtype), of_kernel


_bfloat16_product.defvjp(_bfloat16_forward, _bfloat16_backward)


def apply_linear(layer: nnx.Linear, inputs: Float[Array, "*T J"], products: Products) -> Float[Array, "*T K"]:
    """Applies a linear layer whose product is computed as given."""
    outputs = cast_product(inputs, layer.kernel[...], products)
    return outputs if layer.bias is None else outputs + row(layer.bias[...], outputs.ndim)


def linear(inputs: int, outputs: int, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32) -> nnx.Linear:
    """Builds a linear layer with PyTorch's initial values: weights and bias uniform within 1 / sqrt(inputs)."""
    bias_init = uniform_within(1 / math.sqrt(inputs))
    return nnx.Linear(inputs, outputs, kernel_init=torch_uniform, bias_init=bias_init, param_dtype=dtype, rngs=rngs)


def larger(one: Float[Array, "*S"], other: Float[Array, "*S"]) -> Float[Array, "*S"]:
    """Takes the larger of two values elementwise; only that one receives a gradient.

    Ties go to the first, as in PyTorch's poolings. The gradients of jnp.max and jnp.maximum compare the values with
    the result; where XLA recomputes the values and rounds them differently, none is equal, and the gradient is lost or
    infinite.
    """
    return jnp.where((one >= other) | jnp.isnan(one), one, other)


def uniform_within(bound: float) -> nnx.Initializer:
    """Returns an initialiser that draws uniformly from -bound to bound."""
    return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)


def row(bias: Float[Array, " K"], rank: int) -> Float[Array, "... K"]:
    """Reshapes a vector for adding it to every frame without implicit rank promotion."""
    return bias.reshape((1,) * (rank - 1) + (-1,))


# --- batch norm and dropout ------------------------------------------------------------------------------------------


class BatchNorm(nnx.Module):
    """Batch norm over all axes but the last.

    In training it uses the batch's statistics. The running variance is the unbiased one (n / (n - 1)), as in PyTorch;
    flax.nnx.BatchNorm keeps the biased one.
    """

    def __init__(self, channels: int, dtype: DTypeLike = jnp.float32):
        self.scale: nnx.Variable = nnx.Param(jnp.ones(channels, dtype))
        self.bias: nnx.Variable = nnx.Param(jnp.zeros(channels, dtype))
        self.mean = nnx.BatchStat(jnp.zeros(channels, dtype))
        self.var = nnx.BatchStat(jnp.ones(channels, dtype))

    def __call__(self, inputs: Float[Array, "B *S C"], training: bool = False) -> Float[Array, "B *S C"]:
        """Normalises in the dtype of the statistics."""
        inputs = inputs.astype(self.mean.dtype)
        mean, variance = self.observe(inputs) if training else (self.mean[...], self.var[...])
        mean, variance = row(mean, inputs.ndim), row(variance, inputs.ndim)
        return normalise_channels(inputs, mean, variance, self.scale[...], self.bias[...])

    def observe(self, inputs: Float[Array, "B *S C"]) -> tuple[Float[Array, " C"], Float[Array, " C"]]:
        """Updates the running statistics and returns the batch's mean and biased variance."""
        axes = tuple(range(inputs.ndim - 1))
        mean, variance = jnp.mean(inputs, axes), jnp.var(inputs, axes)
        count = inputs.size // inputs.shape[-1]
        unbiased = variance * (count / max(count - 1, 1))
        for kept, seen in ((self.mean, mean), (self.var, unbiased)):
            kept.set_value((1 - MOMENTUM) * kept[...] + MOMENTUM * jax.lax.stop_gradient(seen))
        return mean, variance


def normalise_channels(
    inputs: Float[Array, "*S C"],
    mean: Float[Array, "*M C"],
    variance: Float[Array, "*M C"],
    scale: Float[Array, " C"],
    bias: Float[Array, " C"],
) -> Float[Array, "*S C"]:
    """Subtracts a mean, divides by a standard deviation, then applies a scale and a bias per channel."""
    factor = jax.lax.rsqrt(variance + BATCH_NORM_EPSILON) * row(scale, inputs.ndim)
    return inputs * factor + (row(bias, inputs.ndim) - mean * factor)


def dropout(inputs: Float[Array, "*S"], rate: float, key: Key[Array, ""] | None) -> Float[Array, "*S"]:
    """Zeroes each value with probability `rate` and scales up the rest; without a key, returns the inputs."""
    if key is None:
        return inputs
    kept = jax.random.bernoulli(key, 1 - rate, inputs.shape)
    return jnp.where(kept, inputs / (1 - rate), jnp.zeros((), inputs.dtype))
