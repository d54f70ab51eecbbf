"""Networks on frames, window scores and losses, and files of weights."""

from jax_avh.models.alignment import AlignmentNetwork
from jax_avh.models.linear import LinearNetwork
from jax_avh.models.losses import clip_cross_entropy, windowed_softmax_loss
from jax_avh.models.network import MODALITIES, FrameNetwork
from jax_avh.models.weights import (
    BEST_WEIGHTS,
    HEADS,
    check_features,
    load_weights,
    parameter_table,
    read_notes,
    save_weights,
    weights_file,
)
from jax_avh.models.windows import FrameBatch, window_scores

__all__ = [
    "BEST_WEIGHTS",
    "HEADS",
    "MODALITIES",
    "AlignmentNetwork",
    "FrameBatch",
    "FrameNetwork",
    "LinearNetwork",
    "check_features",
    "clip_cross_entropy",
    "load_weights",
    "parameter_table",
    "read_notes",
    "save_weights",
    "weights_file",
    "window_scores",
    "windowed_softmax_loss",
]
