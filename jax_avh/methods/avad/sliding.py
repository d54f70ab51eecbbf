"""Clips of any length through a decoder of sequences of one length: cut into sequences, scores put together again.

The released program scores a clip's first 50 windows and never looks at the rest. Here every window is scored; up to
that length it comes to the same. Letters: n windows of a clip, S sequences, W delays.
"""

import numpy as np
from jaxtyping import Float, Int64


def sequence_starts(length: int, windows: int) -> Int64[np.ndarray, " S"]:
    """First window of each sequence: half a sequence apart, and the last one ends with the clip."""
    last = max(length - windows, 0)
    return np.append(np.arange(0, last, windows // 2), last)


def cut(scores: Float[np.ndarray, "n W"], windows: int) -> Float[np.ndarray, "S windows W"]:
    """A clip's sequences, zeros behind the end of one that is shorter."""
    padded = np.pad(scores, ((0, max(windows - len(scores), 0)), (0, 0)))
    return np.stack([padded[start : start + windows] for start in sequence_starts(len(scores), windows)])


def assemble(divergences: Float[np.ndarray, "S N"], length: int) -> Float[np.ndarray, " n"]:
    """Scores of a clip's windows, each from the sequence that saw most of what came before it.

    That is the first that holds it: with half a sequence, 25 windows, before it as soon as the clip is that far on.
    Nothing predicts window 0; it takes the score of window 1.

    Args:
      divergences: of the clip's sequences, at their steps.
      length: of the clip, in windows: two or more.
    """
    assert length > 1, "nothing of a clip of one window is predicted"
    windows = divergences.shape[1] + 1
    starts = sequence_starts(length, windows)
    position = np.maximum(np.arange(length), 1)
    sequence = np.searchsorted(starts + windows, position, side="right")
    return divergences[sequence, position - starts[sequence] - 1]


def clip_score(scores: Float[np.ndarray, " n"]) -> float:
    """Mean over the windows that were predicted: all but window 0."""
    assert len(scores) > 1, "nothing of a clip of one window is predicted"
    return float(np.mean(scores[1:], dtype=np.float64))
