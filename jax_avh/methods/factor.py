"""FACTOR, its audio-visual part: how alike the features of both modalities are, frame by frame. Needs no training.

Source: FACTOR (Reiss et al., 2023): a clip's truth score is the 3rd percentile over its frames.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_avh.data.batches import FrameBatch
from jax_avh.methods.base import FrameMethod, Reference
from jax_avh.models.layers import normalise


def outputs(score: None, batch: FrameBatch) -> Float[Array, "T 1"]:
    """Fakeness of each frame: minus the cosine of its two features; 0 where one is a zero vector."""
    return -jnp.sum(normalise(batch.visual) * normalise(batch.audio), axis=-1, keepdims=True)


METHOD = FrameMethod(
    name="factor",
    reference=Reference("FACTOR, Reiss et al., 2023"),
    outputs=outputs,
    pooling="percentile",  # the 97th of what is negated
)
