"""Array functions optimised for CPUs, where XLA's own forms are slow; used by RawNet2 and MDS.

Each computes the same as its plain jax.lax form (tests compare them, gradients included). Speed relative to that form,
on two cores of an Intel Xeon in float32, at the sizes of the released networks:

| function | used in | pass | gain |
|---|---|---|---|
| `convolve` | MDS, all convolutions | gradients | 1.2 to 1.6 times as fast, 8 to 10 times for 3-D with strides |
| `max_pool_3x3` | MDS, poolings | both, in training | 2.5 times as fast (only the forward pass is slower) |
| `gru_states` | RawNet2, recurrent layers | both, in training | 2 to 3 times as fast |
| `fft_correlate` | RawNet2, sinc filters | forward; they are frozen | 9 times as fast, one cut at a time |

On other backends, `convolve` uses XLA's gradients; the other functions are the same everywhere.

Letters: B examples, S sizes before a layer, R after it, C channels in, D channels out. GRU: T steps, H hidden width,
G = 3 H (reset, update and new, in this order). Filters: S samples, F filters, T samples at which all taps overlap.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.lax import Precision
from jaxtyping import Array, Float

from jax_avh.models.layers import Products, cast_product, larger, product, row
from jax_avh.parallel import target_platform

POOL_SIDE = 3  # pixels along each axis of a pooling
GROUP = 2  # examples per gradient computation, so that their patches stay in a CPU's cache
# Samples per Fourier transform. On a CPU, in ms per cut of 64,600 samples: one transform of the whole cut 32, pieces
# of 4,096 to 24,576 samples 15, a plain convolution 70, products with a Toeplitz matrix 52.
PIECE = 8192


# --- convolution -----------------------------------------------------------------------------------------------------


def xla_convolve(
    inputs: Float[Array, "B *S C"],
    kernel: Float[Array, "*K C D"],
    strides: tuple[int, ...],
    padding: tuple[int, ...],
    precision: Precision = Precision.HIGHEST,
) -> Float[Array, "B *R D"]:
    """Convolves along the one to three axes between batch and channels, in the inputs' dtype, with XLA's gradients.

    Args:
      inputs: examples with channels last.
      kernel: kernel of any size along each of these axes.
      strides: stride along each axis.
      padding: zeros added on both sides of each axis.
      precision: precision of the products.
    """
    axes = "THW"[-len(strides) :]
    return jax.lax.conv_general_dilated(
        inputs,
        kernel.astype(inputs.dtype),
        strides,
        [(zeros, zeros) for zeros in padding],
        dimension_numbers=(f"N{axes}C", f"{axes}IO", f"N{axes}C"),
        precision=precision,
    )


# The same function, but on CPUs its gradients are computed as matrix products.
convolve = jax.custom_vjp(xla_convolve, nondiff_argnums=(2, 3, 4))


def _convolve_forward(
    inputs: Float[Array, "B *S C"],
    kernel: Float[Array, "*K C D"],
    strides: tuple[int, ...],
    padding: tuple[int, ...],
    precision: Precision,
) -> tuple[Float[Array, "B *R D"], tuple[Float[Array, "B *S C"], Float[Array, "*K C D"]]]:
    return xla_convolve(inputs, kernel, strides, padding, precision), (inputs, kernel)


def _convolve_backward(
    strides: tuple[int, ...],
    padding: tuple[int, ...],
    precision: Precision,
    saved: tuple[Float[Array, "B *S C"], Float[Array, "*K C D"]],
    cotangents: Float[Array, "B *R D"],
) -> tuple[Float[Array, "B *S C"], Float[Array, "*K C D"]]:
    inputs, kernel = saved
    if target_platform() != "cpu":
        plain = functools.partial(xla_convolve, strides=strides, padding=padding, precision=precision)
        if inputs.dtype == kernel.dtype:
            return jax.vjp(plain, inputs, kernel)[1](cotangents)
        of_inputs = jax.vjp(lambda inputs: plain(inputs, kernel), inputs)[1](cotangents)[0]
        return of_inputs, _kernel_gradient(inputs, kernel, strides, padding, cotangents)
    matrix = kernel.astype(inputs.dtype).reshape(-1, kernel.shape[-1])

    def add_group(
        total: Float[Array, "D K"], group: tuple[Float[Array, "b *S C"], Float[Array, "b *R D"]]
    ) -> tuple[Float[Array, "D K"], Float[Array, "b *S C"]]:
        inputs, cotangents = group
        seen, pull_back = jax.vjp(lambda inputs: patches(inputs, kernel.shape[:-2], strides, padding), inputs)
        # A sum this long takes half the time with the output channels first.
        summand = product(cotangents.reshape(-1, matrix.shape[1]).T, seen.reshape(-1, matrix.shape[0]))
        return total + summand.astype(total.dtype), pull_back(product(cotangents, matrix.T))[0]

    size = math.gcd(len(inputs), GROUP)
    groups = (
        inputs.reshape(-1, size, *inputs.shape[1:]),
        cotangents.reshape(-1, size, *cotangents.shape[1:]),
    )
    zeros = jnp.zeros(matrix.T.shape, kernel.dtype)
    total, of_inputs = jax.lax.scan(add_group, zeros, groups)
    return of_inputs.reshape(inputs.shape), total.T.reshape(kernel.shape)


def _kernel_gradient(
    inputs: Float[Array, "B *S C"],
    kernel: Float[Array, "*K C D"],
    strides: tuple[int, ...],
    padding: tuple[int, ...],
    cotangents: Float[Array, "B *R D"],
) -> Float[Array, "*K C D"]:
    """Returns the kernel's gradient in its own dtype, in which devices then add it up: a convolution over examples."""
    axes = "THW"[-len(strides) :]
    sizes = zip(kernel.shape[:-2], strides, padding, inputs.shape[1:-1], cotangents.shape[1:-1], strict=True)
    around = [(zeros, size + (r - 1) * stride - s - zeros) for size, stride, zeros, s, r in sizes]
    return jax.lax.conv_general_dilated(
        inputs,
        cotangents,
        (1,) * len(strides),
        around,
        rhs_dilation=strides,
        dimension_numbers=(f"C{axes}N", f"I{axes}O", f"{axes}NC"),
        precision=Precision.HIGHEST,
        preferred_element_type=kernel.dtype,
    )


