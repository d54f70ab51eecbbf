"""MDS: one second of frames and of cepstra to an embedding each, which lie near each other in real videos.

Its parameters have the official names, part by part of the modules' tree.

Source: MDS (Chugh et al., "Not made for each other: audio-visual dissonance-based deepfake detection and localization",
ACM MM 2020), as the released program computes it.

Letters: B chunks, S height and width of frames, E width of the embeddings: 1024 as released.
"""

import functools
import itertools

import jax
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from jax_avh.methods.mds.convolution import Convolution, max_pool
from jax_avh.methods.mds.layers import flat, linear, run
from jax_avh.methods.mds.visual import CHANNELS, REDUCTION, Backbone
from jax_avh.models.layers import DTYPES
from jax_avh.models.torch_layers import BatchNorm, dropout

EMBEDDING = 1024
HIDDEN = 4096  # width of the linear layers before the embeddings
SOUND_CHANNELS = (64, 192, 384, 256, 256, 512)  # of the audio stream
SOUND_STEPS = 21  # that its convolutions leave of 13 x 99 cepstra
DROPOUT = 0.5

halve_frames = functools.partial(max_pool, strides=(1, 2))
halve = functools.partial(max_pool, strides=(2, 2))


class MDS(nnx.Module):
    """Embeds the picture and the sound of one second; 80,834,052 parameters at 96 pixels, 122,777,092 at 224.

    Args:
      rngs: draws the parameters.
      image: height and width of the frames, in pixels: a multiple of 32; 224 as released.
      precision: of DTYPES.
      width_multiplier: channels and units of all layers, against the released network's.
    """

    width = None  # of features: it reads none

    def __init__(self, rngs: nnx.Rngs, image: int = 96, precision: str = "float32", width_multiplier: float = 1.0):
        assert image % REDUCTION == 0, f"frames of {image} pixels: it must be a multiple of {REDUCTION}"
        self.image, self.precision, self.width_multiplier = image, precision, width_multiplier
        seen, heard = self._widths(CHANNELS), self._widths(SOUND_CHANNELS)
        widths = self._widths((HIDDEN, EMBEDDING))
        self.netcnnaud = sound_layers(heard, rngs, precision)
        self.netfcaud = embedding_layers(heard[-1] * SOUND_STEPS, widths, rngs, precision)
        self.netcnnlip = Backbone(rngs, precision, seen)
        self.netfclip = embedding_layers(seen[-1] * (image // REDUCTION) ** 2, widths, rngs, precision)
        self.final_bn_lip, self.final_bn_aud = (BatchNorm(widths[-1], self.dtype) for _ in range(2))
        self.final_fc_lip, self.final_fc_aud = (
            nnx.Sequential(dropout, linear(widths[-1], 2, rngs, precision)) for _ in range(2)
        )

    def _widths(self, released: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(max(round(width * self.width_multiplier), 1) for width in released)

    @property
    def kind(self) -> dict[str, str]:
        """What its weights say of it."""
        return {"image": str(self.image), "width_multiplier": str(self.width_multiplier)}

    @property
    def dtype(self) -> DTypeLike:
        """Of parameters, norms, embeddings and losses."""
        return DTYPES[self.precision][0]

    def embeddings(
        self,
        frames: Float[Array, "B 30 S S 3"],
        cepstra: Float[Array, "B 13 99"],
        training: bool = False,
        together: bool = False,
    ) -> tuple[Float[Array, "B E"], Float[Array, "B E"]]:
        """Of the pictures and of the sounds.

        Args:
          frames: of one second each, normalised.
          cepstra: of the same seconds, as mfcc gives them.
          training: batch norms take the batch's own statistics, which move the running ones.
          together: those norms of the visual stream that keep no statistics take the batch's, as in the official
            training; otherwise each chunk's own, as in the official scoring.
        """
        seen = flat(self.netcnnlip(frames, together))
        heard = flat(run(self.netcnnaud, cepstra[..., None], training))
        of_picture, of_sound = run(self.netfclip, seen, training), run(self.netfcaud, heard, training)
        return of_picture.astype(self.dtype), of_sound.astype(self.dtype)

    def logits(
        self,
        of_picture: Float[Array, "B E"],
        of_sound: Float[Array, "B E"],
        training: bool = False,
        key: Key[Array, ""] | None = None,
    ) -> tuple[Float[Array, "B 2"], Float[Array, "B 2"]]:
        """Of fake (first) and real, by each embedding alone.

        Args:
          of_picture: embeddings.
          of_sound: embeddings.
          training: batch norms take the batch's own statistics, which move the running ones.
          key: of the dropout; None = no dropout.
        """
        keys = (None, None) if key is None else jax.random.split(key)
        outputs = []
        for embedding, norm, head, key in (
            (of_picture, self.final_bn_lip, self.final_fc_lip, keys[0]),
            (of_sound, self.final_bn_aud, self.final_fc_aud, keys[1]),
        ):
            drop, last = head.layers
            outputs.append(last(drop(norm(embedding, training), DROPOUT, key)).astype(self.dtype))
        return tuple(outputs)


def sound_layers(channels: tuple[int, ...], rngs: nnx.Rngs, precision: str) -> nnx.Sequential:
    """The audio stream up to its linear layers: [B, 13, 99, 1] cepstra to [B, 1, 21, last of the channels]."""
    pairs = itertools.pairwise((1, *channels))

    def block(kernel: tuple[int, int] = (3, 3), padded: bool = True) -> list:
        inputs, outputs = next(pairs)
        convolution = Convolution(inputs, outputs, kernel, rngs, padded=padded, bias=True, precision=precision)
        return [convolution, BatchNorm(outputs, DTYPES[precision][0]), nnx.relu]

    return nnx.Sequential(
        *block(),
        nnx.identity,  # officially a pooling of one pixel
        *block(),
        halve_frames,
        *block(),
        *block(),
        *block(),
        halve,
        *block((5, 4), padded=False),
    )


def embedding_layers(inputs: int, widths: tuple[int, int], rngs: nnx.Rngs, precision: str) -> nnx.Sequential:
    """A stream's linear layers, up to its embedding: of the hidden width, then of the embedding's."""
    hidden, embedding = widths
    first, last = linear(inputs, hidden, rngs, precision), linear(hidden, embedding, rngs, precision)
    return nnx.Sequential(first, BatchNorm(hidden, DTYPES[precision][0]), nnx.relu, last)
