"""Detection metrics of clip scores: exact under ties, and undefined where a class is absent.

Fake is the positive class. A clip is called fake if its score is at least the threshold.

Letters: N clips, R resamples of them (one, each clip once, if the clips themselves are meant), P operating points.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float64, Int, Int64

from avh_shards import FAKE, REAL

FALSE_POSITIVE_RATES = {"tpr_at_fpr_1": 0.01, "tpr_at_fpr_01": 0.001}  # metric -> the most that it allows
METRICS = ("auc", "ap", "eer", *FALSE_POSITIVE_RATES, "accuracy", "f1")


class Ranking(NamedTuple):
    """Clips of known label, the highest score first."""

    order: Int64[np.ndarray, " N"]  # place -> clip, counted among those of known label
    fake: Bool[np.ndarray, " N"]  # by place
    last: Int64[np.ndarray, " K"]  # the last place of each distinct score
    score: Float64[np.ndarray, " K"]  # the distinct scores, falling


class OperatingPoints(NamedTuple):
    """Clips called fake at a threshold above all scores, then at each distinct score, falling."""

    threshold: Float64[np.ndarray, " P"]
    true: Int64[np.ndarray, "R P"]  # fakes called fake
    false: Int64[np.ndarray, "R P"]  # reals called fake
    fake: Int64[np.ndarray, "R 1"]  # fakes in all
    real: Int64[np.ndarray, "R 1"]  # reals in all


def detection_metrics(
    label: Int[np.ndarray, " N"], score: Float[np.ndarray, " N"], threshold: float | None = None
) -> dict[str, float | int | None]:
    """How well scores tell fake clips from real ones.

    Args:
      label: 0 real, 1 fake; clips of other labels are left out.
      score: higher = more fake; may be infinite.
      threshold: where clips are called fake; None = the operating point nearest to equal error, the higher of two.

    Returns:
      By name, None where undefined:
        auc: area under the ROC curve, ties count half. This and the next four need both classes.
        ap: average precision.
        eer: the error rate where false positive and false negative rate cross, linear between operating points.
        tpr_at_fpr_1, tpr_at_fpr_01: the highest true positive rate of an operating point (none in between) that has
          1 % or 0.1 % false positives at most.
        threshold: the one given, or taken; None if not given and a class is absent.
        accuracy, f1: at that threshold; f1 is also undefined if no clip is fake or called so.
        real, fake: the numbers of clips; without any, all else is None.
    """
    points = operating_points(rank_clips(label, score))
    real, fake = points.real.item(), points.fake.item()
    if threshold is None and real and fake:
        threshold = equal_error_threshold(points)
    if not real + fake:
        threshold = None
    found = {name: value.item() for name, value in all_metrics(points, threshold).items()}
    defined = {name: None if np.isnan(value) else value for name, value in found.items()}
    return dict.fromkeys(METRICS) | defined | {"threshold": threshold, "real": real, "fake": fake}


def worst_case(
    label: Int[np.ndarray, " N"], score: Float[np.ndarray, " N"], missing_label: Int[np.ndarray, " M"]
) -> dict[str, float | None]:
    """AUC and AP if clips without a score had the worst: each fake below all others, each real above.

    Whatever scores these clips had, AUC would not come out lower, nor would AP if no two scores are equal.

    Args:
      label: 0 real, 1 fake; clips of other labels are left out.
      score: higher = more fake.
      missing_label: labels of the clips without a score.

    Returns:
      `auc` and `ap`, None unless both classes are there.
    """
    assert not np.isnan(score).any(), "a score is NaN"
    rank = np.unique(score, return_inverse=True)[1]
    place = np.arange(len(missing_label))  # fakes at one score would all be found at the precision of the last
    missing = np.where(missing_label == FAKE, -1 - place, len(rank) + place)
    ranks = np.concatenate([rank, missing]).astype(np.float64)
    found = detection_metrics(np.concatenate([label, missing_label]), ranks)
    return {name: found[name] for name in ("auc", "ap")}


def roc_points(
    label: Int[np.ndarray, " N"], score: Float[np.ndarray, " N"]
) -> tuple[Float64[np.ndarray, " P"], Float64[np.ndarray, " P"]]:
    """False and true positive rates, rising from (0, 0) to (1, 1), if both classes are there."""
    points = operating_points(rank_clips(label, score))
    return (points.false / points.real)[0], (points.true / points.fake)[0]


def precision_recall_points(
    label: Int[np.ndarray, " N"], score: Float[np.ndarray, " N"]
) -> tuple[Float64[np.ndarray, " P"], Float64[np.ndarray, " P"]]:
    """Recall, rising from 0 to 1, and precision, 1 where no clip is called fake, if fakes are there."""
    points = operating_points(rank_clips(label, score))
    return (points.true / points.fake)[0], np.append(1.0, _precision(points)[0])


def rank_clips(label: Int[np.ndarray, " N"], score: Float[np.ndarray, " N"]) -> Ranking:
    """Sorts the clips of known label by score: all metrics follow from this order."""
    known = np.isin(label, (REAL, FAKE))
    label, score = label[known], score[known].astype(np.float64)
    assert not np.isnan(score).any(), "a score is NaN"
    order = np.argsort(-score)
    ranked = score[order]
    last = np.flatnonzero(ranked != np.append(ranked[1:], np.nan))  # infinities have no difference to compare with 0
    return Ranking(order, label[order] == FAKE, last, ranked[last])


def operating_points(ranking: Ranking, weight: Int64[np.ndarray, "R N"] | None = None) -> OperatingPoints:
    """Counts what each threshold calls fake.

    Args:
      ranking: the clips by score.
      weight: how often each resample holds each clip of known label; None = one resample, each clip once.
    """
    placed = np.ones((1, len(ranking.order)), np.int64) if weight is None else weight[:, ranking.order]
    fake = placed * ranking.fake
    true, false = (_called(clips, ranking.last) for clips in (fake, placed - fake))
    return OperatingPoints(np.append(np.inf, ranking.score), true, false, true[:, -1:], false[:, -1:])


def all_metrics(points: OperatingPoints, threshold: float | None) -> dict[str, Float64[np.ndarray, " R"]]:
    """The metrics of every resample: of the curves if all have both classes, of decisions if there is a threshold."""
    curves = curve_metrics(points) if points.fake.all() and points.real.all() else {}
    return curves if threshold is None else curves | decision_metrics(points, threshold)


def curve_metrics(points: OperatingPoints) -> dict[str, Float64[np.ndarray, " R"]]:
    """AUC, AP, EER and true positive rates at few false positives, of resamples with both classes."""
    fake, real = points.fake[:, 0], points.real[:, 0]
    twice_area = (np.diff(points.false) * (points.true[:, 1:] + points.true[:, :-1])).sum(1)
    metrics = {
        "auc": twice_area / (2 * fake * real),
        "ap": (np.diff(points.true) * _precision(points)).sum(1) / fake,
        "eer": _equal_error(points),
    }
    for name, rate in FALSE_POSITIVE_RATES.items():
        # A quotient is rounded as the rate itself was: 3 of 300 are at most 0.01.
        place = (points.false / points.real <= rate).sum(1) - 1
        metrics[name] = _at(points.true, place) / fake
    return metrics


def decision_metrics(points: OperatingPoints, threshold: float) -> dict[str, Float64[np.ndarray, " R"]]:
    """Accuracy and F1 score at a threshold; F1 is NaN if no clip is fake or called so."""
    assert not np.isnan(threshold), "the threshold is NaN"
    place = np.count_nonzero(points.threshold >= threshold) - 1
    true, false, fake, real = points.true[:, place], points.false[:, place], points.fake[:, 0], points.real[:, 0]
    both = true + false + fake  # called fake and fake, each time it occurs
    f1 = np.divide(2 * true, both, out=np.full(len(both), np.nan), where=both > 0)
    return {"accuracy": (true + real - false) / (fake + real), "f1": f1}


def equal_error_threshold(points: OperatingPoints) -> float:
    """The distinct score at which the error rates of the clips (both classes, one resample) differ least."""
    return points.threshold[1 + np.abs(_error_gap(points)[0, 1:]).argmin()].item()


def _called(clips: Int64[np.ndarray, "R N"], last: Int64[np.ndarray, " K"]) -> Int64[np.ndarray, "R P"]:
    called = np.cumsum(clips, axis=1)[:, last]
    return np.concatenate([np.zeros((len(clips), 1), np.int64), called], axis=1)


def _precision(points: OperatingPoints) -> Float64[np.ndarray, "R K"]:
    """At each distinct score; 0 where a resample holds no clip so high."""
    true, called = points.true[:, 1:], points.true[:, 1:] + points.false[:, 1:]
    return true / np.maximum(called, 1)


def _error_gap(points: OperatingPoints) -> Int64[np.ndarray, "R P"]:
    """False positive rate less false negative rate, times both classes' clips: whole numbers, so that ties are seen."""
    return points.false * points.fake - (points.fake - points.true) * points.real


def _equal_error(points: OperatingPoints) -> Float64[np.ndarray, " R"]:
    gap = _error_gap(points)
    after = (gap < 0).sum(1)  # the first point beyond the crossing, or on it
    below, above = _at(gap, after - 1), _at(gap, after)
    false = _at(points.false, after - 1)
    step = _at(points.false, after) - false
    return (false + step * (below / (below - above))) / points.real[:, 0]


def _at(values: Int64[np.ndarray, "R P"], place: Int64[np.ndarray, " R"]) -> Int64[np.ndarray, " R"]:
    return values[np.arange(len(values)), place]
