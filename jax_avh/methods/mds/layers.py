"""The linear layers of MDS's streams, and what leads to them.

Letters: B chunks, I, J height and width of maps, C channels.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jax_avh.models.layers import DTYPES
from jax_avh.models.torch_layers import BatchNorm, he_normal_by_outputs


def linear(inputs: int, outputs: int, rngs: nnx.Rngs, precision: str = "float32") -> nnx.Linear:
    """A linear layer, its weights drawn as MDS draws them: normal, by the number of outputs; its bias is zero."""
    param_dtype, dtype = DTYPES[precision]
    return nnx.Linear(
        inputs,
        outputs,
        kernel_init=he_normal_by_outputs,
        param_dtype=param_dtype,
        dtype=dtype,
        precision=jax.lax.Precision.HIGHEST,
        rngs=rngs,
    )


def flat(maps: Float[Array, "B I J C"]) -> Float[Array, "B K"]:
    """Each chunk's maps in one row, channel by channel, as the official linear layers want them."""
    return jnp.moveaxis(maps, -1, 1).reshape(len(maps), -1)


def run(layers: nnx.Sequential, inputs: Float[Array, "B *S"], training: bool = False) -> Float[Array, "B *R"]:
    """Layer after layer; in training the batch norms take the batch's own statistics."""
    for layer in layers.layers:
        inputs = layer(inputs, training) if isinstance(layer, BatchNorm) else layer(inputs)
    return inputs
