"""Networks that score frames: does this visual frame belong to this audio frame?

Each modality is normalised and projected, and a head scores the pair. The head is an MLP (the alignment network) or
one linear layer (the ablation of the paper's table 5). `plain_scores` is the paper's forward pass. Training and
scoring use a rearranged form of the same function, in which exact algebra saves most of the arithmetic:

- Everything before the MLP's first layer norm is linear, so the pre-activation is computed once per frame, and a pair
  costs one addition instead of three matrix products (6.7 instead of 54 M multiply-adds per frame at a window of 31).
  With fixed weights, all linear maps of a modality fold into one matrix.
- A layer norm subtracts the mean of a linear layer's outputs. Centring the layer's weights has the same effect and is
  done once for all pairs; each pair then only needs the division by the root mean square.
- For the first layer norm, the mean square of a pair follows from the mean squares of its two frames and their inner
  product (windows.mean_squares), and the scale is applied to frames, not to pairs.

Source: AVH-Align, section 4. Letters: T frames, D feature width, P projection width, H width of the first layer.
"""

import abc
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jax_avh.models.layers import (
    ARITHMETIC,
    LAYER_NORM_EPSILON,
    Products,
    centred,
    inverse_norm,
    layer_norm,
    linear,
    normalise,
    normalised_relu,
    product,
    row,
)

# Official name of a network's modality -> features that the network takes.
MODALITY_FEATURES = {"both": ("visual", "audio"), "audio": ("audio",), "video": ("visual",)}
PROJECTION_WIDTH = 512  # per modality; a network of one modality uses twice that
HIDDEN_WIDTHS = (512, 256, 128)


class Folded(NamedTuple):
    """A network's linear maps up to and including its first layer, folded into one per feature."""

    kernels: dict[str, Float[Array, "D H"]]  # by feature name
    bias: Float[Array, " H"]


