"""Networks on frames, window scores and their loss, and files of weights."""

from jax_avh.models.alignment import (
    MODALITY_FEATURES,
    NETWORKS,
    AlignmentNetwork,
    FrameNetwork,
    LinearNetwork,
    plain_scores,
)
from jax_avh.models.weights import (
    BEST_WEIGHTS,
    check_features,
    load_weights,
    parameter_table,
    read_notes,
    save_weights,
    weights_file,
)
from jax_avh.models.windows import window_scores, windowed_softmax_loss

__all__ = [
    "BEST_WEIGHTS",
    "MODALITY_FEATURES",
    "NETWORKS",
    "AlignmentNetwork",
    "FrameNetwork",
    "LinearNetwork",
    "check_features",
    "load_weights",
    "parameter_table",
    "plain_scores",
    "read_notes",
    "save_weights",
    "weights_file",
    "window_scores",
    "windowed_softmax_loss",
]