convolve.defvjp(_convolve_forward, _convolve_backward)


def patches(
    inputs: Float[Array, "B *S C"], sizes: tuple[int, ...], strides: tuple[int, ...], padding: tuple[int, ...]
) -> Float[Array, "B *R K"]:
    """Returns the values under a kernel of these sizes, one row per position: a convolution is this times a matrix."""
    seen = jnp.pad(inputs, ((0, 0), *((zeros, zeros) for zeros in padding), (0, 0)))
    for axis in range(len(sizes), 0, -1):
        seen = jnp.concatenate(neighbours(seen, axis, sizes[axis - 1], strides[axis - 1]), axis=-1)
    return seen


def neighbours(inputs: Float[Array, "*S"], axis: int, size: int, stride: int) -> list[Float[Array, "*R"]]:
    """Returns the first, second, ... values under a window of `size` at all its positions along an axis."""
    places = inputs.shape[axis] - size + 1
    return [jax.lax.slice_in_dim(inputs, tap, tap + places, stride, axis) for tap in range(size)]


# --- pooling ---------------------------------------------------------------------------------------------------------


def max_pool_3x3(
    inputs: Float[Array, "*B H W C"], strides: tuple[int, int], padding: int = 0
) -> Float[Array, "*B I J C"]:
    """Takes the largest value of every 3 x 3 pixels, along one axis after the other.

    Args:
      inputs: maps with channels last.
      strides: stride along height and width.
      padding: pixels of -inf added on each side.
    """
    around = [(0, 0)] * (inputs.ndim - 3) + [(padding, padding)] * 2 + [(0, 0)]
    largest = jnp.pad(inputs, around, constant_values=-jnp.inf)
    for axis, stride in zip((inputs.ndim - 3, inputs.ndim - 2), strides, strict=True):
        largest = functools.reduce(larger, neighbours(largest, axis, POOL_SIDE, stride))
    return largest


