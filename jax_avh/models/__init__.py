"""Networks on frames, window scores and their loss, and files of weights."""

from jax_avh.models.alignment import AlignmentNetwork
from jax_avh.models.windows import windowed_softmax_loss

__all__ = ["AlignmentNetwork", "windowed_softmax_loss"]
