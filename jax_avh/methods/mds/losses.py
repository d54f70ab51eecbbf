"""MDS's losses and its score: how far apart the two embeddings of a chunk lie, and what each says alone.

Source: MDS, section 3, as the released program computes it.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from avh_shards import REAL

MARGIN = 0.99  # distance that a fake's embeddings must keep


def distance(of_picture: Float[Array, "B E"], of_sound: Float[Array, "B E"]) -> Float[Array, " B"]:
    """Euclidean: a chunk's score, higher = more fake. Its gradient is zero where the two are equal."""
    square = jnp.sum(jnp.square(of_picture - of_sound), axis=-1)
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)


def losses(
    of_picture: Float[Array, "B E"],
    of_sound: Float[Array, "B E"],
    picture_logits: Float[Array, "B 2"],
    sound_logits: Float[Array, "B 2"],
    label: Int[Array, " B"],
    weight: Float[Array, " B"],
    margin: float = MARGIN,
) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
    """Contrastive loss and the cross-entropies of picture and sound, in nats; training minimises their sum.

    Args:
      of_picture: embeddings.
      of_sound: embeddings.
      picture_logits: of fake (first) and real.
      sound_logits: of fake (first) and real.
      label: 0 real, 1 fake.
      weight: 1 = a chunk that counts, 0 = padding; one counts at least.
      margin: distance up to which fakes cost something.

    Returns:
      Means over the chunks that count.
    """
    real = label == REAL
    together = jnp.sum(jnp.square(of_picture - of_sound), axis=-1)
    apart = jnp.square(jnp.maximum(margin - distance(of_picture, of_sound), 0))
    own = real.astype(label.dtype)  # the outputs' order is the other way round
    entropies = (
        -jnp.take_along_axis(jax.nn.log_softmax(logits), own[:, None], axis=1)[:, 0]
        for logits in (picture_logits, sound_logits)
    )
    of_chunks = (jnp.where(real, together, apart), *entropies)
    return tuple(jnp.sum(weight * values) / jnp.sum(weight) for values in of_chunks)
