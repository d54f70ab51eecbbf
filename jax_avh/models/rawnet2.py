"""RawNet2: maps a cut of raw sound to the log-probabilities of fake and real.

Source: Tak et al., "End-to-end anti-spoofing with RawNet2" (ICASSP 2021), as implemented in the ASVspoof 2021 baseline.

Letters: B cuts, S samples, F filters, T steps before a pooling, U after it, C channels in, K out, H hidden width.
"""

import functools
import itertools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from avh_shards.clip import SAMPLE_RATE
from jax_avh.models.cpu_kernels import fft_correlate, gru_states, xla_convolve
from jax_avh.models.layers import (
    ARITHMETIC,
    BatchNorm,
    apply_linear,
    cast_product,
    larger,
    linear,
    row,
    torch_uniform,
    uniform_within,
)
from jax_avh.parallel import target_platform

SAMPLES = 64_600  # samples per cut in the official program: 4 s at 16 kHz
SINC_FILTERS = 20
TAPS = 1025  # per filter
POOLED_STEPS = 3  # steps per max pooling
SLOPE = 0.3  # slope of the leaky ReLU below 0
GRU_LAYERS = 3
GRU_PARAMETERS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")  # per layer
# Backend -> cuts filtered at a time. One by one, cuts stay in a CPU's cache (twice as fast); other backends take all.
CUTS_AT_ONCE = {"cpu": 1}


# --- frozen filters --------------------------------------------------------------------------------------------------


def band_edges() -> Float[np.ndarray, " edges"]:
    """Returns the edges of the bands in Hz, equally spaced in mel from 0 to half the sample rate."""
    highest = 2595 * np.log10(1 + SAMPLE_RATE / 2 / 700)
    return 700 * (10 ** (np.linspace(0, highest, SINC_FILTERS + 1) / 2595) - 1)


def sinc_bank() -> Float[np.ndarray, "F taps"]:
    """Returns the filters' taps in float64: differences of two ideal low-passes in a symmetric Hamming window.

    References:
      SincNet (Ravanelli and Bengio, 2018); here the bands are adjacent and fixed, not learned.
    """
    sample = np.arange(TAPS) - TAPS // 2
    width = 2 * band_edges()[:, None] / SAMPLE_RATE
    return np.diff(width * np.sinc(width * sample), axis=0) * np.hamming(TAPS)


def loudness(sound: Float[Array, "B S"]) -> Float[Array, "B U F"]:
    """Returns the largest |x| of every three samples of each band, without gradient; U = (S - 1,024) // 3."""

    def loudness_of_cut(sound: Float[Array, " S"]) -> Float[Array, "U F"]:
        return max_pool(jnp.abs(correlate(sound, sinc_bank())).T[None])[0]

    batch_size = CUTS_AT_ONCE.get(target_platform(), len(sound))
    return jax.lax.map(loudness_of_cut, jax.lax.stop_gradient(sound), batch_size=batch_size)


def correlate(sound: Float[Array, " S"], filters: Float[np.ndarray, "F taps"]) -> Float[Array, "F T"]:
    """Correlates a sound with every filter, in at least float32; T = S - taps + 1."""
    if target_platform() != "tpu":
        return fft_correlate(sound, filters)
    # The compiler for TPUs writes Fourier transforms out as products, which takes it a minute and more memory.
    kernel = jnp.asarray(filters.T[:, None], sound.dtype)
    return xla_convolve(sound[None, :, None], kernel, strides=(1,), padding=(0,))[0].T


def max_pool(inputs: Float[Array, "B T C"]) -> Float[Array, "B U C"]:
    """Takes the largest of every three steps and drops incomplete groups; U = T // 3."""
    batch, steps, channels = inputs.shape
    pooled = steps // POOLED_STEPS
    # Faster in training than strided slices, whose gradients are interleaved with zeros.
    grouped = inputs[:, : pooled * POOLED_STEPS].reshape(batch, pooled, POOLED_STEPS, channels)
    return functools.reduce(larger, (grouped[:, :, step] for step in range(POOLED_STEPS)))


# --- the network -----------------------------------------------------------------------------------------------------


class Idle(nnx.Variable):
    """Weight of the official files that no output depends on; not an nnx.Param, to exempt it from weight decay."""


