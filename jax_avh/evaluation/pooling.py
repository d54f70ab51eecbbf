"""Pooling: the frame scores of a clip become its score. Pure functions, under the names that tables and flags use."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int64

Pooling = Callable[..., Float[np.ndarray, "*N"]]


def _packed(pool: Callable) -> Pooling:
    """Lets a pooling of packed clips be called on the frames of one clip too, then giving one number."""

    def pooled(frame: Float[np.ndarray, " F"], offset: Int64[np.ndarray, "borders"] | None = None):
        frame = np.asarray(frame, np.float64)
        borders = np.array([0, len(frame)]) if offset is None else offset
        clips = pool(frame, borders[:-1], np.diff(borders))
        return clips[0] if offset is None else clips

    pooled.__doc__ = (
        pool.__doc__
        + """

    Args:
      frame: frame scores of all clips, end to end.
      offset: clip n is frame[offset[n]:offset[n+1]], at least one frame; None = all frames are one clip.

    Returns:
      float64 scores of the clips [N]; a single number if `offset` is None.
    """
    )
    pooled.__name__ = pool.__name__
    return pooled


@_packed
def mean(frame, starts, lengths):
    """Mean over the frames: suits clips that are fake from end to end."""
    return np.add.reduceat(frame, starts) / lengths


@_packed
def maximum(frame, starts, lengths):
    """The highest frame."""
    return np.maximum.reduceat(frame, starts)


@_packed
def logsumexp(frame, starts, lengths):
    """Log of the sum of exponentials: a soft maximum, AVH-Align's own. Grows with the logarithm of the length."""
    return np.logaddexp.reduceat(frame, starts)


@_packed
def logmeanexp(frame, starts, lengths):
    """Log of the mean of exponentials: the soft maximum without the growth."""
    return np.logaddexp.reduceat(frame, starts) - np.log(lengths)


POOLINGS: dict[str, Pooling] = {
    "logsumexp": logsumexp,
    "mean": mean,
    "max": maximum,
    "logmeanexp": logmeanexp,
}
