"""How far a window's delays are from what the decoder predicted: AVAD's loss and its score.

All give a value in nats for each of the N = windows - 1 predicted steps; step t is about window t + 1. The target is
the softmax of that window's scores. Letters: B sequences, N steps, W delays.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def soft_cross_entropy(scores: Float[Array, "B windows W"], logits: Float[Array, "B N W"]) -> Float[Array, "B N"]:
    """Cross-entropy of the predicted distribution against the target: the training loss.

    Args:
      scores: of every window, as the synchronisation network gives them.
      logits: of the windows from the second on, as the decoder predicts them.

    References:
      AVAD's preprint (arXiv 2301.01767), equation 5.
    """
    return -jnp.sum(jnp.exp(_log_target(scores, logits)) * jax.nn.log_softmax(logits), axis=-1)


def kl_divergence(scores: Float[Array, "B windows W"], logits: Float[Array, "B N W"]) -> Float[Array, "B N"]:
    """KL(target || predicted): the score, higher = more fake. The training loss less the target's entropy.

    Args:
      scores: of every window, as the synchronisation network gives them.
      logits: of the windows from the second on, as the decoder predicts them.
    """
    log_target = _log_target(scores, logits)
    return jnp.sum(jnp.exp(log_target) * (log_target - jax.nn.log_softmax(logits)), axis=-1)


def valid_steps(lengths: Int[Array, " B"], windows: int) -> Bool[Array, "B N"]:
    """Which steps of sequences of so many windows are about a window of the clip; none for a clip of one window."""
    return jnp.arange(1, windows, dtype=lengths.dtype)[None] < lengths[:, None]


def _log_target(scores: Float[Array, "B windows W"], logits: Float[Array, "B N W"]) -> Float[Array, "B N W"]:
    return jax.nn.log_softmax(scores[:, 1:].astype(logits.dtype))