class FrameNetwork(nnx.Module):
    """A network that scores frames by their visual features, their audio features, or both.

    Subclasses implement the head: `build`, `first`, `weigh` and `score`.

    Args:
      width: feature width D.
      rngs: source of the initial parameters.
      modality: a key of MODALITY_FEATURES.
      normalised: whether features are scaled to unit length first.
      precision: a key of layers.ARITHMETIC.
    """

    head: str

    def __init__(
        self,
        width: int = 1024,
        *,
        rngs: nnx.Rngs,
        modality: str = "both",
        normalised: bool = True,
        precision: str = "float32",
    ):
        self.width = width
        self.modality = modality
        self.normalised = normalised
        self.precision = precision
        self.build(rngs)

    @property
    def kind(self) -> dict[str, str]:
        """Description of the network that its weight file records."""
        return {"head": self.head, "modality": self.modality, "normalised": str(self.normalised).lower()}

    @abc.abstractmethod
    def build(self, rngs: nnx.Rngs) -> None:
        """Creates the layers with random parameters."""

    @abc.abstractmethod
    def first(self, name: str) -> tuple[Any, Float[Array, "P H"], Float[Array, " H"]]:
        """Returns a feature's projection (or None), its part of the first layer's kernel, and that layer's bias."""

    @abc.abstractmethod
    def weigh(self, share: Float[Array, "*T H"]) -> Float[Array, "*T H"]:
        """Applies the part of the head that can be applied to a share, once per frame instead of once per pair."""

    @abc.abstractmethod
    def score(self, weighed: Float[Array, "*T H"], mean_square: Float[Array, "*T"]) -> Float[Array, "*T"]:
        """Scores sums of weighed shares; NaN where a feature was NaN or infinite.

        Args:
          weighed: sums of the shares that `weigh` returned.
          mean_square: mean squares of the same sums before weighing.
        """

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the features that the network takes."""
        return MODALITY_FEATURES[self.modality]

    @property
    def dtype(self) -> DTypeLike:
        """Dtype of parameters, norms and scores."""
        return ARITHMETIC[self.precision][0]

    @property
    def products(self) -> Products:
        """How matrices are multiplied."""
        return ARITHMETIC[self.precision][1]

    def __call__(self, visual: Float[Array, "*T D"], audio: Float[Array, "*T D"]) -> Float[Array, "*T"]:
        """Scores each visual frame with the audio frame of the same index.

        Args:
          visual: features of the visual frames, not normalised; unused unless `features` names them.
          audio: features of the audio frames, likewise.

        Returns:
          Scores in `dtype`; NaN where a feature was NaN or infinite.
        """
        given = {"visual": visual, "audio": audio}
        shares = [self.share(name, given[name]) for name in self.features]
        return self._score(functools.reduce(jnp.add, shares))

    def share(self, name: str, features: Float[Array, "*T D"]) -> Float[Array, "*T H"]:
        """Returns a feature's share of the first layer's pre-activation; the first feature's includes the bias.

        Args:
          name: "visual" or "audio".
          features: the frames' features of this name, not normalised.
        """
        projection, kernel, layer_bias = self.first(name)
        features = normalise(features, self.dtype) if self.normalised else features.astype(self.dtype)
        if projection is None:
            share = self._product(features, kernel)
        else:
            # Of two linear layers in a row, folding the kernels first is cheaper for more than `width` frames.
            if math.prod(features.shape[:-1]) > self.width:
                folded = product(projection.kernel[...], kernel, self.products.of_matrices)
                share = self._product(features, folded)
            else:
                share = self._product(self._product(features, projection.kernel[...]), kernel)
            share = share + row(product(projection.bias[...], kernel), features.ndim)
        return share + row(layer_bias, features.ndim) if name == self.features[0] else share

    def fold(self) -> Folded:
        """Folds the linear maps, which pays off when the weights no longer change."""
        kernels = {}
        _, _, bias = self.first(self.features[0])  # the layer's bias, which is the same for every feature
        for name in self.features:
            projection, kernel, _ = self.first(name)
            kernels[name] = kernel if projection is None else product(projection.kernel[...], kernel)
            if projection is not None:
                bias = bias + product(projection.bias[...], kernel)
        return Folded(kernels, bias)

    def score_folded(
        self, folded: Folded, visual: Float[Array, "T D"], audio: Float[Array, "T D"]
    ) -> Float[Array, " T"]:
        """Returns the same scores as `__call__`, computed with folded linear maps.

        Args:
          folded: the network's maps, from `fold`.
          visual: as for `__call__`.
          audio: as for `__call__`.
        """
        given = {"visual": visual, "audio": audio}
        # Scales frames after the product, where they are narrower.
        shares = (
            self._product(given[name], kernel) * (inverse_norm(given[name], self.dtype) if self.normalised else 1)
            for name, kernel in folded.kernels.items()
        )
        return self._score(sum(shares, row(folded.bias, 2)))

    def _score(self, pairs: Float[Array, "*T H"]) -> Float[Array, "*T"]:
        return self.score(self.weigh(pairs), jnp.mean(jnp.square(pairs), axis=-1))

    def _product(self, inputs: Float[Array, "*T J"], kernel: Float[Array, "J K"]) -> Float[Array, "*T K"]:
        """Multiplies matrices in the network's precision."""
        dtype = self.products.dtype
        return product(inputs.astype(dtype), kernel.astype(dtype), self.products.of_matrices).astype(self.dtype)


