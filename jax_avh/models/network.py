"""What all networks on frames share: each modality adds its share to the first layer, the rest scores the sum.

A frame is mapped linearly (by a projection, where there is one, and by the first layer), so a pair of frames costs one
addition. With fixed weights all linear maps of a modality fold into one matrix.

Letters: T frames, D feature width, P projection width, H width of the first layer.
"""

import abc
import math
from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jax_avh.models.layers import DTYPES, inverse_norm, normalise, product, row

# Modality of a network, by its official name -> the features that it takes.
MODALITIES = {"both": ("visual", "audio"), "audio": ("audio",), "video": ("visual",)}


class Folded(NamedTuple):
    """A network's linear maps up to its first layer."""

    kernels: dict[str, Float[Array, "D H"]]  # of each of its features
    bias: Float[Array, " H"]


class FrameNetwork(nnx.Module):
    """Scores frames by their visual features, their audio features, or both.

    A head gives `build`, `first`, `weigh` and `score`.
    """

    def __init__(
        self,
        width: int = 1024,
        *,
        rngs: nnx.Rngs,
        modality: str = "both",
        normalised: bool = True,
        precision: str = "float32",
    ):
        self.width, self.modality, self.normalised, self.precision = width, modality, normalised, precision
        self.build(rngs)

    @property
    def kind(self) -> dict[str, str]:
        """What its weights say of it."""
        return {"head": self.head, "modality": self.modality, "normalised": str(self.normalised).lower()}

    @abc.abstractmethod
    def build(self, rngs: nnx.Rngs) -> None:
        """Draws the parameters."""

    @abc.abstractmethod
    def first(self, name: str) -> tuple[nnx.Linear | None, Float[Array, "P H"], Float[Array, " H"]]:
        """Projection of a feature, if any, its part of the first layer's kernel, and that layer's bias."""

    @abc.abstractmethod
    def weigh(self, share: Float[Array, "*T H"]) -> Float[Array, "*T H"]:
        """What may be done to a share once a frame, not once a pair."""

    @abc.abstractmethod
    def score(self, weighed: Float[Array, "*T H"], mean_square: Float[Array, "*T"]) -> Float[Array, "*T"]:
        """Scores sums of weighed shares; NaN where a feature was NaN or infinite.

        Args:
          weighed: the sums.
          mean_square: of the sums of the same shares, not weighed.
        """

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the features that it takes."""
        return MODALITIES[self.modality]

    @property
    def dtype(self) -> DTypeLike:
        """Of parameters, norms and scores."""
        return DTYPES[self.precision][0]

    def __call__(self, visual: Float[Array, "*T D"], audio: Float[Array, "*T D"]) -> Float[Array, "*T"]:
        """Scores each visual frame with the audio frame of the same index."""
        given = {"visual": visual, "audio": audio}
        return self._score(sum(self.share(name, given[name]) for name in self.features))

    def share(self, name: str, features: Float[Array, "*T D"]) -> Float[Array, "*T H"]:
        """A feature's share of the first layer's pre-activation; the first feature's includes the layer's bias."""
        projection, kernel, layer_bias = self.first(name)
        features = normalise(features, self.dtype) if self.normalised else features.astype(self.dtype)
        if projection is None:
            share = self._product(features, kernel)
        else:
            # Two linear layers in a row: for more frames than a frame is wide, multiplying them first is cheaper.
            if math.prod(features.shape[:-1]) > self.width:
                share = self._product(features, product(projection.kernel[...], kernel))
            else:
                share = self._product(self._product(features, projection.kernel[...]), kernel)
            share = share + row(product(projection.bias[...], kernel), features.ndim)
        return share + row(layer_bias, features.ndim) if name == self.features[0] else share

    def fold(self) -> Folded:
        """The linear maps folded: worth while for weights that stay as they are."""
        kernels, biases = {}, []
        for name in self.features:
            projection, kernel, layer_bias = self.first(name)
            kernels[name] = kernel if projection is None else product(projection.kernel[...], kernel)
            biases += [] if projection is None else [product(projection.bias[...], kernel)]
        return Folded(kernels, sum(biases, layer_bias))

    def score_folded(
        self, folded: Folded, visual: Float[Array, "T D"], audio: Float[Array, "T D"]
    ) -> Float[Array, " T"]:
        """What calling the network gives, with its linear maps folded."""
        given = {"visual": visual, "audio": audio}
        # Frames are scaled after the product, where they are narrower.
        shares = (
            self._product(given[name], kernel) * (inverse_norm(given[name], self.dtype) if self.normalised else 1)
            for name, kernel in folded.kernels.items()
        )
        return self._score(sum(shares, row(folded.bias, 2)))

    def _score(self, pairs: Float[Array, "*T H"]) -> Float[Array, "*T"]:
        return self.score(self.weigh(pairs), jnp.mean(jnp.square(pairs), axis=-1))

    def _product(self, inputs: Float[Array, "*T J"], kernel: Float[Array, "J K"]) -> Float[Array, "*T K"]:
        """A matrix product in the precision asked for."""
        dtype = DTYPES[self.precision][1]
        return product(inputs.astype(dtype), kernel.astype(dtype)).astype(self.dtype)
