"""Detection metrics of clip scores, None where a class is absent; bootstrap intervals and DeLong's test.

Fake is the positive class. A clip is called fake if its score is at least the threshold. Point estimates come from
scikit-learn. A vectorised kernel computes the same metrics for hundreds of resamples at a time.

Letters: N clips, R resamples of them, K distinct scores, P = K + 1 operating points.
"""

import dataclasses
import math
import statistics
from collections.abc import Iterator
from typing import Generic, TypeVar

import numpy as np
import sklearn.metrics
from jaxtyping import Bool, Float, Float64, Int, Int64

from avh_shards.clip import FAKE, REAL

FALSE_POSITIVE_RATES = {"tpr_at_fpr_1": 0.01, "tpr_at_fpr_01": 0.001}  # metric -> the highest rate it allows
PERCENTILES = (2.5, 97.5)  # percentiles of the resamples: a 95 % interval
QUANTILE = statistics.NormalDist().inv_cdf(0.975)  # standard errors on either side: a 95 % interval
FEWEST = 5  # clips per class; with fewer, resamples are uninformative (those of one clip are all the same)
DRAWS = 1 << 18  # clips drawn at a time, so that intermediate results stay in the cache
MOST_RESAMPLED = 100_000  # with more, intervals come from resamples of groups of clips
FINENESS = 4  # groups are so small that about this many share one standard error of a rank

Interval = tuple[float, float]  # low and high end
Value = TypeVar("Value")


@dataclasses.dataclass(frozen=True)
class DetectionMetrics(Generic[Value]):
    """One value per detection metric, e.g. an estimate or an interval, in [0, 1]; the first five need both classes."""

    auc: Value  # area under the ROC curve; ties count half
    ap: Value  # average precision
    eer: Value  # rate at which false positives and false negatives are equal, interpolated between operating points
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
    threshold: float | None  # lowest score at which a clip is called fake; None = undefined
    metrics: DetectionMetrics[float | None]  # None = undefined


def detection_metrics(
    label: Int[np.ndarray, " N"], score: Float[np.ndarray, " N"], threshold: float | None = None
) -> Detection:
    """Measures how well scores separate fake clips from real ones.

    Args:
      label: 0 real, 1 fake; clips with other labels are ignored.
      score: higher = more fake; may be infinite.
      threshold: lowest score at which a clip is called fake; None = that of the operating point nearest to equal
        error, or the higher of two equally near ones.

    Returns:
      The metrics. The threshold is undefined without clips and, unless given, also if a class is absent.
    """
    fake, score, rank = _ranked(label, score)
    fakes = int(fake.sum())
    reals = len(fake) - fakes
    values: dict[str, float | None] = dict.fromkeys(METRIC_NAMES)
    if fakes and reals:
        values["auc"] = float(sklearn.metrics.roc_auc_score(fake, rank))
        values["ap"] = float(sklearn.metrics.average_precision_score(fake, rank))
        fpr, tpr, lowest_rank = sklearn.metrics.roc_curve(fake, rank, drop_intermediate=False)
        # False positive rate less false negative rate, times both counts: whole numbers, which makes ties exact.
        gap = np.rint((fpr + tpr - 1) * fakes * reals)
        values["eer"] = float(np.interp(0, gap, fpr))
        for name, rate in FALSE_POSITIVE_RATES.items():
            values[name] = float(tpr[fpr <= rate].max())  # both are rounded alike: 3 / 300 is at most 0.01
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
    """Returns recall, rising from 0 to 1, and precision, 1 where no clip is called fake; fakes must be present."""
    fake, _, rank = _ranked(label, score)
    precision, recall, _ = sklearn.metrics.precision_recall_curve(fake, rank)
    return recall[::-1], precision[::-1]


