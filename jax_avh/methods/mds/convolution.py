"""Convolutions and poolings of pictures and of sequences of pictures, whose gradients are fast on CPUs too.

Letters: B examples, S sizes before a layer, R after it, C channels in, D out.
"""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jax_avh.models.layers import DTYPES, product, row
from jax_avh.models.torch_layers import he_normal_by_outputs

POOL = 3  # pixels
GROUP = 2  # examples of which the gradient is taken at once: their patches stay in a CPU's cache


class Convolution(nnx.Module):
    """A convolution over space, or over time and space; zeros lie around its input, half a kernel wide.

    Its kernel is [*sizes, in, out].
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
        param_dtype, self.dtype = DTYPES[precision]
        self.kernel = nnx.Param(he_normal_by_outputs(rngs.params(), (*kernel, inputs, outputs), param_dtype))
        self.bias = nnx.Param(jnp.zeros(outputs, param_dtype)) if bias else None
        self.strides = strides or (1,) * len(kernel)
        self.padding = tuple(size // 2 if padded else 0 for size in kernel)

    def __call__(self, inputs: Float[Array, "B *S C"]) -> Float[Array, "B *R D"]:
        """In the precision of the products."""
        inputs, kernel = inputs.astype(self.dtype), self.kernel[...].astype(self.dtype)
        if self.kernel.ndim == 5 and self.kernel.shape[0] == 1:  # looks at each frame alone
            frames = inputs[:, :: self.strides[0]]
            pictures = frames.reshape(-1, *frames.shape[2:])
            outputs = convolve(pictures, kernel[0], self.strides[1:], self.padding[1:])
            outputs = outputs.reshape(*frames.shape[:2], *outputs.shape[1:])
        else:
            outputs = convolve(inputs, kernel, self.strides, self.padding)
        return outputs if self.bias is None else outputs + row(self.bias[...].astype(self.dtype), outputs.ndim)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def convolve(
    inputs: Float[Array, "B *S C"], kernel: Float[Array, "*K C D"], strides: tuple[int, ...], padding: tuple[int, ...]
) -> Float[Array, "B *R D"]:
    """XLA's own convolution, but on CPUs its gradients are those of a matrix product.

    There XLA's own take up to four times as long, and 17 times where a 3-D convolution has strides.

    Args:
      inputs: along one to three axes between the examples and their channels.
      kernel: of any sizes along these.
      strides: along them.
      padding: zeros on both sides of each.
    """
    return xla_convolve(inputs, kernel, strides, padding)


def xla_convolve(
    inputs: Float[Array, "B *S C"], kernel: Float[Array, "*K C D"], strides: tuple[int, ...], padding: tuple[int, ...]
) -> Float[Array, "B *R D"]:
    """The same with XLA's gradients."""
    axes = "THW"[-len(strides) :]
    return jax.lax.conv_general_dilated(
        inputs,
        kernel,
        strides,
        [(zeros, zeros) for zeros in padding],
        dimension_numbers=(f"N{axes}C", f"{axes}IO", f"N{axes}C"),
        precision=jax.lax.Precision.HIGHEST,
    )


def patches(
    inputs: Float[Array, "B *S C"], sizes: tuple[int, ...], strides: tuple[int, ...], padding: tuple[int, ...]
) -> Float[Array, "B *R K"]:
    """What a kernel of these sizes sees at each place, in a row: convolution is this times the kernel as a matrix."""
    seen = jnp.pad(inputs, ((0, 0), *((zeros, zeros) for zeros in padding), (0, 0)))
    for axis in range(len(sizes), 0, -1):
        seen = jnp.concatenate(neighbours(seen, axis, sizes[axis - 1], strides[axis - 1]), axis=-1)
    return seen


def gradients_by_patches(
    inputs: Float[Array, "B *S C"],
    kernel: Float[Array, "*K C D"],
    cotangents: Float[Array, "B *R D"],
    strides: tuple[int, ...],
    padding: tuple[int, ...],
) -> tuple[Float[Array, "B *S C"], Float[Array, "*K C D"]]:
    """A convolution's gradients for its inputs and its kernel, a few examples at a time."""
    matrix = kernel.reshape(-1, kernel.shape[-1])

    def of_group(total: Array, group: tuple[Array, Array]) -> tuple[Array, Array]:
        inputs, cotangents = group
        seen, back = jax.vjp(lambda inputs: patches(inputs, kernel.shape[:-2], strides, padding), inputs)
        # In this order, the outputs' channels first, so long a sum takes half the time.
        summand = product(cotangents.reshape(-1, matrix.shape[1]).T, seen.reshape(-1, matrix.shape[0]))
        return total + summand.astype(total.dtype), back(product(cotangents, matrix.T))[0]

    size = math.gcd(len(inputs), GROUP)
    groups = tuple(array.reshape(-1, size, *array.shape[1:]) for array in (inputs, cotangents))
    zeros = jnp.zeros(matrix.T.shape, jnp.float32 if kernel.dtype == jnp.bfloat16 else kernel.dtype)
    total, of_inputs = jax.lax.scan(of_group, zeros, groups)
    return of_inputs.reshape(inputs.shape), total.T.reshape(kernel.shape).astype(kernel.dtype)


def max_pool(inputs: Float[Array, "*B H W C"], strides: tuple[int, int], padding: int = 0) -> Float[Array, "*B I J C"]:
    """The largest of every 3 x 3 pixels, along one axis after the other.

    On CPUs the gradient of XLA's own form takes four times as long.
    """
    around = [(0, 0)] * (inputs.ndim - 3) + [(padding, padding)] * 2 + [(0, 0)]
    largest = jnp.pad(inputs, around, constant_values=-jnp.inf)
    for axis, stride in zip((inputs.ndim - 3, inputs.ndim - 2), strides, strict=True):
        largest = functools.reduce(jnp.maximum, neighbours(largest, axis, POOL, stride))
    return largest


def neighbours(inputs: Float[Array, "*S"], axis: int, size: int, stride: int) -> list[Float[Array, "*R"]]:
    """The first, second, ... value under a window of some size at all of its places along an axis."""
    places = inputs.shape[axis] - size + 1
    return [jax.lax.slice_in_dim(inputs, tap, tap + places, stride, axis) for tap in range(size)]


def _forward(
    inputs: Float[Array, "B *S C"], kernel: Float[Array, "*K C D"], strides: tuple[int, ...], padding: tuple[int, ...]
) -> tuple[Float[Array, "B *R D"], tuple[Float[Array, "B *S C"], Float[Array, "*K C D"]]]:
    return convolve(inputs, kernel, strides, padding), (inputs, kernel)


def _backward(
    strides: tuple[int, ...],
    padding: tuple[int, ...],
    given: tuple[Float[Array, "B *S C"], Float[Array, "*K C D"]],
    cotangents: Float[Array, "B *R D"],
) -> tuple[Float[Array, "B *S C"], Float[Array, "*K C D"]]:
    if jax.default_backend() == "cpu":
        return gradients_by_patches(*given, cotangents, strides, padding)
    return jax.vjp(lambda *given: xla_convolve(*given, strides, padding), *given)[1](cotangents)


convolve.defvjp(_forward, _backward)
