"""MDS: embeds one second of frames and of cepstra; in real videos the two embeddings are close.

The visual stream is a ResNet-18 that convolves over space in its first stages, then over space and time. As released,
its norms keep no statistics: they use those of the current batch, also in scoring, where a batch is one chunk. The
official blocks end with the ReLU with which the blocks here start; as released, no ReLU follows the last block.

The module tree mirrors the official parameter names.

Source: MDS (Chugh et al., "Not made for each other: audio-visual dissonance-based deepfake detection and localization",
ACM MM 2020), as the released program computes it.

Letters: B chunks, T and U frames, H, I, J heights and widths, S height and width of the input, C channels in, D
channels out, E width of the embeddings (1024 as released).
"""

import functools
import itertools
from collections.abc import Callable
from typing import cast

import jax
import jax.numpy as jnp
from flax import nnx
from jax.lax import Precision
from jax.nn.initializers import variance_scaling
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from jax_avh.models.cpu_kernels import convolve, max_pool_3x3
from jax_avh.models.layers import (
    ARITHMETIC,
    BatchNorm,
    Products,
    apply_linear,
    dropout,
    normalise_channels,
    row,
)
from jax_avh.parallel import target_platform

EMBEDDING = 1024
HIDDEN = 4096  # width of the linear layers before the embeddings
PICTURE_CHANNELS = (64, 64, 128, 256, 256)  # stem and stages; ResNet-18's last stage has 512
REDUCTION = 32  # factor by which the visual stream reduces height and width
SOUND_CHANNELS = (64, 192, 384, 256, 256, 512)  # audio stream
SOUND_STEPS = 21  # steps left of 13 x 99 cepstra by the audio stream's convolutions
MDS_DROPOUT = 0.5
# Platform -> precision of the convolutions. In full float32, six passes of bfloat16, those of a step took the compiler
# for TPUs more than 13 minutes; three passes take about 2.5 times less.
CONVOLUTION_PRECISION = {"tpu": Precision.HIGH}

he_normal_by_outputs = variance_scaling(2.0, "fan_out", "normal")
halve_steps = functools.partial(max_pool_3x3, strides=(1, 2))
halve = functools.partial(max_pool_3x3, strides=(2, 2))


# --- layers ----------------------------------------------------------------------------------------------------------


class Convolution(nnx.Module):
    """Convolution over space, or over time and space, with a kernel [*sizes, in, out].

    If `padded`, half a kernel of zeros is added on each side of the input.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: tuple[int, ...],
        rngs: nnx.Rngs,
        *,
        strides: tuple[int, ...] | None = None,
        padded: bool = True,
        bias: bool = False,
        precision: str = "float32",
    ):
        param_dtype, self.products = ARITHMETIC[precision]
        self.kernel = nnx.Param(he_normal_by_outputs(rngs.params(), (*kernel, inputs, outputs), param_dtype))
        self.bias = nnx.Param(jnp.zeros(outputs, param_dtype)) if bias else None
        self.strides = strides or (1,) * len(kernel)
        self.padding = tuple(size // 2 if padded else 0 for size in kernel)

    def __call__(self, inputs: Float[Array, "B *S C"]) -> Float[Array, "B *R D"]:
        """Convolves in the dtype of the products; with a bias, returns the outputs in its dtype."""
        dtype, precision = self.products
        precision = CONVOLUTION_PRECISION.get(target_platform(), precision)
        inputs, kernel = inputs.astype(dtype), self.kernel[...]
        if kernel.ndim == 5 and kernel.shape[0] == 1:  # one frame at a time
            frames = inputs[:, :: self.strides[0]]
            pictures = frames.reshape(-1, *frames.shape[2:])
            outputs = convolve(pictures, kernel[0], self.strides[1:], self.padding[1:], precision)
            outputs = outputs.reshape(*frames.shape[:2], *outputs.shape[1:])
        else:
            outputs = convolve(inputs, kernel, self.strides, self.padding, precision)
        return outputs if self.bias is None else outputs.astype(self.bias.dtype) + row(self.bias[...], outputs.ndim)


class InstantNorm(nnx.Module):
    """Batch norm without running statistics: it uses those of the current batch, or of each example."""

    def __init__(self, channels: int, dtype: DTypeLike = jnp.float32):
        self.scale = nnx.Param(jnp.ones(channels, dtype))
        self.bias = nnx.Param(jnp.zeros(channels, dtype))

    def __call__(self, inputs: Float[Array, "B *S C"], together: bool) -> Float[Array, "B *S C"]:
        """Normalises over the whole batch if `together`, otherwise over each example."""
        inputs = inputs.astype(self.scale.dtype)
        axes = tuple(range(0 if together else 1, inputs.ndim - 1))
        mean, variance = jnp.mean(inputs, axes, keepdims=True), jnp.var(inputs, axes, keepdims=True)
        return normalise_channels(inputs, mean, variance, self.scale[...], self.bias[...])


def he_linear(inputs: int, outputs: int, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32) -> nnx.Linear:
    """Builds a linear layer with MDS's initial values: normal weights scaled by the number of outputs, zero bias."""
    return nnx.Linear(inputs, outputs, kernel_init=he_normal_by_outputs, param_dtype=dtype, rngs=rngs)


