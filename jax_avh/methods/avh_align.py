"""AVH-Align: trained on real clips to tell a frame's own audio from the audio around it; a poor match means fake.

Source: AVH-Align, section 4.
"""

from jaxtyping import Array, Float

from jax_avh.config import ModelConfig
from jax_avh.models import AlignmentNetwork, FrameBatch, window_scores, windowed_softmax_loss

NAME = "avh_align"
CLIP_POOLING = "logsumexp"  # of the frame scores: the method's own clip score


def frame_losses(network: AlignmentNetwork, batch: FrameBatch, config: ModelConfig) -> Float[Array, " T"]:
    """Windowed softmax loss of every visual frame.

    Args:
      network: the alignment network.
      batch: frames of the stream.
      config: the window's boundary.

    Returns:
      Losses, padding included: weigh them.
    """
    return windowed_softmax_loss(*window_scores(network, batch, config.boundary))


def frame_scores(
    network: AlignmentNetwork, visual: Float[Array, "*T D"], audio: Float[Array, "*T D"]
) -> Float[Array, "*T"]:
    """Fakeness of each frame: minus the score of its own pair."""
    return -network(visual, audio)
