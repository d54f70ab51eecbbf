"""The alignment network: does this visual frame belong to this audio frame?

Each modality is normalised and projected; an MLP scores the pair. Exact algebra saves most of the arithmetic:

- All that comes before the MLP's first layer norm is linear, so each frame needs its pre-activation once, and a pair
  costs one addition instead of three matrix products (6.7 instead of 54 M multiply-adds a frame at a window of 31).
- A layer norm takes the mean off what a linear layer gives. Taking it off the layer's weights comes to the same, once
  for all pairs; what is left to do for a pair is the division by the root mean square.
- That of the first layer norm follows from the two frames' own mean squares and their inner product
  (windows.mean_squares), and its scale is applied to frames, not to pairs.
- A frame passes two linear layers in a row; from as many frames on as the features are wide, it is cheaper to multiply
  the two matrices first.

Source: AVH-Align, section 4. Letters: T frames, D feature width, P projection width, H hidden width of the first layer,
K width of any layer.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import variance_scaling
from jax.typing import DTypeLike
from jaxtyping import Array, Float

PROJECTION_WIDTH = 512
HIDDEN_WIDTHS = (512, 256, 128)
LAYER_NORM_EPSILON = 1e-5

# Precision -> dtype of parameters, norms and scores; dtype of the products.
DTYPES = {
    "float32": (jnp.float32, jnp.float32),
    "bfloat16": (jnp.float32, jnp.bfloat16),
    "float64": (jnp.float64, jnp.float64),
}


class AlignmentNetwork(nnx.Module):
    """Scores pairs of a visual and an audio frame; higher = they belong together. 1,740,545 parameters at D = 1024."""

    def __init__(self, width: int = 1024, *, rngs: nnx.Rngs, precision: str = "float32"):
        self.precision = precision
        self.visual_proj = linear(width, PROJECTION_WIDTH, rngs, self.dtype)
        self.audio_proj = linear(width, PROJECTION_WIDTH, rngs, self.dtype)
        layers, inputs = [], 2 * PROJECTION_WIDTH
        for hidden in HIDDEN_WIDTHS:
            layers += [linear(inputs, hidden, rngs, self.dtype), layer_norm(hidden, rngs, self.dtype), nnx.relu]
            inputs = hidden
        self.mlp = nnx.Sequential(*layers, linear(inputs, 1, rngs, self.dtype))

    @property
    def width(self) -> int:
        """Feature width D."""
        return self.visual_proj.in_features

    @property
    def dtype(self) -> DTypeLike:
        """Of parameters, norms and scores."""
        return DTYPES[self.precision][0]

    def __call__(self, visual: Float[Array, "*T D"], audio: Float[Array, "*T D"]) -> Float[Array, "*T"]:
        """Scores each visual frame with the audio frame of the same index; features need not be normalised."""
        pairs = self.project_visual(visual) + self.project_audio(audio)
        return self.score(self.weigh(pairs), jnp.mean(jnp.square(pairs), axis=-1))

    def project_visual(self, visual: Float[Array, "*T D"]) -> Float[Array, "*T H"]:
        """A visual frame's share of the first layer's centred pre-activation, the layer's bias included."""
        kernel, bias = centred(self.mlp.layers[0])
        return self._project(self.visual_proj, visual, kernel[:PROJECTION_WIDTH]) + _row(bias, visual.ndim)

    def project_audio(self, audio: Float[Array, "*T D"]) -> Float[Array, "*T H"]:
        """An audio frame's share of the first layer's centred pre-activation."""
        kernel, _ = centred(self.mlp.layers[0])
        return self._project(self.audio_proj, audio, kernel[PROJECTION_WIDTH:])

    def weigh(self, share: Float[Array, "*T H"]) -> Float[Array, "*T H"]:
        """A share times the first layer norm's scale: once a frame, not once a pair."""
        return share * _row(self.mlp.layers[1].scale[...], share.ndim)

    def score(self, weighed: Float[Array, "*T H"], mean_square: Float[Array, "*T"]) -> Float[Array, "*T"]:
        """Scores pairs; NaN where a feature was NaN or infinite.

        Args:
          weighed: the sums of their two weighed shares.
          mean_square: of the sums of their two shares, not weighed.
        """
        first, *norms = self.mlp.layers[1::3]
        scale = jax.lax.rsqrt(jnp.maximum(mean_square, 0) + LAYER_NORM_EPSILON)[..., None]
        hidden = nnx.relu(weighed * scale + _row(first.bias[...], weighed.ndim))
        for layer, norm in zip(self.mlp.layers[3:-1:3], norms, strict=True):
            kernel, bias = centred(layer)
            hidden = normalised_relu(self._product(hidden, kernel) + _row(bias, hidden.ndim), norm)
        last = self.mlp.layers[-1]
        scores = product(hidden, last.kernel[...]) + _row(last.bias[...], hidden.ndim)
        return jnp.where(jnp.isfinite(mean_square), scores[..., 0], jnp.nan)  # a maximum with 0 may hide NaN

    def _project(
        self, projection: nnx.Linear, features: Float[Array, "*T D"], kernel: Float[Array, "P H"]
    ) -> Float[Array, "*T H"]:
        """Both linear layers of a modality, in the cheaper order."""
        unit, bias = normalise(features, self.dtype), product(projection.bias[...], kernel)
        if math.prod(features.shape[:-1]) > self.width:
            projected = self._product(unit, product(projection.kernel[...], kernel))
        else:
            projected = self._product(self._product(unit, projection.kernel[...]), kernel)
        return projected + _row(bias, features.ndim)

    def _product(self, inputs: Float[Array, "*T J"], kernel: Float[Array, "J K"]) -> Float[Array, "*T K"]:
        """A matrix product in the precision asked for."""
        dtype = DTYPES[self.precision][1]
        return product(inputs.astype(dtype), kernel.astype(dtype)).astype(self.dtype)