class AlignmentNetwork(FrameNetwork):
    """Alignment network: scores pairs of a visual and an audio frame; higher = they belong together.

    It has 1,740,545 parameters at D = 1024. With one modality it is the network of AVH-Align/sup's ablations, which
    scores only the frames of that modality.

    Args:
      width: feature width D.
      rngs: source of the initial parameters.
      modality: "both", "audio" or "video".
      normalised: whether features are scaled to unit length first.
      precision: a key of layers.ARITHMETIC.

    References:
      AVH-Align, section 4.
    """

    head = "mlp"

    def build(self, rngs: nnx.Rngs) -> None:
        """See FrameNetwork."""
        if self.modality == "both":
            self.visual_proj = linear(self.width, PROJECTION_WIDTH, rngs, self.dtype)
            self.audio_proj = linear(self.width, PROJECTION_WIDTH, rngs, self.dtype)
        else:
            self.proj = linear(self.width, 2 * PROJECTION_WIDTH, rngs, self.dtype)
        layers = []
        inputs = 2 * PROJECTION_WIDTH
        for hidden in HIDDEN_WIDTHS:
            layers += [linear(inputs, hidden, rngs, self.dtype), layer_norm(hidden, rngs, self.dtype), nnx.relu]
            inputs = hidden
        self.mlp: Any = nnx.Sequential(*layers, linear(inputs, 1, rngs, self.dtype))

    def first(self, name: str) -> tuple[Any, Float[Array, "P H"], Float[Array, " H"]]:
        """See FrameNetwork; the kernel and bias are centred, so that the first layer's outputs have mean 0."""
        kernel, bias = centred(self.mlp.layers[0])
        if self.modality != "both":
            return self.proj, kernel, bias
        if name == "visual":
            return self.visual_proj, kernel[:PROJECTION_WIDTH], bias
        return self.audio_proj, kernel[PROJECTION_WIDTH:], bias

    def weigh(self, share: Float[Array, "*T H"]) -> Float[Array, "*T H"]:
        """Multiplies a share by the first layer norm's scale."""
        return share * row(self.mlp.layers[1].scale[...], share.ndim)

    def score(self, weighed: Float[Array, "*T H"], mean_square: Float[Array, "*T"]) -> Float[Array, "*T"]:
        """See FrameNetwork."""
        first, *norms = self.mlp.layers[1::3]
        scale = jax.lax.rsqrt(nnx.relu(mean_square) + LAYER_NORM_EPSILON)[..., None]
        hidden = nnx.relu(weighed * scale + row(first.bias[...], weighed.ndim))
        for layer, norm in zip(self.mlp.layers[3:-1:3], norms, strict=True):
            kernel, bias = centred(layer)
            hidden = normalised_relu(self._product(hidden, kernel) + row(bias, hidden.ndim), norm)
        last = self.mlp.layers[-1]
        scores = product(hidden, last.kernel[...]) + row(last.bias[...], hidden.ndim)
        return jnp.where(jnp.isfinite(mean_square), scores[..., 0], jnp.nan)  # relu may hide NaN


def plain_scores(
    network: AlignmentNetwork, visual: Float[Array, "T D"], audio: Float[Array, "T D"]
) -> Float[Array, " T"]:
    """Scores pairs of frames layer by layer, as the paper describes: the reference for the fast forward pass.

    Args:
      network: a network of both modalities.
      visual: features of the visual frames.
      audio: features of the audio frames; frame t is paired with visual frame t.
    """
    if network.normalised:
        visual = normalise(visual)
        audio = normalise(audio)
    hidden = jnp.concatenate([network.visual_proj(visual), network.audio_proj(audio)], axis=-1)
    for layer in network.mlp.layers:  # linear, layer norm and ReLU, three times; then linear
        hidden = layer(hidden)
    return hidden[:, 0]


class LinearNetwork(FrameNetwork):
    """A linear network on frames: 2,049 parameters at D = 1024 with both modalities.

    It cannot be trained on the alignment task: a visual frame adds the same share to all scores of its window.
    """

    head = "linear"

    def build(self, rngs: nnx.Rngs) -> None:
        """See FrameNetwork."""
        self.head_layer: Any = linear(self.width * len(self.features), 1, rngs, self.dtype)

    def first(self, name: str) -> tuple[None, Float[Array, "D 1"], Float[Array, "1"]]:
        """See FrameNetwork; the kernel's visual part comes first."""
        start = self.features.index(name) * self.width
        return None, self.head_layer.kernel[...][start : start + self.width], self.head_layer.bias[...]

    def weigh(self, share: Float[Array, "*T 1"]) -> Float[Array, "*T 1"]:
        """Returns a share unchanged."""
        return share

    def score(self, weighed: Float[Array, "*T 1"], mean_square: Float[Array, "*T"]) -> Float[Array, "*T"]:
        """See FrameNetwork; without a norm, the mean square is unused."""
        return weighed[..., 0]


NETWORKS = {network.head: network for network in (AlignmentNetwork, LinearNetwork)}  # by head name
