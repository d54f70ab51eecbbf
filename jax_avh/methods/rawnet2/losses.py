"""RawNet2's loss: cross-entropy in which a real cut weighs nine times a fake one."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from avh_shards import REAL

CLASS_WEIGHTS = 0.1, 0.9  # of fake and real, in the order of the network's outputs


def weighted_cross_entropy(
    log_probs: Float[Array, "B 2"], label: Int[Array, " B"], weight: Float[Array, " B"]
) -> Float[Array, ""]:
    """Mean of -log p of each cut's own class, weighted by that class.

    Args:
      log_probs: of fake and real.
      label: 0 real, 1 fake.
      weight: 1 = a cut that counts, 0 = padding; one counts at least.

    Returns:
      The mean, in nats.
    """
    own = (label == REAL).astype(label.dtype)  # the outputs' order is the other way round
    weight = weight * jnp.asarray(CLASS_WEIGHTS, weight.dtype)[own]
    losses = -jnp.take_along_axis(log_probs, own[:, None], axis=1)[:, 0]
    return jnp.sum(weight * losses) / jnp.sum(weight)