def normalise(features: Float[Array, "*T D"], dtype: DTypeLike = jnp.float32) -> Float[Array, "*T D"]:
    """Scales each frame to unit length, in `dtype`; a zero vector stays zero, and its gradient is zero."""
    features = features.astype(dtype)
    square = jnp.sum(jnp.square(features), axis=-1, keepdims=True)
    return features * jax.lax.rsqrt(jnp.where(square > 0, square, 1))


def centred(layer: nnx.Linear) -> tuple[Float[Array, "J K"], Float[Array, " K"]]:
    """Kernel and bias of a linear layer whose outputs have mean 0: its own outputs less their mean."""
    kernel, bias = layer.kernel[...], layer.bias[...]
    return kernel - jnp.mean(kernel, axis=1, keepdims=True), bias - jnp.mean(bias, keepdims=True)


def normalised_relu(inputs: Float[Array, "*T K"], norm: nnx.LayerNorm) -> Float[Array, "*T K"]:
    """Layer norm of inputs of mean 0, and ReLU."""
    mean_square = jnp.mean(jnp.square(inputs), axis=-1, keepdims=True)
    scale, bias = (_row(parameter[...], inputs.ndim) for parameter in (norm.scale, norm.bias))
    return nnx.relu(inputs * jax.lax.rsqrt(mean_square + LAYER_NORM_EPSILON) * scale + bias)


def product(inputs: Float[Array, "*T J"], kernel: Float[Array, "J K"]) -> Float[Array, "*T K"]:
    """A matrix product that is as exact as its dtype: accelerators would round float32 to less."""
    return jnp.matmul(inputs, kernel, precision=jax.lax.Precision.HIGHEST)


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


def _row(bias: Float[Array, " K"], rank: int) -> Float[Array, "... K"]:
    """A bias shaped to be added to every frame, without implicit promotion of ranks."""
    return bias.reshape((1,) * (rank - 1) + (-1,))
