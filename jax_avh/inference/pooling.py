"""Pooling: the frame scores of a clip become its score. Pure functions, under the names that tables and flags use."""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Float64, Int64

TOP_SHARE = 10  # topk takes one frame in ten
PERCENTILE = 97.0  # FACTOR takes the 3rd percentile of truth scores (Reiss et al. 2023); fakeness is the mirror image


@dataclasses.dataclass(frozen=True)
class PackedScores:
    """Frame scores of N clips end to end; what several poolings need of them is computed once, when first asked for."""

    frame: Float64[np.ndarray, " F"]  # higher = more fake
    offset: Int64[np.ndarray, "borders"]  # clip n is frame[offset[n]:offset[n+1]], at least one frame

    def __post_init__(self):
        assert (self.lengths > 0).all(), "a clip without frames has no score"

    @property
    def starts(self) -> Int64[np.ndarray, " N"]:
        """The first frame of each clip."""
        return self.offset[:-1]

    @functools.cached_property
    def lengths(self) -> Int64[np.ndarray, " N"]:
        """Frames of each clip."""
        return np.diff(self.offset)

    @functools.cached_property
    def peak(self) -> Float64[np.ndarray, " N"]:
        """The highest score of each clip."""
        return np.maximum.reduceat(self.frame, self.starts)

    @functools.cached_property
    def exponential(self) -> Float64[np.ndarray, " F"]:
        """exp(score - peak of the clip): at most 1, so that no score is too high for it."""
        return np.exp(self.frame - np.repeat(self.peak, self.lengths))

    @functools.cached_property
    def exponential_sum(self) -> Float64[np.ndarray, " N"]:
        """The sum of these over each clip: at least 1."""
        return self.sum(self.exponential)

    @functools.cached_property
    def ranked(self) -> Float64[np.ndarray, " F"]:
        """The frame scores, those of each clip in rising order."""
        return self.frame[np.lexsort((self.frame, np.repeat(np.arange(len(self.lengths)), self.lengths)))]

    def sum(self, values: Float64[np.ndarray, " F"]) -> Float64[np.ndarray, " N"]:
        """Sums over the frames of each clip."""
        return np.add.reduceat(values, self.starts)


Rule = Callable[[PackedScores], Float64[np.ndarray, " N"]]
Pooling = Callable[..., Float64[np.ndarray, " N"] | np.float64]


def mean(scores: PackedScores) -> Float64[np.ndarray, " N"]:
    """Mean over the frames: suits clips that are fake from end to end."""
    return scores.sum(scores.frame) / scores.lengths


def maximum(scores: PackedScores) -> Float64[np.ndarray, " N"]:
    """The highest frame."""
    return scores.peak


def logsumexp(scores: PackedScores) -> Float64[np.ndarray, " N"]:
    """Log of the sum of exponentials: a soft maximum, AVH-Align's own. Grows with the logarithm of the length."""
    return scores.peak + np.log(scores.exponential_sum)


def logmeanexp(scores: PackedScores) -> Float64[np.ndarray, " N"]:
    """Log of the mean of exponentials: the soft maximum without the growth."""
    return logsumexp(scores) - np.log(scores.lengths)


def topk(scores: PackedScores) -> Float64[np.ndarray, " N"]:
    """Mean of the highest tenth of the frames, rounded down, at least one: suits clips that are fake in places."""
    count = np.maximum(scores.lengths // TOP_SHARE, 1)
    borders = np.column_stack([scores.starts, scores.offset[1:] - count])  # of a clip's lower frames, of its highest
    return np.add.reduceat(scores.ranked, borders.ravel())[1::2] / count


def percentile(scores: PackedScores) -> Float64[np.ndarray, " N"]:
    """97th percentile, linear between frames: the highest frames but for a few outliers."""
    place = PERCENTILE / 100 * (scores.lengths - 1)
    below = place.astype(np.int64)
    above = np.minimum(below + 1, scores.lengths - 1)
    low, high = (scores.ranked[scores.starts + frame] for frame in (below, above))
    return low + (place - below) * (high - low)


def softmax(scores: PackedScores) -> Float64[np.ndarray, " N"]:
    """Mean weighted by the softmax of the scores: the mean if all frames are alike, the maximum if one stands out."""
    return scores.sum(scores.exponential * scores.frame) / scores.exponential_sum


RULES: dict[str, Rule] = {
    "logsumexp": logsumexp,
    "mean": mean,
    "max": maximum,
    "logmeanexp": logmeanexp,
    "topk": topk,
    "percentile": percentile,
    "softmax": softmax,
}


def pool_all(
    frame: Float[np.ndarray, " F"], offset: Int64[np.ndarray, "borders"] | None = None
) -> dict[str, Float64[np.ndarray, " N"] | np.float64]:
    """Every pooling of the same scores, sorted once for all.

    Args:
      frame: frame scores of all clips, end to end, finite.
      offset: clip n is frame[offset[n]:offset[n+1]], at least one frame; None = all frames are one clip.

    Returns:
      Scores of the clips [N] by pooling; a single number each if `offset` is None.
    """
    return _pooled(RULES, frame, offset)


def _pooled(
    rules: dict[str, Rule], frame: Float[np.ndarray, " F"], offset: Int64[np.ndarray, "borders"] | None
) -> dict[str, Float64[np.ndarray, " N"] | np.float64]:
    borders = np.array([0, len(frame)]) if offset is None else offset
    scores = PackedScores(frame.astype(np.float64), borders)
    pooled = {}
    for name, rule in rules.items():
        clips = rule(scores)
        pooled[name] = clips[0] if offset is None else clips
    return pooled


def _on_frames(name: str) -> Pooling:
    """One pooling alone, called as `pool_all` is."""

    def pool(frame: Float[np.ndarray, " F"], offset: Int64[np.ndarray, "borders"] | None = None):
        return _pooled({name: RULES[name]}, frame, offset)[name]

    return pool


POOLINGS: dict[str, Pooling] = {name: _on_frames(name) for name in RULES}