def convolution(inputs: int, outputs: int, size: int, rngs: nnx.Rngs, precision: str) -> nnx.Conv:
    """Builds a convolution over time that keeps the number of steps, with PyTorch's initial values."""
    param_dtype, products = ARITHMETIC[precision]
    return nnx.Conv(
        inputs,
        outputs,
        (size,),
        padding=((size // 2, size // 2),),  # hashable, as a compiled step requires
        kernel_init=torch_uniform,
        bias_init=uniform_within((size * inputs) ** -0.5),
        param_dtype=param_dtype,
        dtype=products.dtype,
        precision=products.precision,
        rngs=rngs,
    )


class Block(nnx.Module):
    """Residual block followed by a pooling to a third of the steps."""

    def __init__(self, inputs: int, outputs: int, rngs: nnx.Rngs, precision: str, first: bool):
        dtype = ARITHMETIC[precision][0]
        self.bn1 = None if first else BatchNorm(inputs, dtype)
        if self.bn1 is not None:
            self.bn1.scale = Idle(self.bn1.scale[...])
            self.bn1.bias = Idle(self.bn1.bias[...])
        self.conv1 = convolution(inputs, outputs, 3, rngs, precision)
        self.bn2 = BatchNorm(outputs, dtype)
        self.conv2 = convolution(outputs, outputs, 3, rngs, precision)
        self.conv_downsample = convolution(inputs, outputs, 1, rngs, precision) if inputs != outputs else None

    def __call__(self, inputs: Float[Array, "B T C"], training: bool = False) -> Float[Array, "B U K"]:
        """Adds two convolutions to a skip connection, and pools.

        Unlike the paper, the official program discards the output of bn1, but still updates its statistics.
        """
        if training and self.bn1 is not None:
            self.bn1.observe(jax.lax.stop_gradient(inputs))
        hidden = nnx.leaky_relu(self.bn2(self.conv1(inputs), training), SLOPE)
        skip = inputs if self.conv_downsample is None else self.conv_downsample(inputs)
        return max_pool(self.conv2(hidden).astype(inputs.dtype) + skip.astype(inputs.dtype))


class GRU(nnx.Module):
    """Stacked recurrent layers with PyTorch's equations; every layer starts from a zero state."""

    def __init__(self, inputs: int, hidden: int, layers: int, rngs: nnx.Rngs, precision: str = "float32"):
        self.layers = layers
        self.precision = precision
        draw = uniform_within(hidden**-0.5)
        for layer in range(layers):
            shapes = (3 * hidden, hidden if layer else inputs), (3 * hidden, hidden), (3 * hidden,), (3 * hidden,)
            for name, shape in zip(GRU_PARAMETERS, shapes, strict=True):
                setattr(self, f"{name}_l{layer}", nnx.Param(draw(rngs.params(), shape, ARITHMETIC[precision][0])))

    def __call__(self, inputs: Float[Array, "B T C"]) -> Float[Array, "B T H"]:
        """Returns the states of the last layer."""
        states = inputs.swapaxes(0, 1)
        products = ARITHMETIC[self.precision][1]
        for layer in range(self.layers):
            weight_ih, weight_hh, bias_ih, bias_hh = (getattr(self, f"{name}_l{layer}")[...] for name in GRU_PARAMETERS)
            # This part does not depend on the previous state, so one product covers all steps.
            given = cast_product(states, weight_ih.T, products) + row(bias_ih, 3)
            states = gru_states(given, weight_hh, bias_hh, products)
        return states.swapaxes(0, 1)


class RawNet2(nnx.Module):
    """Network on raw sound at 16 kHz, with 17,621,410 parameters.

    Args:
      rngs: source of the initial parameters.
      precision: a key of ARITHMETIC; the sinc filters never use less than float32.
      widths: channels of each block.
      hidden: width of the recurrent layers.
      samples: samples per cut; 64,600 as released.
    """

    width = None  # it reads no features

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
        self.first_bn = BatchNorm(SINC_FILTERS, dtype)
        for index, (inputs, outputs) in enumerate(itertools.pairwise((SINC_FILTERS, *widths))):
            block = Block(inputs, outputs, rngs, precision, first=index == 0)
            setattr(self, f"block{index}", nnx.Sequential(block))
            setattr(self, f"fc_attention{index}", nnx.Sequential(linear(outputs, outputs, rngs, dtype)))
        self.bn_before_gru = BatchNorm(widths[-1], dtype)
        self.gru = GRU(widths[-1], hidden, GRU_LAYERS, rngs, precision)
        self.fc1_gru = linear(hidden, hidden, rngs, dtype)
        self.fc2_gru = linear(hidden, 2, rngs, dtype)

    @property
    def kind(self) -> dict[str, str]:
        """Description of the network that its weight file records."""
        return {"samples": str(self.samples)}

    @property
    def dtype(self) -> DTypeLike:
        """Dtype of parameters, norms and log-probabilities."""
        return ARITHMETIC[self.precision][0]

    @property
    def least_samples(self) -> int:
        """Minimum samples per cut that leave a step after all poolings: 3,211 with six blocks."""
        return TAPS - 1 + POOLED_STEPS ** (len(self.widths) + 1)

    def __call__(self, sound: Float[Array, "B S"], training: bool = False) -> Float[Array, "B 2"]:
        """Returns the log-probabilities of fake (first) and real.

        Args:
          sound: samples in [-1, 1], at least `least_samples`; the released weights expect 64,600.
          training: whether batch norms use the batch's statistics and update the running ones.
        """
        assert sound.shape[1] >= self.least_samples, f"{sound.shape[1]} samples, fewer than {self.least_samples}"
        return self.classify(loudness(sound.astype(self.dtype)), training)

    def classify(self, heard: Float[Array, "B U F"], training: bool = False) -> Float[Array, "B 2"]:
        """Returns the same as `__call__`, given the `loudness` of the sound."""
        return dict(self.stages(heard, training))["log_probs"]

    def stages(self, heard: Float[Array, "B U F"], training: bool = False) -> Iterator[tuple[str, Array]]:
        """Yields the output of every step with its name in the official program; the log-probabilities come last."""
        products = ARITHMETIC[self.precision][1]
        hidden = nnx.selu(self.first_bn(heard, training))
        yield "front_selu", hidden
        for index in range(len(self.widths)):
            block, attention = (getattr(self, f"{part}{index}").layers[0] for part in ("block", "fc_attention"))
            hidden = block(hidden, training)
            yield f"block{index}_out", hidden
            gate = nnx.sigmoid(apply_linear(attention, jnp.mean(hidden, axis=1), products))
            yield f"fms{index}_gate", gate
            hidden = hidden * gate[:, None] + gate[:, None]
            yield f"fms{index}_out", hidden
        hidden = nnx.selu(self.bn_before_gru(hidden, training))
        yield "gru_in", hidden
        states = self.gru(hidden)
        yield "gru_out", states
        hidden = apply_linear(self.fc1_gru, states[:, -1], products)  # no activation follows
        yield "fc1_out", hidden
        logits = apply_linear(self.fc2_gru, hidden, products)
        yield "logits", logits
        yield "log_probs", nnx.log_softmax(logits)
