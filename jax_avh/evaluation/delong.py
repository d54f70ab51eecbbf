"""DeLong's test: do two methods' scores of the same clips tell fakes from reals equally well?"""

import math
import statistics
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64, Int

from avh_shards import FAKE, REAL

QUANTILE = statistics.NormalDist().inv_cdf(0.975)  # standard errors to either side: a 95 % interval


class DeLong(NamedTuple):
    """AUC of one method less that of the other."""

    difference: float
    low: float  # 95 % interval of the difference
    high: float
    p_value: float  # two-sided, of no difference


def delong_test(
    label: Int[np.ndarray, " N"], one: Float[np.ndarray, " N"], other: Float[np.ndarray, " N"]
) -> DeLong | None:
    """Compares the AUCs of two methods on the same clips.

    Args:
      label: 0 real, 1 fake; clips of other labels are left out.
      one: clip scores, higher = more fake; may be infinite.
      other: those of the other method.

    Returns:
      The difference and how sure it is, or None if a class has fewer than two clips, which have no variance. Without
      variance between clips the p-value is 1 if the difference is 0, else 0.

    Source: DeLong, DeLong and Clarke-Pearson 1988; in O(N log N) as Sun and Xu 2014.
    """
    fake, real = label == FAKE, label == REAL
    fakes, reals = int(fake.sum()), int(real.sum())
    if min(fakes, reals) < 2:
        return None
    # Whole and half clips until the last division: equal methods differ by exactly 0.
    of_fakes = _clips_below(one[fake], one[real]) - _clips_below(other[fake], other[real])
    of_reals = _clips_below(one[real], one[fake]) - _clips_below(other[real], other[fake])
    difference = float(of_fakes.sum() / (fakes * reals))
    variance = of_fakes.var(ddof=1) / reals**2 / fakes + of_reals.var(ddof=1) / fakes**2 / reals
    error = math.sqrt(variance)
    return DeLong(difference, difference - QUANTILE * error, difference + QUANTILE * error, _p_value(difference, error))


def _clips_below(score: Float[np.ndarray, " A"], others: Float[np.ndarray, " B"]) -> Float64[np.ndarray, " A"]:
    """How many of the others score lower, ties half: a clip's midrank among all less that in its own class."""
    assert not np.isnan(np.append(score, others)).any(), "a score is NaN"
    ranked = np.sort(others)
    return (np.searchsorted(ranked, score, "left") + np.searchsorted(ranked, score, "right")) / 2


def _p_value(difference: float, error: float) -> float:
    if not error:
        return float(difference == 0)
    return math.erfc(abs(difference) / error / math.sqrt(2))
