"""AVH-Align: trained on real clips to tell a frame's own audio from the audio around it; a poor match means fake.

Source: AVH-Align, section 4.
"""

import jax
from jaxtyping import Array, Float

from jax_avh.config import ModelConfig
from jax_avh.models import AlignmentNetwork, FrameBatch, window_scores, windowed_softmax_loss

NAME = "avh_align"
CLIP_POOLING = "logsumexp"  # of the frame scores: the method's own clip score


def frame_losses(network: AlignmentNetwork, batch: FrameBatch, config: ModelConfig) -> Float[Array, "C T"]:
    """Windowed softmax loss of every visual frame.

    Args:
      network: the alignment network.
      batch: C chunks of the stream (a leading axis on every array).
      config: the window and its boundary.

    Returns:
      Losses, padding included: weigh them.
    """

    def chunk_losses(chunk: FrameBatch) -> Float[Array, " T"]:
        return windowed_softmax_loss(*window_scores(network, chunk, config.boundary))

    return jax.vmap(chunk_losses)(batch)


def frame_scores(
    network: AlignmentNetwork, visual: Float[Array, "*T D"], audio: Float[Array, "*T D"]
) -> Float[Array, "*T"]:
    """Fakeness of each frame: minus the score of its own pair."""
    return -network(visual, audio)