# --- recurrent layers ------------------------------------------------------------------------------------------------


def gru_cell(
    state: Float[Array, "B H"], given: Float[Array, "B G"], recalled: Float[Array, "B G"]
) -> Float[Array, "B H"]:
    """Computes the next state of a gated recurrent unit.

    Args:
      state: h, the previous state.
      given: W_i x + b_i.
      recalled: W_h h + b_h.

    References:
      The documentation of torch.nn.GRU: the reset gate comes after the recurrent product and its bias.
    """
    reset, update, new = jnp.split(given, 3, axis=-1)
    reset_h, update_h, new_h = jnp.split(recalled, 3, axis=-1)
    new = jnp.tanh(new + nnx.sigmoid(reset + reset_h) * new_h)
    return new + nnx.sigmoid(update + update_h) * (state - new)


def _gru_states(
    given: Float[Array, "T B G"], weight: Float[Array, "G H"], bias: Float[Array, " G"], products: Products
) -> Float[Array, "T B H"]:
    """Computes a recurrent layer's state at every step, from an initial state of zeros.

    Args:
      given: W_i x + b_i of every step.
      weight: W_h.
      bias: b_h.
      products: how matrices are multiplied.
    """
    return _gru_forward(given, weight, bias, products)[0]


# JAX's gradient of the scan adds to the weight's gradient at every step; this one needs one product after the last.
gru_states = jax.custom_vjp(_gru_states, nondiff_argnums=(3,))


def _gru_forward(given, weight, bias, products):
    def step(state, given):
        recalled = cast_product(state, weight.T, products) + row(bias, 2)
        following = gru_cell(state, given, recalled)
        return following, (following, (state, given, recalled))

    first = jnp.zeros_like(given[0, :, : weight.shape[1]])
    _, (states, arguments) = jax.lax.scan(step, first, given)
    return states, (arguments, weight)


def _gru_backward(products, saved, cotangents):
    arguments, weight = saved

    def step(later, at_step):
        arguments, cotangent = at_step
        past, given, recalled = jax.vjp(gru_cell, *arguments)[1](later + cotangent)
        return past + cast_product(recalled, weight, products), (given, recalled)

    last = jnp.zeros_like(cotangents[0])
    _, (given, recalled) = jax.lax.scan(step, last, (arguments, cotangents), reverse=True)
    factors = recalled.astype(products.dtype), arguments[0].astype(products.dtype)
    of_weight = jnp.tensordot(
        *factors, axes=((0, 1), (0, 1)), precision=products.of_matrices, preferred_element_type=weight.dtype
    )
    return given, of_weight, jnp.sum(recalled, axis=(0, 1))


gru_states.defvjp(_gru_forward, _gru_backward)


# --- filters ---------------------------------------------------------------------------------------------------------


def fft_correlate(sound: Float[Array, " S"], filters: Float[np.ndarray, "F taps"]) -> Float[Array, "F T"]:
    """Correlates a sound with every filter using Fourier transforms of overlapping pieces; T = S - taps + 1."""
    taps = filters.shape[1]
    reached = sound.size - (taps - 1)
    hop = PIECE - (taps - 1)
    starts = range(0, reached, hop)
    padded = jnp.pad(sound, (0, starts[-1] + PIECE - sound.size))
    spectra = jnp.fft.rfft(jnp.stack([padded[start : start + PIECE] for start in starts]))
    # The conjugate turns convolution into correlation, which looks ahead: the first `hop` samples of a piece are valid.
    responses = jnp.asarray(np.fft.rfft(filters, PIECE).conj(), spectra.dtype)
    waves = jnp.fft.irfft(spectra[None] * responses[:, None], PIECE)
    return waves[..., :hop].reshape(len(filters), -1)[:, :reached]
