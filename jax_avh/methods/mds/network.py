"""MDS: one second of frames and of cepstra to an embedding each, which lie near each other in real videos.

Its parameters have the official names, part by part of the modules' tree.

Source: MDS (Chugh et al., "Not made for each other: audio-visual dissonance-based deepfake detection and localization",
ACM MM 2020), as the released program computes it.

Letters: B chunks, S height and width of frames, E = 1024 width of the embeddings.
"""

import functools

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
SOUND_MAP = 512 * 21  # what the audio stream's convolutions leave of 13 x 99 cepstra
DROPOUT = 0.5

halve_frames = functools.partial(max_pool, strides=(1, 2))
halve = functools.partial(max_pool, strides=(2, 2))


class MDS(nnx.Module):
    """Embeds the picture and the sound of one second; 80,834,052 parameters at 96 pixels, 122,777,092 at 224.

    Args:
      rngs: draws the parameters.
      image: height and width of the frames, in pixels: a multiple of 32; 224 as released.
      precision: of DTYPES.
      hidden: width of the linear layers before the embeddings; 4096 as released.
    """

    width = None  # of features: it reads none

    def __init__(self, rngs: nnx.Rngs, image: int = 96, precision: str = "float32", hidden: int = 4096):
        assert image % REDUCTION == 0, f"frames of {image} pixels: it must be a multiple of {REDUCTION}"
        self.image, self.precision = image, precision
        self.netcnnaud = sound_layers(rngs, precision)
        self.netfcaud = embedding_layers(SOUND_MAP, hidden, rngs, precision)
        self.netcnnlip = Backbone(rngs, precision)
        self.netfclip = embedding_layers(CHANNELS * (image // REDUCTION) ** 2, hidden, rngs, precision)
        self.final_bn_lip, self.final_bn_aud = (BatchNorm(EMBEDDING, self.dtype) for _ in range(2))
        self.final_fc_lip, self.final_fc_aud = (
            nnx.Sequential(dropout, linear(EMBEDDING, 2, rngs, precision)) for _ in range(2)
        )

    @property
    def kind(self) -> dict[str, str]:
        """What its weights say of it."""
        return {"image": str(self.image)}

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
    ) -> tuple[Float[Array, "B 1024"], Float[Array, "B 1024"]]:
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
        of_picture: Float[Array, "B 1024"],
        of_sound: Float[Array, "B 1024"],
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


def sound_layers(rngs: nnx.Rngs, precision: str) -> nnx.Sequential:
    """The audio stream up to its linear layers: [B, 13, 99, 1] cepstra to [B, 1, 21, 512]."""

    def block(inputs: int, outputs: int, kernel: tuple[int, int] = (3, 3), padded: bool = True) -> list:
        convolution = Convolution(inputs, outputs, kernel, rngs, padded=padded, bias=True, precision=precision)
        return [convolution, BatchNorm(outputs, DTYPES[precision][0]), nnx.relu]

    return nnx.Sequential(
        *block(1, 64),
        nnx.identity,  # officially a pooling of one pixel
        *block(64, 192),
        halve_frames,
        *block(192, 384),
        *block(384, 256),
        *block(256, 256),
        halve,
        *block(256, 512, (5, 4), padded=False),
    )


def embedding_layers(inputs: int, hidden: int, rngs: nnx.Rngs, precision: str) -> nnx.Sequential:
    """A stream's linear layers, up to its embedding."""
    first, last = linear(inputs, hidden, rngs, precision), linear(hidden, EMBEDDING, rngs, precision)
    return nnx.Sequential(first, BatchNorm(hidden, DTYPES[precision][0]), nnx.relu, last)