def flat(maps: Float[Array, "B I J C"]) -> Float[Array, "B K"]:
    """Flattens each chunk's maps channel by channel, the order that the official linear layers expect."""
    return jnp.moveaxis(maps, -1, 1).reshape(len(maps), -1)


def run(
    layers: nnx.Sequential, inputs: Float[Array, "B *S"], products: Products, training: bool = False
) -> Float[Array, "B *R"]:
    """Applies the layers in order, linear ones as given; in training, batch norms use the batch's statistics."""
    for layer in layers.layers:
        if isinstance(layer, nnx.Linear):
            inputs = apply_linear(layer, inputs, products)
        else:
            inputs = layer(inputs, training) if isinstance(layer, BatchNorm) else layer(inputs)
    return inputs


# --- visual stream ---------------------------------------------------------------------------------------------------


class Block(nnx.Module):
    """Residual block of two convolutions, each with a norm."""

    def __init__(
        self, inputs: int, outputs: int, steps: int, strides: tuple[int, int, int], rngs: nnx.Rngs, precision: str
    ):
        kernel, dtype = (steps, 3, 3), ARITHMETIC[precision][0]
        self.conv1 = Convolution(inputs, outputs, kernel, rngs, strides=strides, precision=precision)
        self.bn1 = InstantNorm(outputs, dtype)
        self.conv2 = Convolution(outputs, outputs, kernel, rngs, precision=precision)
        self.bn2 = InstantNorm(outputs, dtype)
        downsample = None
        if inputs != outputs or strides != (1, 1, 1):
            resize = Convolution(inputs, outputs, (1, 1, 1), rngs, strides=strides, precision=precision)
            downsample = nnx.Sequential(resize, InstantNorm(outputs, dtype))
        self.downsample = downsample

    def __call__(self, inputs: Float[Array, "B T H W C"], together: bool) -> Float[Array, "B U I J D"]:
        """Returns the sum of both paths through the block, to which the next block applies ReLU."""
        inputs = nnx.relu(inputs)
        hidden = nnx.relu(self.bn1(self.conv1(inputs), together))
        hidden = self.bn2(self.conv2(hidden), together)
        if self.downsample is None:
            return hidden + inputs
        resize, norm = self.downsample.layers
        return hidden + norm(resize(inputs), together)


class Backbone(nnx.Module):
    """Visual stream: maps one second of frames to a feature map.

    Args:
      rngs: source of the initial parameters.
      precision: a key of ARITHMETIC.
      channels: channels of the stem and of each stage.
    """

    def __init__(self, rngs: nnx.Rngs, precision: str = "float32", channels: tuple[int, ...] = PICTURE_CHANNELS):
        def stage(inputs: int, outputs: int, steps: int, strides: tuple[int, int, int]) -> nnx.Sequential:
            first = Block(inputs, outputs, steps, strides, rngs, precision)
            return nnx.Sequential(first, Block(outputs, outputs, steps, (1, 1, 1), rngs, precision))

        stem, first, second, third, last = channels
        self.conv1 = Convolution(3, stem, (1, 7, 7), rngs, strides=(1, 2, 2), precision=precision)
        self.bn1 = InstantNorm(stem, ARITHMETIC[precision][0])
        self.layer1 = stage(stem, first, 1, (1, 1, 1))
        self.layer2 = stage(first, second, 1, (1, 2, 2))
        self.layer3 = stage(second, third, 3, (2, 2, 2))
        self.layer4 = stage(third, last, 3, (2, 2, 2))

    def __call__(self, frames: Float[Array, "B 30 S S 3"], together: bool = False) -> Float[Array, "B I I C"]:
        """Returns the mean over time of the last block's outputs; I = S / 32.

        Args:
          frames: normalised colours.
          together: whether the norms take statistics over the whole batch; otherwise, chunk by chunk.
        """
        hidden = self.stem(frames, together)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            for block in stage.layers:
                hidden = block(hidden, together)
        return jnp.mean(hidden, axis=1)

    def stem(self, frames: Float[Array, "B T S S 3"], together: bool) -> Float[Array, "B T H H C"]:
        """Returns the first block's input, a quarter as high and wide; ReLU follows the pooling, on fewer values."""
        return max_pool_3x3(self.bn1(self.conv1(frames), together), strides=(2, 2), padding=1)


# --- audio stream and heads ------------------------------------------------------------------------------------------


def sound_layers(channels: tuple[int, ...], rngs: nnx.Rngs, precision: str) -> nnx.Sequential:
    """Builds the audio stream up to its linear layers: [B, 13, 99, 1] cepstra -> [B, 1, 21, channels[-1]]."""
    pairs = itertools.pairwise((1, *channels))

    def block(kernel: tuple[int, int] = (3, 3), padded: bool = True) -> list[Callable]:
        inputs, outputs = next(pairs)
        convolution = Convolution(inputs, outputs, kernel, rngs, padded=padded, bias=True, precision=precision)
        return [convolution, BatchNorm(outputs, ARITHMETIC[precision][0]), nnx.relu]

    return nnx.Sequential(
        *block(),
        nnx.identity,  # in the official program, a pooling of one pixel
        *block(),
        halve_steps,
        *block(),
        *block(),
        *block(),
        halve,
        *block((5, 4), padded=False),
    )


