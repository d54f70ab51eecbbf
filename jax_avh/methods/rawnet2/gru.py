"""Gated recurrent units, layer on layer, with PyTorch's equations, names and layout of weights.

Letters: B examples, T steps, I inputs, H hidden width, G = 3 H: reset, update and new, in this order.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jax_avh.models.layers import DTYPES, cast_product, row

PARTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")  # of a layer's parameters


class GRU(nnx.Module):
    """Layers that each read the states of the one below; all start at zero."""

    def __init__(self, inputs: int, hidden: int, layers: int, rngs: nnx.Rngs, precision: str = "float32"):
        self.layers, self.precision = layers, precision
        bound, dtype = hidden**-0.5, DTYPES[precision][0]
        for layer in range(layers):
            shapes = (3 * hidden, hidden if layer else inputs), (3 * hidden, hidden), (3 * hidden,), (3 * hidden,)
            for part, shape in zip(PARTS, shapes, strict=True):
                drawn = jax.random.uniform(rngs.params(), shape, dtype, -bound, bound)
                setattr(self, f"{part}_l{layer}", nnx.Param(drawn))

    def __call__(self, inputs: Float[Array, "B T I"]) -> Float[Array, "B T H"]:
        """States of the last layer."""
        states, dtype = inputs.swapaxes(0, 1), DTYPES[self.precision][1]
        for layer in range(self.layers):
            weight_ih, weight_hh, bias_ih, bias_hh = (getattr(self, f"{part}_l{layer}")[...] for part in PARTS)
            # What does not wait for the step before: one product for all steps.
            given = cast_product(states, weight_ih.T, dtype) + row(bias_ih, 3)
            states = recur(given, weight_hh, bias_hh, dtype)
        return states.swapaxes(0, 1)


def unit(state: Float[Array, "B H"], given: Float[Array, "B G"], recalled: Float[Array, "B G"]) -> Float[Array, "B H"]:
    """The next state.

    Args:
      state: h, the one before.
      given: W_i x + b_i.
      recalled: W_h h + b_h.

    References:
      The documentation of torch.nn.GRU: the reset gate comes after the recurrent product and its bias.
    """
    (reset, update, new), (reset_h, update_h, new_h) = (jnp.split(part, 3, axis=-1) for part in (given, recalled))
    new = jnp.tanh(new + nnx.sigmoid(reset + reset_h) * new_h)
    return new + nnx.sigmoid(update + update_h) * (state - new)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def recur(
    given: Float[Array, "T B G"], weight: Float[Array, "G H"], bias: Float[Array, " G"], dtype: DTypeLike
) -> Float[Array, "T B H"]:
    """States of a layer at every step.

    Its gradient is written out, as the scan's own adds to the weight's gradient at every step: here that is one product
    after the last, which halves the time of the backward pass on a CPU.

    Args:
      given: W_i x + b_i of every step.
      weight: W_h.
      bias: b_h.
      dtype: of the products.
    """
    return _forward(given, weight, bias, dtype)[0]


def _forward(given, weight, bias, dtype):
    def step(state, given):
        recalled = cast_product(state, weight.T, dtype) + row(bias, 2)
        following = unit(state, given, recalled)
        return following, (following, (state, given, recalled))

    first = jnp.zeros_like(given[0, :, : weight.shape[1]])
    _, (states, arguments) = jax.lax.scan(step, first, given)
    return states, (arguments, weight)


def _backward(dtype, saved, cotangents):
    arguments, weight = saved

    def step(later, at_step):
        arguments, cotangent = at_step
        past, given, recalled = jax.vjp(unit, *arguments)[1](later + cotangent)
        return past + cast_product(recalled, weight, dtype), (given, recalled)

    last = jnp.zeros_like(cotangents[0])
    _, (given, recalled) = jax.lax.scan(step, last, (arguments, cotangents), reverse=True)
    factors = (array.astype(dtype) for array in (recalled, arguments[0]))
    of_weight = jnp.tensordot(*factors, axes=((0, 1), (0, 1)), precision=jax.lax.Precision.HIGHEST)
    return given, of_weight.astype(weight.dtype), jnp.sum(recalled, axis=(0, 1))


recur.defvjp(_forward, _backward)