def worst_case(
    label: Int[np.ndarray, " N"], score: Float[np.ndarray, " N"], missing_label: Int[np.ndarray, " M"]
) -> tuple[float | None, float | None]:
    """Computes AUC and AP with the worst scores for clips without one: fakes below all others, real clips above.

    No scores of these clips could make AUC lower, nor AP if no two scores are equal.

    Args:
      label: 0 real, 1 fake; clips with other labels are ignored.
      score: higher = more fake.
      missing_label: labels of the clips without a score.

    Returns:
      AUC and AP, None unless both classes are present.
    """
    assert not np.isnan(score).any(), "a score is NaN"
    rank = np.unique(score, return_inverse=True)[1]
    place = np.arange(len(missing_label))  # distinct ranks: tied fakes would all get the precision of the last
    missing = np.where(missing_label == FAKE, -1 - place, len(rank) + place)
    ranks = np.concatenate([rank, missing]).astype(np.float64)
    labels = np.concatenate([label, missing_label])
    return roc_auc(labels, ranks), average_precision(labels, ranks)


def _ranked(
    label: Int[np.ndarray, " N"], score: Float[np.ndarray, " N"]
) -> tuple[Int64[np.ndarray, " M"], Float64[np.ndarray, " M"], Int64[np.ndarray, " M"]]:
    """Returns labels (0 real, 1 fake), scores and ranks of the clips with known labels.

    Ranks number the distinct scores from 0, rising; they replace scores in scikit-learn, which rejects infinite ones.
    """
    known = np.isin(label, (REAL, FAKE))
    score = score[known].astype(np.float64)
    assert not np.isnan(score).any(), "a score is NaN"
    return (label[known] == FAKE).astype(np.int64), score, np.unique(score, return_inverse=True)[1]


# --- bootstrap intervals ---------------------------------------------------------------------------------------------


