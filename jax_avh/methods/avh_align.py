"""AVH-Align: trained on real clips to pick a frame's own audio out of the audio around it; a poor match means fake.

Source: AVH-Align (Smeu et al., CVPR 2025), section 4.
"""

import dataclasses

from jaxtyping import Array, Float

from jax_avh.config import MethodConfig, one_of, rules
from jax_avh.data.batches import FrameBatch
from jax_avh.methods.base import FrameMethod, PairScorer
from jax_avh.models.alignment import NETWORKS, FrameNetwork
from jax_avh.models.windows import window_scores, windowed_softmax_loss


@dataclasses.dataclass
class AVHAlignConfig(MethodConfig):
    """Settings of AVH-Align, which is trained on real clips only."""

    name: str = "avh_align"
    head: str = rules("mlp", one_of(NETWORKS))  # "mlp", or "linear" for the ablation of the paper's table 5
    modality: str = rules("both", one_of(("both",)))  # always "both"; avh_sup also takes "audio" or "video"


def frame_losses(network: FrameNetwork, batch: FrameBatch, boundary: str) -> Float[Array, "*chunks T"]:
    """Computes the windowed softmax loss of every visual frame.

    Args:
      network: the alignment network.
      batch: frames, or chunks of frames.
      boundary: how the window treats audio frames outside the clip; see `window_scores`.

    Returns:
      Losses in nats, not reduced and padding included: multiply by `batch.weight`.
    """
    return windowed_softmax_loss(*window_scores(network, batch, boundary))


def outputs(score: PairScorer, batch: FrameBatch) -> Float[Array, "T 1"]:
    """Returns the fakeness of each frame: minus the score of its own pair."""
    return -score(batch.visual, batch.audio)[:, None]


METHOD = FrameMethod(
    name="avh_align",
    real_only=True,
    loss=frame_losses,
    outputs=outputs,
    pooling="logsumexp",
)
