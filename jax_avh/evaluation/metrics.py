"""Detection metrics of clip scores, computed by scikit-learn; None where a class is absent.

Fake is the positive class. A clip is called fake if its score is at least the threshold.
"""

import dataclasses
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import sklearn.metrics
from jaxtyping import Float, Float64, Int, Int64

from avh_shards.clip import FAKE, REAL

FALSE_POSITIVE_RATES = {"tpr_at_fpr_1": 0.01, "tpr_at_fpr_01": 0.001}  # metric -> the highest rate it allows

Value = TypeVar("Value")


@dataclasses.dataclass(frozen=True)
class DetectionMetrics(Generic[Value]):
    """A value for each detection metric, e.g. an estimate or an interval; the first five need both classes."""

    auc: Value  # area under the ROC curve; ties count half
    ap: Value  # average precision
    eer: Value  # where false positive and false negative rate are equal, linear between operating points
    tpr_at_fpr_1: Value  # the highest true positive rate of an operating point with at most 1 % false positives
    tpr_at_fpr_01: Value  # likewise with at most 0.1 %
    accuracy: Value  # at a threshold
    f1: Value  # at a threshold; undefined if no clip is fake or called fake


METRIC_NAMES = tuple(field.name for field in dataclasses.fields(DetectionMetrics))


@dataclasses.dataclass(frozen=True)
class Detection:
    """How well scores separate fake clips from real ones."""

    real: int  # clips
    fake: int
    threshold: float | None  # score from which on a clip is called fake; None = undefined
    metrics: DetectionMetrics[float | None]  # None = undefined


def detection_metrics(
    label: Int[np.ndarray, " N"], score: Float[np.ndarray, " N"], threshold: float | None = None
) -> Detection:
    """Measures how well scores separate fake clips from real ones.

    Args:
      label: 0 real, 1 fake; clips with other labels are ignored.
      score: higher = more fake; may be infinite.
      threshold: score from which on clips are called fake; None = the operating point nearest to equal error, the
        higher of two.

    Returns:
      The metrics. The threshold is undefined without clips; if not given, also where a class is absent.
    """
    fake, score, rank = _ranked(label, score)
    fakes = int(fake.sum())
    reals = len(fake) - fakes
    values: dict[str, float | None] = dict.fromkeys(METRIC_NAMES)
    if fakes and reals:
        values["auc"] = float(sklearn.metrics.roc_auc_score(fake, rank))
        values["ap"] = float(sklearn.metrics.average_precision_score(fake, rank))
        fpr, tpr, lowest_rank = sklearn.metrics.roc_curve(fake, rank, drop_intermediate=False)
        # False positive rate less false negative rate; times both counts it is a whole number, so that ties are seen.
        gap = np.rint((fpr + tpr - 1) * fakes * reals)
        values["eer"] = float(np.interp(0, gap, fpr))
        for name, rate in FALSE_POSITIVE_RATES.items():
            values[name] = float(tpr[fpr <= rate].max())  # both are rounded quotients: 3 of 300 are at most 0.01
        if threshold is None:
            threshold = float(score[rank == lowest_rank[1 + np.abs(gap[1:]).argmin()]][0])
    if not len(fake):
        threshold = None
    if threshold is not None:
        assert not np.isnan(threshold), "the threshold is NaN"
        called = (score >= threshold).astype(np.int64)
        f1 = float(sklearn.metrics.f1_score(fake, called, zero_division=np.nan))  # pyright: ignore[reportArgumentType] (its stub)
        values["accuracy"] = float(sklearn.metrics.accuracy_score(fake, called))
        values["f1"] = None if np.isnan(f1) else f1
    return Detection(reals, fakes, threshold, DetectionMetrics(**values))


def roc_auc(label: Int[np.ndarray, " N"], score: Float[np.ndarray, " N"]) -> float | None:
    """Returns the area under the ROC curve; None if a class is absent. Arguments as for `detection_metrics`."""
    fake, _, rank = _ranked(label, score)
    return float(sklearn.metrics.roc_auc_score(fake, rank)) if 0 < fake.sum() < len(fake) else None


def average_precision(label: Int[np.ndarray, " N"], score: Float[np.ndarray, " N"]) -> float | None:
    """Returns the average precision; None if a class is absent. Arguments as for `detection_metrics`."""
    fake, _, rank = _ranked(label, score)
    return float(sklearn.metrics.average_precision_score(fake, rank)) if 0 < fake.sum() < len(fake) else None


def roc_points(
    label: Int[np.ndarray, " N"], score: Float[np.ndarray, " N"]
) -> tuple[Float64[np.ndarray, " P"], Float64[np.ndarray, " P"]]:
    """Returns false and true positive rates, rising from (0, 0) to (1, 1); both classes must be present."""
    fake, _, rank = _ranked(label, score)
    fpr, tpr, _ = sklearn.metrics.roc_curve(fake, rank, drop_intermediate=False)
    return fpr, tpr


def precision_recall_points(
    label: Int[np.ndarray, " N"], score: Float[np.ndarray, " N"]
) -> tuple[Float64[np.ndarray, " P"], Float64[np.ndarray, " P"]]:
    """Returns recall, rising from 0 to 1, and precision, 1 where no clip is called fake; there must be fakes."""
    fake, _, rank = _ranked(label, score)
    precision, recall, _ = sklearn.metrics.precision_recall_curve(fake, rank)
    return recall[::-1], precision[::-1]


def worst_case(
    label: Int[np.ndarray, " N"], score: Float[np.ndarray, " N"], missing_label: Int[np.ndarray, " M"]
) -> tuple[float | None, float | None]:
    """Computes AUC and AP as if clips without a score had the worst: each fake below all others, each real above.

    Whatever scores these clips had, AUC would not be lower, nor would AP if no two scores are equal.

    Args:
      label: 0 real, 1 fake; clips with other labels are ignored.
      score: higher = more fake.
      missing_label: labels of the clips without a score.

    Returns:
      AUC and AP, None unless both classes are present.
    """
    assert not np.isnan(score).any(), "a score is NaN"
    rank = np.unique(score, return_inverse=True)[1]
    place = np.arange(len(missing_label))  # fakes at one score would all be found at the precision of the last
    missing = np.where(missing_label == FAKE, -1 - place, len(rank) + place)
    ranks = np.concatenate([rank, missing]).astype(np.float64)
    labels = np.concatenate([label, missing_label])
    return roc_auc(labels, ranks), average_precision(labels, ranks)


class _Ranked(NamedTuple):
    """Clips of known label."""

    fake: Int64[np.ndarray, " N"]  # 0 real, 1 fake
    score: Float64[np.ndarray, " N"]
    rank: Int64[np.ndarray, " N"]  # of the distinct scores, rising from 0: scikit-learn accepts no infinite scores


def _ranked(label: Int[np.ndarray, " N"], score: Float[np.ndarray, " N"]) -> _Ranked:
    known = np.isin(label, (REAL, FAKE))
    score = score[known].astype(np.float64)
    assert not np.isnan(score).any(), "a score is NaN"
    return _Ranked((label[known] == FAKE).astype(np.int64), score, np.unique(score, return_inverse=True)[1])
