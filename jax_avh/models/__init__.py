"""Networks, window scores with their loss, and weight files."""

from jax_avh.models.alignment import AlignmentNetwork
from jax_avh.models.windows import windowed_softmax_loss

__all__ = ["AlignmentNetwork", "windowed_softmax_loss"]
