"""The alignment network, its window scores and loss, and its files of weights."""

from jax_avh.models.alignment import AlignmentNetwork
from jax_avh.models.losses import windowed_softmax_loss
from jax_avh.models.weights import BEST_WEIGHTS, load_weights, parameter_table, save_weights, weights_file
from jax_avh.models.windows import FrameBatch, window_scores

__all__ = [
    "BEST_WEIGHTS",
    "AlignmentNetwork",
    "FrameBatch",
    "load_weights",
    "parameter_table",
    "save_weights",
    "weights_file",
    "window_scores",
    "windowed_softmax_loss",
]
