"""Losses: pure, masked, unreduced."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def windowed_softmax_loss(scores: Float[Array, "*T W"], valid: Bool[Array, "*T W"] | None = None) -> Float[Array, "*T"]:
    """-log softmax over a window of scores, at its centre: small when the frame's own audio scores highest.

    Args:
      scores: of each visual frame with the W = 2 tau + 1 audio frames around it, the aligned one in the middle.
      valid: which of them compete (the centre always must); None = all.

    Returns:
      The loss of each visual frame, in nats; log W if all scores are equal.

    References:
      AVH-Align, equations 1-3.
    """
    scores = scores if valid is None else jnp.where(valid, scores, -jnp.inf)
    return jax.nn.logsumexp(scores, axis=-1) - scores[..., scores.shape[-1] // 2]
