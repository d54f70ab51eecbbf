"""What a detector says of itself: what it reads, how it learns if it does, and its scores. Higher = more fake.

Letters: T frames, N clips, K outputs a frame.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int, Int64

from jax_avh.config import ModelConfig
from jax_avh.data.source import FeatureSource
from jax_avh.models import FrameBatch, FrameNetwork

PairScorer = Callable[[Array, Array], Array]  # scores of visual [T, D] and audio [T, D] frames: [T]


class Training(NamedTuple):
    """How a method learns: a value for each frame, and the loss of a batch of them."""

    real_only: bool  # clips labelled fake are left out
    whole_clips: bool  # the loss is a sum over whole clips; otherwise over frames
    frame_values: Callable[[FrameNetwork, FrameBatch, ModelConfig], Float[Array, " T"]]
    # (values, clip numbers, labels, weights of the frames) -> sum of the batch's losses, in nats
    loss: Callable[[Float[Array, " T"], Int[Array, " T"], Int[Array, " T"], Float[Array, " T"]], Float[Array, ""]]


@dataclasses.dataclass(frozen=True)
class FrameMethod:
    """A detector that scores frames by their features; a pooling of them is the clip's score."""

    name: str
    outputs: Callable[[PairScorer | None, FrameBatch], Float[Array, "T K"]]  # by its network, if it has one
    pooling: str  # of the frame scores: the method's own clip score
    tau: int = 0  # audio frames on each side that a frame needs
    # Outputs of whole clips and the clips' borders -> frame scores, and what of them the clip score pools.
    frame_scores: Callable[[Float[np.ndarray, "T K"], Int64[np.ndarray, "borders"]], Float[np.ndarray, " T"]] = (
        lambda outputs, border: outputs[:, 0]
    )
    training: Training | None = None
    threshold: float | None = None  # clip score from which on a clip is called fake, if the method has one


@dataclasses.dataclass(frozen=True)
class ClipMethod:
    """A detector that scores clips alone."""

    name: str
    score: Callable[[FeatureSource, int], float]  # of a clip of a source
    needs: tuple[str, ...] = ()  # optional contents of the shards that it reads
