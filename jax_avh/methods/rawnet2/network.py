"""RawNet2: a cut of raw sound to the log-probabilities of fake and real.

Source: Tak et al., "End-to-end anti-spoofing with RawNet2" (ICASSP 2021), as the baseline of ASVspoof 2021 computes it.

Letters: B cuts, S samples, T steps before a pooling, U after it, C channels in, K out, H hidden width.
"""

import itertools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jax_avh.methods.rawnet2.cuts import SAMPLES
from jax_avh.methods.rawnet2.gru import GRU
from jax_avh.methods.rawnet2.sinc import FILTERS, POOL, TAPS, loudness, max_pool
from jax_avh.models.layers import DTYPES, apply_linear, linear
from jax_avh.models.torch_layers import BatchNorm, convolution

SLOPE = 0.3  # of the leaky ReLU below 0
GRU_LAYERS = 3


class Idle(nnx.Variable):
    """A weight of the official files that no output depends on; not an nnx.Param, so that no weight decay moves it."""


class Block(nnx.Module):
    """A residual block, and a third of its steps."""

    def __init__(self, inputs: int, outputs: int, rngs: nnx.Rngs, precision: str, first: bool):
        dtype = DTYPES[precision][0]
        self.bn1 = None if first else BatchNorm(inputs, dtype)
        if self.bn1 is not None:
            self.bn1.scale, self.bn1.bias = Idle(self.bn1.scale[...]), Idle(self.bn1.bias[...])
        self.conv1 = convolution(inputs, outputs, (3,), rngs, padding=1, precision=precision)
        self.bn2 = BatchNorm(outputs, dtype)
        self.conv2 = convolution(outputs, outputs, (3,), rngs, padding=1, precision=precision)
        other = inputs != outputs
        self.conv_downsample = convolution(inputs, outputs, (1,), rngs, precision=precision) if other else None

    def __call__(self, inputs: Float[Array, "B T C"], training: bool = False) -> Float[Array, "B U K"]:
        """Two convolutions beside a skip connection, and a pooling.

        The official program drops what bn1 makes of the inputs, against the paper; its statistics move all the same.
        """
        if training and self.bn1 is not None:
            self.bn1.observe(jax.lax.stop_gradient(inputs))
        hidden = nnx.leaky_relu(self.bn2(self.conv1(inputs), training), SLOPE)
        skip = inputs if self.conv_downsample is None else self.conv_downsample(inputs)
        return max_pool(self.conv2(hidden).astype(inputs.dtype) + skip.astype(inputs.dtype))


class RawNet2(nnx.Module):
    """Hears raw sound at 16 kHz; 17,621,410 parameters.

    Args:
      rngs: draws the parameters.
      precision: of DTYPES; the sinc filters are never in less than float32.
      widths: channels of the blocks.
      hidden: width of the recurrent layers.
      samples: of a cut; 64,600 as released.
    """

    width = None  # of features: it reads none

    def __init__(
        self,
        rngs: nnx.Rngs,
        precision: str = "float32",
        widths: tuple[int, ...] = (20, 20, 128, 128, 128, 128),
        hidden: int = 1024,
        samples: int = SAMPLES,
    ):
        self.precision, self.widths, self.samples = precision, widths, samples
        dtype = self.dtype
        self.first_bn = BatchNorm(FILTERS, dtype)
        for index, (inputs, outputs) in enumerate(itertools.pairwise((FILTERS, *widths))):
            block = Block(inputs, outputs, rngs, precision, first=index == 0)
            setattr(self, f"block{index}", nnx.Sequential(block))
            setattr(self, f"fc_attention{index}", nnx.Sequential(linear(outputs, outputs, rngs, dtype)))
        self.bn_before_gru = BatchNorm(widths[-1], dtype)
        self.gru = GRU(widths[-1], hidden, GRU_LAYERS, rngs, precision)
        self.fc1_gru, self.fc2_gru = linear(hidden, hidden, rngs, dtype), linear(hidden, 2, rngs, dtype)

    @property
    def kind(self) -> dict[str, str]:
        """What its weights say of it."""
        return {"samples": str(self.samples)}

    @property
    def dtype(self) -> DTypeLike:
        """Of parameters, norms and log-probabilities."""
        return DTYPES[self.precision][0]

    @property
    def least_samples(self) -> int:
        """Of a cut, so that a step is left after all poolings: 3,211 with six blocks."""
        return TAPS - 1 + POOL ** (len(self.widths) + 1)

    def __call__(self, sound: Float[Array, "B S"], training: bool = False) -> Float[Array, "B 2"]:
        """Log-probabilities of fake (first) and real.

        Args:
          sound: in [-1, 1], at least `least_samples` long; the released weights know 64,600 samples.
          training: normalise by the batch's own statistics, which move the running ones.
        """
        assert sound.shape[1] >= self.least_samples, f"{sound.shape[1]} samples, fewer than {self.least_samples}"
        return self.classify(loudness(sound.astype(self.dtype)), training)

    def classify(self, heard: Float[Array, "B U C"], training: bool = False) -> Float[Array, "B 2"]:
        """The same, of the `loudness` that the sinc filters made of the sound."""
        *_, (_, log_probs) = self.stages(heard, training)
        return log_probs

    def stages(self, heard: Float[Array, "B U C"], training: bool = False) -> Iterator[tuple[str, Array]]:
        """All that lies between, step by step under the names of the official program; the log-probabilities last."""
        hidden = nnx.selu(self.first_bn(heard, training))
        yield "front_selu", hidden
        for index in range(len(self.widths)):
            block, attention = (getattr(self, f"{part}{index}").layers[0] for part in ("block", "fc_attention"))
            hidden = block(hidden, training)
            yield f"block{index}_out", hidden
            gate = nnx.sigmoid(self._linear(attention, jnp.mean(hidden, axis=1)))
            yield f"fms{index}_gate", gate
            hidden = hidden * gate[:, None] + gate[:, None]
            yield f"fms{index}_out", hidden
        yield "gru_in", (hidden := nnx.selu(self.bn_before_gru(hidden, training)))
        yield "gru_out", (states := self.gru(hidden))
        yield "fc1_out", (hidden := self._linear(self.fc1_gru, states[:, -1]))  # no activation follows
        yield "logits", (logits := self._linear(self.fc2_gru, hidden))
        yield "log_probs", nnx.log_softmax(logits)

    def _linear(self, layer: nnx.Linear, inputs: Float[Array, "B C"]) -> Float[Array, "B K"]:
        return apply_linear(layer, inputs, DTYPES[self.precision][1])
