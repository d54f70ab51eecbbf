"""AVH-Align/sup: the same features and network, trained on clips labelled real and fake. It is prone to shortcuts.

Source: AVH-Align (Smeu et al., CVPR 2025), section 3 and table 5.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jax_avh.config import MethodConfig, one_of, rules
from jax_avh.data.batches import FrameBatch
from jax_avh.methods.base import FrameMethod, PairScorer
from jax_avh.models.alignment import MODALITY_FEATURES, NETWORKS, FrameNetwork


@dataclasses.dataclass
class AVHSupConfig(MethodConfig):
    """Settings of AVH-Align/sup, which is trained on clips of both labels."""

    name: str = "avh_sup"
    head: str = rules("mlp", one_of(NETWORKS))  # "mlp", or "linear" for the ablation of the paper's table 5
    modality: str = rules("both", one_of(MODALITY_FEATURES))  # "both", or only "audio" or "video"


def frame_logits(network: FrameNetwork, batch: FrameBatch, boundary: str) -> Float[Array, "*chunks T"]:
    """Computes the fakeness of every frame, padding included, without regard to its neighbours."""
    return network(batch.visual, batch.audio)


def clip_cross_entropy(
    logits: Float[Array, " T"], clip: Int[Array, " T"], label: Int[Array, " T"], weight: Float[Array, " T"]
) -> Float[Array, ""]:
    """Sums the cross-entropies of the labels of whole clips, with P(fake) = sigmoid(2 s), s = log-sum-exp of the clip.

    Args:
      logits: fakeness of each frame.
      clip: number of each frame's clip, which neighbouring clips must not share.
      label: label of each frame's clip, 0 real, 1 fake.
      weight: 1 = a frame that counts, 0 = one that is left out.

    Returns:
      The sum, in nats.

    References:
      AVH-Align/sup: the two classes' logits are -s and s.
    """
    kept = weight > 0
    segment = jnp.cumsum(jnp.concatenate([jnp.zeros(1, bool), clip[1:] != clip[:-1]]), dtype=jnp.int32)
    # A TPU takes unsorted segments one by one.
    rising = {"segment_ids": segment, "num_segments": len(logits), "indices_are_sorted": True}
    highest = jax.ops.segment_max(jax.lax.stop_gradient(logits), **rising)
    there = jax.ops.segment_max(weight, **rising) > 0
    total = jax.ops.segment_sum(jnp.where(kept, jnp.exp(logits - highest[segment]), 0), **rising)
    pooled = jnp.where(there, jnp.log(jnp.where(there, total, 1)) + jnp.where(there, highest, 0), 0)
    sign = 1 - 2 * jax.ops.segment_max(label, **rising).astype(logits.dtype)
    return jnp.sum(jnp.where(there, jax.nn.softplus(2 * pooled * sign), 0))


def outputs(score: PairScorer, batch: FrameBatch) -> Float[Array, "T 1"]:
    """Returns the fakeness of each frame."""
    return score(batch.visual, batch.audio)[:, None]


METHOD = FrameMethod(
    name="avh_sup",
    loss=frame_logits,
    reduce=clip_cross_entropy,
    whole_clips=True,
    outputs=outputs,
    pooling="logsumexp",
    threshold=0.0,  # P(fake) = sigmoid(2 s) = 1/2
)
