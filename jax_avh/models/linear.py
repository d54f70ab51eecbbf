"""The linear head: one linear layer on the features, the ablation of the paper's table 5."""

from flax import nnx
from jaxtyping import Array, Float

from jax_avh.models.layers import linear
from jax_avh.models.network import FrameNetwork


class LinearNetwork(FrameNetwork):
    """Scores frames linearly: 2,049 parameters at D = 1024 with both modalities.

    As an alignment network it cannot learn: the visual frame's share is the same for all frames of its window.
    """

    head = "linear"

    def build(self, rngs: nnx.Rngs) -> None:
        """Draws the parameters."""
        self.head_layer = linear(self.width * len(self.features), 1, rngs, self.dtype)

    def first(self, name: str) -> tuple[None, Float[Array, "D 1"], Float[Array, "1"]]:
        """See FrameNetwork; features are laid visual first."""
        start = self.features.index(name) * self.width
        return None, self.head_layer.kernel[...][start : start + self.width], self.head_layer.bias[...]

    def weigh(self, share: Float[Array, "*T 1"]) -> Float[Array, "*T 1"]:
        """A share as it is."""
        return share

    def score(self, weighed: Float[Array, "*T 1"], mean_square: Float[Array, "*T"]) -> Float[Array, "*T"]:
        """The sum of the shares is the score."""
        del mean_square
        return weighed[..., 0]