def embedding_layers(inputs: int, hidden: int, embedding: int, rngs: nnx.Rngs, dtype: DTypeLike) -> nnx.Sequential:
    """Builds a stream's linear layers up to its embedding."""
    first = he_linear(inputs, hidden, rngs, dtype)
    last = he_linear(hidden, embedding, rngs, dtype)
    return nnx.Sequential(first, BatchNorm(hidden, dtype), nnx.relu, last)


class MDS(nnx.Module):
    """Network that embeds the picture and the sound of one second.

    It has 80,834,052 parameters at 96 pixels and 122,777,092 at 224.

    Args:
      rngs: source of the initial parameters.
      image: height and width of the frames in pixels, a multiple of 32; 224 as released.
      precision: a key of ARITHMETIC.
      width_multiplier: channels and units of all layers, relative to the released network.
    """

    width = None  # it reads no features

    def __init__(self, rngs: nnx.Rngs, image: int = 96, precision: str = "float32", width_multiplier: float = 1.0):
        assert image % REDUCTION == 0, f"image size {image}: not a multiple of {REDUCTION} pixels"
        self.image, self.precision, self.width_multiplier = image, precision, width_multiplier

        def narrowed(released: tuple[int, ...]) -> tuple[int, ...]:
            return tuple(max(round(width * width_multiplier), 1) for width in released)

        seen, heard = narrowed(PICTURE_CHANNELS), narrowed(SOUND_CHANNELS)
        hidden, embedding = narrowed((HIDDEN, EMBEDDING))
        self.netcnnaud = sound_layers(heard, rngs, precision)
        self.netfcaud = embedding_layers(heard[-1] * SOUND_STEPS, hidden, embedding, rngs, self.dtype)
        self.netcnnlip = Backbone(rngs, precision, seen)
        self.netfclip = embedding_layers(seen[-1] * (image // REDUCTION) ** 2, hidden, embedding, rngs, self.dtype)
        self.final_bn_lip = BatchNorm(embedding, self.dtype)
        self.final_bn_aud = BatchNorm(embedding, self.dtype)
        self.final_fc_lip = nnx.Sequential(dropout, he_linear(embedding, 2, rngs, self.dtype))
        self.final_fc_aud = nnx.Sequential(dropout, he_linear(embedding, 2, rngs, self.dtype))

    @property
    def kind(self) -> dict[str, str]:
        """Description of the network that its weight file records."""
        return {"image": str(self.image), "width_multiplier": str(self.width_multiplier)}

    @property
    def dtype(self) -> DTypeLike:
        """Dtype of parameters, norms, embeddings and losses."""
        return ARITHMETIC[self.precision][0]

    @property
    def products(self) -> Products:
        """How factors are multiplied."""
        return ARITHMETIC[self.precision][1]

    def embeddings(
        self,
        frames: Float[Array, "B 30 S S 3"],
        cepstra: Float[Array, "B 13 99"],
        training: bool = False,
        together: bool = False,
    ) -> tuple[Float[Array, "B E"], Float[Array, "B E"]]:
        """Embeds the pictures and the sounds.

        Args:
          frames: one second of normalised frames per chunk.
          cepstra: cepstra of the same seconds, as returned by mfcc.
          training: whether batch norms use the batch's statistics and update the running ones.
          together: whether the visual stream's norms, which keep no statistics, use those of the whole batch, as in
            the official training; otherwise those of each chunk, as in the official scoring.

        Returns:
          The embeddings of the pictures and of the sounds.
        """
        seen = flat(self.netcnnlip(frames, together))
        heard = flat(run(self.netcnnaud, cepstra[..., None], self.products, training))
        return run(self.netfclip, seen, self.products, training), run(self.netfcaud, heard, self.products, training)

    def logits(
        self,
        of_picture: Float[Array, "B E"],
        of_sound: Float[Array, "B E"],
        training: bool = False,
        key: Key[Array, ""] | None = None,
    ) -> tuple[Float[Array, "B 2"], Float[Array, "B 2"]]:
        """Classifies each embedding on its own.

        Args:
          of_picture: embeddings of the pictures.
          of_sound: embeddings of the sounds.
          training: whether batch norms use the batch's statistics and update the running ones.
          key: dropout key; None = no dropout.

        Returns:
          The logits from the pictures and from the sounds: fake first, then real.
        """

        def classify(embedding: Array, norm: BatchNorm, head: nnx.Sequential, key: Array | None) -> Array:
            drop, last = head.layers
            kept = drop(norm(embedding, training), MDS_DROPOUT, key)
            return apply_linear(cast(nnx.Linear, last), kept, self.products)

        picture_key, sound_key = (None, None) if key is None else jax.random.split(key)
        picture = classify(of_picture, self.final_bn_lip, self.final_fc_lip, picture_key)
        return picture, classify(of_sound, self.final_bn_aud, self.final_fc_aud, sound_key)