def bootstrap_intervals(
    label: Int[np.ndarray, " N"],
    score: Float[np.ndarray, " N"],
    threshold: float | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> DetectionMetrics[Interval | None]:
    """Computes 95 % percentile intervals of the detection metrics over clips drawn with replacement.

    With the same seed, scores of two methods on the same clips are resampled identically. Of more than MOST_RESAMPLED
    clips, only the numbers of real and fake clips in groups of adjacent scores are drawn, so the time grows with the
    root of the number of clips. The groups shift the ends by less than two seeds do.

    Args:
      label: 0 real, 1 fake; clips with other labels are ignored.
      score: higher = more fake; may be infinite.
      threshold: lowest score at which a clip is called fake, in all resamples; None = that of `detection_metrics`.
      resamples: number of resamples; those that lack a class of the clips are left out.
      seed: seed of the draws.

    Returns:
      The intervals; None where the metric is undefined.

    References:
      Efron and Tibshirani 1993, section 13.3 (percentile intervals).
    """
    fake, score, _ = _ranked(label, score)
    if not len(fake):
        return DetectionMetrics(**dict.fromkeys(METRIC_NAMES))
    if threshold is None:
        threshold = detection_metrics(fake, score).threshold
    order = np.argsort(-score)
    fake = fake[order] == 1
    score = score[order]
    if len(fake) > MOST_RESAMPLED:
        group = group_clips(fake, score, threshold)
        counts = np.bincount(2 * group + fake, minlength=2 * int(group[-1]) + 2)  # of real and fake clips in turn
        fake = np.arange(len(counts)) % 2 == 1
        score = np.repeat(score[np.flatnonzero(np.diff(group, prepend=-1))], 2)
        weights = draw_counts(counts, resamples, seed)
    else:
        weights = (weight[:, order] for weight in draw_clips(len(fake), resamples, seed))
    chunks = []
    for weight in weights:
        complete = np.all([weight[:, fake == kind].any(axis=1) for kind in np.unique(fake)], axis=0)
        chunks.append(resampled_metrics(fake, score, weight[complete], threshold))
    intervals = {name: _interval(np.concatenate([chunk[name] for chunk in chunks])) for name in chunks[0]}
    return DetectionMetrics(**dict.fromkeys(METRIC_NAMES) | intervals)


def group_clips(
    fake: Bool[np.ndarray, " N"], score: Float64[np.ndarray, " N"], threshold: float | None
) -> Int64[np.ndarray, " N"]:
    """Returns each clip's group, numbered from 0; clips of equal score are in one group, on one side of the threshold.

    The standard error of a clip's rank, the number of clips of a class above it, is the root of the rank. So groups are
    smallest at the top, where the true positive rates at few false positives are measured.

    Args:
      fake: whether each clip is fake, by falling score.
      score: scores, falling.
      threshold: lowest score at which a clip is called fake; None = there is none.
    """
    first = np.flatnonzero(score != np.append(np.nan, score[:-1]))  # first clip of each distinct score
    levels = [np.floor(FINENESS * np.sqrt((np.cumsum(kind) - kind)[first])) for kind in (fake, ~fake)]
    levels += [] if threshold is None else [score[first] >= threshold]
    starts = np.any([np.diff(level, prepend=level[0]) != 0 for level in levels], axis=0)
    return np.repeat(np.cumsum(starts), np.diff(np.append(first, len(score))))


def draw_clips(clips: int, resamples: int, seed: int) -> Iterator[Int64[np.ndarray, "R N"]]:
    """Yields the counts of each clip in each resample, in groups of resamples; grouping does not change the draws."""
    generator = np.random.default_rng(seed)
    rows = max(1, DRAWS // clips)
    for start in range(0, resamples, rows):
        count = min(rows, resamples - start)
        drawn = generator.integers(clips, size=(count, clips)) + clips * np.arange(count)[:, None]
        yield np.bincount(drawn.ravel(), minlength=count * clips).reshape(count, clips)


def draw_counts(counts: Int64[np.ndarray, " N"], resamples: int, seed: int) -> Iterator[Int64[np.ndarray, "R N"]]:
    """Yields how many clips of each group are in each resample, some resamples at a time.

    Each number is drawn by itself, from a Poisson distribution, which takes less than half the time of drawing them
    together. The size of a resample then varies, of a million clips by a thousandth, but no metric depends on it.

    Args:
      counts: number of clips in each group.
      resamples: number of resamples.
      seed: seed of the draws.
    """
    generator = np.random.default_rng(seed)
    rows = max(1, DRAWS // len(counts))
    for start in range(0, resamples, rows):
        yield generator.poisson(counts, size=(min(rows, resamples - start), len(counts)))


def resampled_metrics(
    fake: Bool[np.ndarray, " N"],
    score: Float64[np.ndarray, " N"],
    weight: Int64[np.ndarray, "R N"],
    threshold: float | None,
) -> dict[str, Float64[np.ndarray, " R"]]:
    """Computes the defined detection metrics of many resamples together.

    Args:
      fake: whether each clip is fake, by falling score.
      score: scores, falling.
      weight: count of each clip in each resample.
      threshold: lowest score at which a clip is called fake; None leaves out accuracy and F1.

    Returns:
      The metrics by name. AUC, AP, EER and the true positive rates are left out unless all resamples have both
      classes; F1 is NaN where no clip is fake or called fake.
    """
    last = np.flatnonzero(score != np.append(score[1:], np.nan))  # index of the last clip with each distinct score
    true = _called(weight * fake, last)  # fakes called fake
    false = _called(weight * ~fake, last)  # reals called fake
    fakes, reals = true[:, -1], false[:, -1]
    rows = np.arange(len(weight))
    metrics = {}
    if fakes.all() and reals.all():
        metrics["auc"] = (np.diff(false) * (true[:, 1:] + true[:, :-1])).sum(1) / (2 * fakes * reals)
        called = np.maximum(true[:, 1:] + false[:, 1:], 1)  # the sum is 0 where a resample has no clip that high
        metrics["ap"] = (np.diff(true) * (true[:, 1:] / called)).sum(1) / fakes
        # False positive rate less false negative rate, times the clips of both classes.
        gap = false * fakes[:, None] - (fakes[:, None] - true) * reals[:, None]
        after = (gap < 0).sum(1)  # first operating point at or beyond the crossing of the two rates
        below, above = gap[rows, after - 1], gap[rows, after]
        step = false[rows, after] - false[rows, after - 1]
        metrics["eer"] = (false[rows, after - 1] + step * (below / (below - above))) / reals
        for name, rate in FALSE_POSITIVE_RATES.items():
            # The quotient and the rate are rounded alike: 3 / 300 is at most 0.01.
            place = (false / reals[:, None] <= rate).sum(1) - 1
            metrics[name] = true[rows, place] / fakes
    if threshold is not None:
        assert not np.isnan(threshold), "the threshold is NaN"
        place = np.count_nonzero(score[last] >= threshold)
        hits, alarms = true[:, place], false[:, place]
        both = hits + alarms + fakes  # clips called fake plus fake clips
        metrics["accuracy"] = (hits + reals - alarms) / (fakes + reals)
        metrics["f1"] = np.divide(2 * hits, both, out=np.full(len(both), np.nan), where=both > 0)
    return metrics


def _called(clips: Int64[np.ndarray, "R N"], last: Int64[np.ndarray, " K"]) -> Int64[np.ndarray, "R P"]:
    """Counts the clips called fake at a threshold above all scores, then at each distinct score, falling."""
    called = np.cumsum(clips, axis=1)[:, last]
    return np.concatenate([np.zeros((len(clips), 1), np.int64), called], axis=1)


def _interval(values: Float64[np.ndarray, " R"]) -> Interval | None:
    defined = values[~np.isnan(values)]
    if not len(defined):
        return None
    low, high = np.percentile(defined, PERCENTILES).tolist()
    return low, high


# --- DeLong's test ---------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class DeLong:
    """DeLong's test of the difference between two methods' AUCs."""

    difference: float  # AUC of the first minus AUC of the second
    interval: Interval  # 95 %
    p_value: float  # two-sided, for no difference


def delong_test(
    label: Int[np.ndarray, " N"], one: Float[np.ndarray, " N"], other: Float[np.ndarray, " N"]
) -> DeLong | None:
    """Compares the AUCs of two methods on the same clips.

    Args:
      label: 0 real, 1 fake; clips with other labels are ignored.
      one: clip scores, higher = more fake; may be infinite.
      other: clip scores of the other method.

    Returns:
      The difference with its interval and p-value, or None if a class has fewer than two clips and hence no variance.
      If the variance is zero, the p-value is 1 for a difference of 0, else 0.

    References:
      DeLong, DeLong and Clarke-Pearson 1988; in O(N log N) as in Sun and Xu 2014.
    """
    fake, real = label == FAKE, label == REAL
    fakes, reals = int(fake.sum()), int(real.sum())
    if min(fakes, reals) < 2:
        return None
    # Counts in whole and half clips until the last division, so that equal methods differ by exactly 0.
    of_fakes = _clips_below(one[fake], one[real]) - _clips_below(other[fake], other[real])
    of_reals = _clips_below(one[real], one[fake]) - _clips_below(other[real], other[fake])
    difference = float(of_fakes.sum() / (fakes * reals))
    variance = of_fakes.var(ddof=1) / reals**2 / fakes + of_reals.var(ddof=1) / fakes**2 / reals
    error = math.sqrt(variance)
    p_value = math.erfc(abs(difference) / error / math.sqrt(2)) if error else float(difference == 0)
    return DeLong(difference, (difference - QUANTILE * error, difference + QUANTILE * error), p_value)


def _clips_below(score: Float[np.ndarray, " A"], others: Float[np.ndarray, " B"]) -> Float64[np.ndarray, " A"]:
    """Counts the others that score lower, ties as half: a clip's midrank among all less its midrank in its class."""
    assert not np.isnan(np.append(score, others)).any(), "a score is NaN"
    ranked = np.sort(others)
    return (np.searchsorted(ranked, score, "left") + np.searchsorted(ranked, score, "right")) / 2
