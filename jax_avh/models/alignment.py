"""The alignment network: does this visual frame belong to this audio frame?

Each modality is normalised and projected; an MLP scores the pair. All that comes before the MLP's first layer norm is
linear, so each frame needs its pre-activation once, and a pair costs one addition instead of three matrix products
(6.7 instead of 54 M multiply-adds a frame at a window of 31).

Source: AVH-Align, section 4. Letters: T frames, D feature width, H hidden width of the first layer.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.nn.initializers import variance_scaling
from jaxtyping import Array, Float

PROJECTION_WIDTH = 512
HIDDEN_WIDTHS = (512, 256, 128)
LAYER_NORM_EPSILON = 1e-5


class AlignmentNetwork(nnx.Module):
    """Scores pairs of a visual and an audio frame; higher = they belong together. 1,740,545 parameters at D = 1024."""

    def __init__(self, width: int = 1024, *, rngs: nnx.Rngs):
        self.visual_proj = linear(width, PROJECTION_WIDTH, rngs)
        self.audio_proj = linear(width, PROJECTION_WIDTH, rngs)
        layers, inputs = [], 2 * PROJECTION_WIDTH
        for hidden in HIDDEN_WIDTHS:
            layers += [linear(inputs, hidden, rngs), layer_norm(hidden, rngs), nnx.relu]
            inputs = hidden
        self.mlp = nnx.Sequential(*layers, linear(inputs, 1, rngs))

    @property
    def width(self) -> int:
        """Feature width D."""
        return self.visual_proj.in_features

    def __call__(self, visual: Float[Array, "*T D"], audio: Float[Array, "*T D"]) -> Float[Array, "*T"]:
        """Scores each visual frame with the audio frame of the same index; features need not be normalised."""
        return self.score(self.project_visual(visual) + self.project_audio(audio))

    def project_visual(self, visual: Float[Array, "*T D"]) -> Float[Array, "*T H"]:
        """A visual frame's share of the first layer's pre-activation, the layer's bias included."""
        first = self.mlp.layers[0]
        return self.visual_proj(normalise(visual)) @ first.kernel[:PROJECTION_WIDTH] + _row(
            first.bias[...], visual.ndim
        )

    def project_audio(self, audio: Float[Array, "*T D"]) -> Float[Array, "*T H"]:
        """An audio frame's share of the first layer's pre-activation."""
        return self.audio_proj(normalise(audio)) @ self.mlp.layers[0].kernel[PROJECTION_WIDTH:]

    def score(self, pre_activation: Float[Array, "*T H"]) -> Float[Array, "*T"]:
        """Scores pairs from the sums of their two shares."""
        hidden = pre_activation
        for layer in self.mlp.layers[1:]:
            hidden = layer(hidden)
        return hidden[..., 0]


def normalise(features: Float[Array, "*T D"]) -> Float[Array, "*T D"]:
    """Scales each frame to unit length, in float32; a zero vector stays zero, and its gradient is zero."""
    features = features.astype(np.promote_types(features.dtype, np.float32))
    square = jnp.sum(jnp.square(features), axis=-1, keepdims=True)
    return features * jax.lax.rsqrt(jnp.where(square > 0, square, 1))


def linear(inputs: int, outputs: int, rngs: nnx.Rngs) -> nnx.Linear:
    """A linear layer, its weights drawn as PyTorch draws them: uniform within 1 / sqrt(inputs), biases too."""
    bound = 1 / math.sqrt(inputs)

    def bias_init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    kernel_init = variance_scaling(1 / 3, "fan_in", "uniform")
    return nnx.Linear(inputs, outputs, kernel_init=kernel_init, bias_init=bias_init, rngs=rngs)


def layer_norm(width: int, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """Layer norm with PyTorch's epsilon; the variance is computed from deviations, not from a difference of squares."""
    return nnx.LayerNorm(width, epsilon=LAYER_NORM_EPSILON, use_fast_variance=False, rngs=rngs)


def _row(bias: Float[Array, " H"], rank: int) -> Float[Array, "... H"]:
    """A bias shaped to be added to every frame, without implicit promotion of ranks."""
    return bias.reshape((1,) * (rank - 1) + (-1,))
