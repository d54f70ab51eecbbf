"""The alignment network, its window scores and loss, and its files of weights."""

from jax_avh.models.alignment import AlignmentNetwork
from jax_avh.models.losses import windowed_softmax_loss
from jax_avh.models.weights import load_weights, save_weights
from jax_avh.models.windows import FrameBatch, window_scores

__all__ = [
    "AlignmentNetwork",
    "FrameBatch",
    "load_weights",
    "save_weights",
    "window_scores",
    "windowed_softmax_loss",
]
