"""The alignment network: does this visual frame belong to this audio frame?

Each modality is normalised and projected; an MLP scores the pair. Exact algebra saves most of the arithmetic:

- All that comes before the MLP's first layer norm is linear, so each frame needs its pre-activation once, and a pair
  costs one addition instead of three matrix products (6.7 instead of 54 M multiply-adds a frame at a window of 31).
- A layer norm takes the mean off what a linear layer gives. Taking it off the layer's weights comes to the same, once
  for all pairs; what is left to do for a pair is the division by the root mean square.
- That of the first layer norm follows from the two frames' own mean squares and their inner product
  (windows.mean_squares), and its scale is applied to frames, not to pairs.

Source: AVH-Align, section 4. Letters: T frames, P projection width, H hidden width of the first layer.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jax_avh.models.layers import LAYER_NORM_EPSILON, centred, layer_norm, linear, normalised_relu, product, row
from jax_avh.models.network import FrameNetwork

PROJECTION_WIDTH = 512  # of each of two modalities; one alone has twice that
HIDDEN_WIDTHS = (512, 256, 128)


class AlignmentNetwork(FrameNetwork):
    """Scores pairs of a visual and an audio frame; higher = they belong together. 1,740,545 parameters at D = 1024.

    With one modality it is the network of AVH-Align/sup's ablations, which scores the frames of that one alone.
    """

    head = "mlp"

    def build(self, rngs: nnx.Rngs) -> None:
        """Draws the parameters."""
        if self.modality == "both":
            self.visual_proj = linear(self.width, PROJECTION_WIDTH, rngs, self.dtype)
            self.audio_proj = linear(self.width, PROJECTION_WIDTH, rngs, self.dtype)
        else:
            self.proj = linear(self.width, 2 * PROJECTION_WIDTH, rngs, self.dtype)
        layers, inputs = [], 2 * PROJECTION_WIDTH
        for hidden in HIDDEN_WIDTHS:
            layers += [linear(inputs, hidden, rngs, self.dtype), layer_norm(hidden, rngs, self.dtype), nnx.relu]
            inputs = hidden
        self.mlp = nnx.Sequential(*layers, linear(inputs, 1, rngs, self.dtype))

    def first(self, name: str) -> tuple[nnx.Linear, Float[Array, "P H"], Float[Array, " H"]]:
        """See FrameNetwork; the first layer's outputs have mean 0."""
        kernel, bias = centred(self.mlp.layers[0])
        if self.modality != "both":
            return self.proj, kernel, bias
        if name == "visual":
            return self.visual_proj, kernel[:PROJECTION_WIDTH], bias
        return self.audio_proj, kernel[PROJECTION_WIDTH:], bias

    def weigh(self, share: Float[Array, "*T H"]) -> Float[Array, "*T H"]:
        """A share times the first layer norm's scale."""
        return share * row(self.mlp.layers[1].scale[...], share.ndim)

    def score(self, weighed: Float[Array, "*T H"], mean_square: Float[Array, "*T"]) -> Float[Array, "*T"]:
        """See FrameNetwork."""
        first, *norms = self.mlp.layers[1::3]
        scale = jax.lax.rsqrt(jnp.maximum(mean_square, 0) + LAYER_NORM_EPSILON)[..., None]
        hidden = nnx.relu(weighed * scale + row(first.bias[...], weighed.ndim))
        for layer, norm in zip(self.mlp.layers[3:-1:3], norms, strict=True):
            kernel, bias = centred(layer)
            hidden = normalised_relu(self._product(hidden, kernel) + row(bias, hidden.ndim), norm)
        last = self.mlp.layers[-1]
        scores = product(hidden, last.kernel[...]) + row(last.bias[...], hidden.ndim)
        return jnp.where(jnp.isfinite(mean_square), scores[..., 0], jnp.nan)  # a maximum with 0 may hide NaN
