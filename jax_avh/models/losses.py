"""Losses: pure and masked."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


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


def clip_cross_entropy(
    logits: Float[Array, " T"], clip: Int[Array, " T"], label: Int[Array, " T"], weight: Float[Array, " T"]
) -> Float[Array, ""]:
    """Sum over whole clips of the cross-entropy of their labels, P(fake) = sigmoid(2 s), s = log-sum-exp of a clip.

    Args:
      logits: fakeness of each frame.
      clip: number of each frame's clip, rising by one from clip to clip.
      label: of its clip, 0 real, 1 fake.
      weight: 1 = a frame that counts, 0 = one that is left out.

    Returns:
      The sum, in nats.

    References:
      AVH-Align/sup: the two classes' logits are -s and s.
    """
    frames, kept = len(logits), weight > 0
    segment = jnp.where(kept, clip - jnp.min(jnp.where(kept, clip, jnp.iinfo(clip.dtype).max)), frames)
    highest = jax.lax.stop_gradient(jax.ops.segment_max(logits, segment, frames + 1))
    there = jax.ops.segment_max(weight, segment, frames + 1)[:frames] > 0
    total = jax.ops.segment_sum(jnp.exp(logits - highest[segment]), segment, frames + 1)[:frames]
    pooled = jnp.where(there, jnp.log(jnp.where(there, total, 1)) + jnp.where(there, highest[:frames], 0), 0)
    sign = 1 - 2 * jax.ops.segment_max(label, segment, frames + 1)[:frames].astype(logits.dtype)
    return jnp.sum(jnp.where(there, jax.nn.softplus(2 * pooled * sign), 0))
