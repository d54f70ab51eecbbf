"""MDS's visual stream up to its linear layers: a ResNet-18 in space first, then in space and time.

Its norms keep no statistics: as released, they take those of the batch at hand, in scoring too, where a batch is one
chunk. The official blocks end with the ReLU that ours start with; so there is none after the last, as released.

Letters: B chunks, T frames, H height, W width, C channels.
"""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jax_avh.methods.mds.convolution import Convolution, max_pool
from jax_avh.models.layers import DTYPES
from jax_avh.models.torch_layers import InstantNorm

CHANNELS = (64, 64, 128, 256, 256)  # of the stem and the stages; ResNet-18's last stage has 512
REDUCTION = 32  # of height and width


class Block(nnx.Module):
    """Two convolutions and norms, and around them a skip."""

    def __init__(
        self, inputs: int, outputs: int, steps: int, strides: tuple[int, int, int], rngs: nnx.Rngs, precision: str
    ):
        kernel, dtype = (steps, 3, 3), DTYPES[precision][0]
        self.conv1 = Convolution(inputs, outputs, kernel, rngs, strides=strides, precision=precision)
        self.bn1 = InstantNorm(outputs, dtype)
        self.conv2 = Convolution(outputs, outputs, kernel, rngs, precision=precision)
        self.bn2 = InstantNorm(outputs, dtype)
        resizes = inputs != outputs or strides != (1, 1, 1)
        self.downsample = shortcut(inputs, outputs, strides, rngs, precision) if resizes else None

    def __call__(self, inputs: Float[Array, "B T H W C"], together: bool) -> Float[Array, "B U I J D"]:
        """The sum of both ways through the block: of any sign, as the next block's ReLU takes it."""
        inputs = nnx.relu(inputs)
        hidden = nnx.relu(self.bn1(self.conv1(inputs), together))
        return self.bn2(self.conv2(hidden), together) + self.skip(inputs, together)

    def skip(self, inputs: Float[Array, "B T H W C"], together: bool) -> Float[Array, "B U I J D"]:
        """The inputs, brought to the outputs' size where that is another."""
        if self.downsample is None:
            return inputs
        convolution, norm = self.downsample.layers
        return norm(convolution(inputs), together)


def shortcut(
    inputs: int, outputs: int, strides: tuple[int, int, int], rngs: nnx.Rngs, precision: str
) -> nnx.Sequential:
    """What a block's inputs go through where its outputs have another size."""
    convolution = Convolution(inputs, outputs, (1, 1, 1), rngs, strides=strides, precision=precision)
    return nnx.Sequential(convolution, InstantNorm(outputs, DTYPES[precision][0]))


class Backbone(nnx.Module):
    """One second of frames to a map of features.

    Args:
      rngs: draws the parameters.
      precision: of DTYPES.
      channels: of the stem and the stages.
    """

    def __init__(self, rngs: nnx.Rngs, precision: str = "float32", channels: tuple[int, ...] = CHANNELS):
        def stage(inputs: int, outputs: int, steps: int, strides: tuple[int, int, int]) -> nnx.Sequential:
            first = Block(inputs, outputs, steps, strides, rngs, precision)
            return nnx.Sequential(first, Block(outputs, outputs, steps, (1, 1, 1), rngs, precision))

        stem, first, second, third, last = channels
        self.conv1 = Convolution(3, stem, (1, 7, 7), rngs, strides=(1, 2, 2), precision=precision)
        self.bn1 = InstantNorm(stem, DTYPES[precision][0])
        self.layer1 = stage(stem, first, 1, (1, 1, 1))
        self.layer2 = stage(first, second, 1, (1, 2, 2))
        self.layer3 = stage(second, third, 3, (2, 2, 2))
        self.layer4 = stage(third, last, 3, (2, 2, 2))

    def __call__(self, frames: Float[Array, "B 30 S S 3"], together: bool = False) -> Float[Array, "B I I C"]:
        """The mean over time of the last block's outputs; I = S / 32.

        Args:
          frames: normalised colours.
          together: the norms take statistics over the whole batch; otherwise chunk by chunk.
        """
        hidden = self.stem(frames, together)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            hidden = self.stage(stage, hidden, together)
        return jnp.mean(hidden, axis=1)

    def stem(self, frames: Float[Array, "B T S S 3"], together: bool) -> Float[Array, "B T H H C"]:
        """The first block's input, a quarter as high and wide; ReLU comes after the pooling, where there is less."""
        return max_pool(self.bn1(self.conv1(frames), together), strides=(2, 2), padding=1)

    def stage(
        self, stage: nnx.Sequential, hidden: Float[Array, "B T H W C"], together: bool
    ) -> Float[Array, "B U I J D"]:
        """What the two blocks of a stage make of their input."""
        for block in stage.layers:
            hidden = block(hidden, together)
        return hidden
