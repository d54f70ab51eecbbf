"""Metrics and intervals against plain loops and all pairs; the resampling kernel against scikit-learn."""

import warnings

import hypothesis
import numpy as np
import pytest
import sklearn.metrics
from hypothesis import strategies as st

from jax_avh.evaluation import metrics
from jax_avh.evaluation.metrics import (
    METRIC_NAMES,
    DeLong,
    average_precision,
    bootstrap_intervals,
    delong_test,
    detection_metrics,
    group_clips,
    precision_recall_points,
    resampled_metrics,
    roc_auc,
    roc_points,
    worst_case,
)

exactly = {"rel": 0, "abs": 1e-12}
score_st = st.integers(-4, 4).map(float) | st.floats(-3, 3) | st.sampled_from([-np.inf, np.inf, -0.0])


@st.composite
def clips(draw, labels=(-1, 0, 1), both=True, finite=False):
    """Draws labels and scores with many ties."""
    scores = st.integers(-4, 4).map(float) | st.floats(-3, 3) if finite else score_st
    rows = draw(st.lists(st.tuples(st.sampled_from(labels), scores), max_size=30))
    rows += [(kind, draw(scores)) for kind in (0, 1) if both]
    rows = draw(st.permutations(rows))
    return np.array([row[0] for row in rows], np.int64), np.array([row[1] for row in rows])


def gaussian_clips(real, fake, seed=0, shift=1.0):
    """Draws scores with occasional ties, `shift` standard deviations higher for fakes."""
    label = np.repeat([0, 1], [real, fake])
    score = np.random.default_rng(seed).standard_normal(real + fake) + shift * label
    return label, score.round(2)


def ranks(score):
    """Replaces scores by ranks: scikit-learn rejects infinite scores, and its curves depend only on the order."""
    return np.unique(score, return_inverse=True)[1].astype(float)


def of_kernel(label, score, threshold=None):
    """Returns the resampling kernel's metrics of the clips themselves."""
    label, score = label[label >= 0], score[label >= 0]
    order = np.argsort(-score)
    found = resampled_metrics(label[order] == 1, score[order], np.ones((1, len(label)), np.int64), threshold)
    return {name: value.item() for name, value in found.items()}


@hypothesis.given(clips())
def test_the_kernel_gives_the_areas_of_scikit_learn(rows):
    label, score = rows
    found = of_kernel(label, score)
    truth = label[label >= 0]
    rank = ranks(score[label >= 0])
    assert found["auc"] == pytest.approx(sklearn.metrics.roc_auc_score(truth, rank), **exactly)
    assert found["ap"] == pytest.approx(sklearn.metrics.average_precision_score(truth, rank), **exactly)


@hypothesis.given(clips(), st.sampled_from([-np.inf, -3.5, 0.0, 1.0, 2.5, np.inf]) | st.none())
def test_the_kernel_gives_the_estimates(rows, threshold):
    label, score = rows
    estimate = detection_metrics(label, score, threshold)
    found = of_kernel(label, score, estimate.threshold)
    assert found == {name: pytest.approx(value, **exactly) for name, value in vars(estimate.metrics).items()}
    assert (roc_auc(label, score), average_precision(label, score)) == (estimate.metrics.auc, estimate.metrics.ap)


@hypothesis.given(clips())
def test_curves_count_the_clips_at_each_threshold(rows):
    label, score = rows
    fake, real = score[label == 1], score[label == 0]
    thresholds = np.unique(score[label >= 0])[::-1]
    counts = np.array([[(part >= t).sum() for t in thresholds] for part in (fake, real)])
    points = np.array([0, *counts[0]]) / len(fake), np.array([0, *counts[1]]) / len(real)
    np.testing.assert_allclose(roc_points(label, score), points[::-1], rtol=0, atol=1e-12)
    precision = [1, *(counts[0] / counts.sum(axis=0))]
    np.testing.assert_allclose(precision_recall_points(label, score), (points[0], precision), atol=1e-12)


@hypothesis.given(clips())
def test_auc_counts_pairs(rows):
    label, score = rows
    fake, real = score[label == 1][:, None], score[label == 0]
    assert roc_auc(label, score) == pytest.approx(((fake > real) + (fake == real) / 2).mean(), **exactly)


@hypothesis.given(clips(finite=True))
def test_equal_error_is_where_the_interpolated_curve_crosses(rows):
    label, score = rows
    found, known = detection_metrics(label, score), label >= 0
    assert (found.real, found.fake) == ((label == 0).sum(), (label == 1).sum())
    fpr, tpr, threshold = sklearn.metrics.roc_curve(label[known], score[known], drop_intermediate=False)
    gap = fpr + tpr - 1  # false positive rate less false negative rate
    assert found.metrics.eer == pytest.approx(np.interp(0, gap, fpr), **exactly)
    nearest = np.abs(gap[1:])
    assert np.abs(gap[threshold == found.threshold]).item() == pytest.approx(nearest.min(), **exactly)
    assert found.threshold == threshold[1:][nearest <= nearest.min() + 1e-9].max()


@hypothesis.given(clips(), st.sampled_from([1, 5, 60]))
def test_rates_at_few_false_positives_are_the_best_allowed(rows, copies):
    label, score = (np.tile(column, copies) for column in rows)
    fake, real = score[label == 1], score[label == 0]
    found = detection_metrics(label, score).metrics
    for name, rate in (("tpr_at_fpr_1", 0.01), ("tpr_at_fpr_01", 0.001)):
        allowed = [(fake >= t).mean() for t in score if (real >= t).sum() <= rate * len(real) + 1e-9]
        assert getattr(found, name) == max(allowed, default=0.0)


def test_as_many_false_positives_as_allowed_are_allowed():
    for reals in range(100, 3100, 100):
        label = np.repeat([0, 1], [reals, 1])
        score = np.append(np.arange(reals), reals - reals // 100).astype(float)  # reals // 100 of them are as high
        assert detection_metrics(label, score).metrics.tpr_at_fpr_1 == 1.0
        score[-1] -= 1  # one more
        assert detection_metrics(label, score).metrics.tpr_at_fpr_1 == 0.0


@hypothesis.given(clips(both=False), st.sampled_from([-np.inf, -3.5, 0.0, 1.0, 2.5, np.inf]) | st.none())
def test_decisions_count_the_clips_at_the_threshold(rows, threshold):
    label, score = rows
    found = detection_metrics(label, score, threshold)
    known = label >= 0
    if not known.any() or (threshold is None and len(set(label[known])) < 2):
        assert found.metrics.accuracy is found.metrics.f1 is found.threshold is None
        return
    assert threshold in (None, found.threshold)
    fake, called = label[known] == 1, score[known] >= found.threshold
    assert found.metrics.accuracy == pytest.approx((fake == called).mean(), **exactly)
    both = fake.sum() + called.sum()
    assert found.metrics.f1 == (pytest.approx(2 * (fake & called).sum() / both, **exactly) if both else None)
    kernel = of_kernel(label, score, found.threshold)
    assert kernel["accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(fake, called), **exactly)
    f1 = sklearn.metrics.f1_score(fake, called, zero_division=np.nan)
    assert kernel["f1"] == pytest.approx(f1, **exactly, nan_ok=True)


@hypothesis.given(clips(labels=(-1, 1), both=False), st.booleans())
def test_an_absent_class_leaves_the_curves_undefined(rows, real):
    label, score = rows
    label = np.where(label == 1, 0, label) if real else label
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # scikit-learn's warnings must not reach the user
        found = detection_metrics(label, score, 0.0)
        assert detection_metrics(label, score).threshold is None
        assert roc_auc(label, score) is average_precision(label, score) is None
    metrics = found.metrics
    assert metrics.auc is metrics.ap is metrics.eer is metrics.tpr_at_fpr_1 is metrics.tpr_at_fpr_01 is None
    known = bool((label >= 0).any())
    assert (found.threshold, metrics.accuracy is None) == ((0.0, False) if known else (None, True))


def test_metrics_are_plain_numbers():
    found = detection_metrics(np.array([0, 1, 1]), np.array([0, 1, 2], np.float32))
    assert {type(value) for value in [*vars(found.metrics).values(), found.threshold]} == {float}
    assert {type(value) for value in (found.real, found.fake)} == {int}


def test_nan_is_not_a_score():
    label, score = np.array([0, 0, 1, 1]), np.array([0, np.nan, 1, 2])
    with pytest.raises(AssertionError, match="a score is NaN"):
        detection_metrics(label, score)
    with pytest.raises(AssertionError, match="a score is NaN"):
        worst_case(label, score, label)
    with pytest.raises(AssertionError, match="the threshold is NaN"):
        detection_metrics(label, np.arange(4.0), float("nan"))
    with pytest.raises(AssertionError, match="a score is NaN"):
        delong_test(label, np.arange(4.0), score)
    assert roc_auc(np.array([0, -1, 1, 1]), score) == 1.0


@hypothesis.given(clips(), st.lists(st.sampled_from([-1, 0, 1]), max_size=8), st.data())
def test_no_scores_of_missing_clips_are_worse_than_the_worst(rows, missing, data):
    (label, score), missing = rows, np.array(missing, np.int64)
    drawn = np.array(data.draw(st.lists(score_st, min_size=len(missing), max_size=len(missing))))
    untied = np.argsort(np.argsort(score)) - len(score) // 2.0  # among the drawn scores
    labels = np.append(label, missing)
    for known in (score, untied):
        assert worst_case(label, known, missing)[0] <= roc_auc(labels, np.append(known, drawn)) + 1e-12
    assert worst_case(label, untied, missing)[1] <= average_precision(labels, np.append(untied, drawn)) + 1e-12


def test_the_worst_case_has_missing_fakes_lowest_and_missing_reals_highest():
    label, score, missing = np.array([0, 1, 1, -1]), np.array([1.0, 1.0, np.inf, -9.0]), np.array([1, 0, -1, 1])
    truth, rank = [0, 1, 1, 1, 0, 1], [1, 1, 2, 0, 3, -1]
    assert worst_case(label, score, missing) == (
        pytest.approx(sklearn.metrics.roc_auc_score(truth, rank), **exactly),
        pytest.approx(sklearn.metrics.average_precision_score(truth, rank), **exactly),
    )
    assert worst_case(label, score, missing[:0])[0] == roc_auc(label, score)
    assert worst_case(label[1:3], score[1:3], missing[:1]) == (None, None)


def naive_intervals(label, score, threshold, resamples, seed):
    """Draws, filters and measures the resamples one by one."""
    label, score = label[label >= 0], score[label >= 0]
    if threshold is None:
        threshold = detection_metrics(label, score).threshold
    drawn = np.random.default_rng(seed).integers(len(label), size=(resamples, len(label)))
    complete = [clips for clips in drawn if set(label[clips]) == set(label)]
    found = [vars(detection_metrics(label[clips], score[clips], threshold).metrics) for clips in complete]
    columns = {name: [metrics[name] for metrics in found if metrics[name] is not None] for name in METRIC_NAMES}
    return {name: np.percentile(column, [2.5, 97.5]) if column else None for name, column in columns.items()}


@pytest.mark.parametrize("draws", [1, 200, 1 << 18])
@pytest.mark.parametrize(
    ("real", "fake", "threshold"), [(20, 30, None), (2, 5, 0.5), (40, 1, None), (0, 9, 1.0), (9, 0, 1.5), (9, 0, 9.0)]
)
def test_intervals_equal_a_loop_over_resamples(monkeypatch, draws, real, fake, threshold):
    monkeypatch.setattr(metrics, "DRAWS", draws)
    label, score = gaussian_clips(real, fake)
    order = np.random.default_rng(1).permutation(len(label) + 2)
    label, score = np.append(label, [-1, -1])[order], np.append(score.round(1), [0.1, 5.0])[order]
    found = vars(bootstrap_intervals(label, score, threshold, resamples=60, seed=3))
    wanted = naive_intervals(label, score, threshold, resamples=60, seed=3)
    assert found.keys() == wanted.keys()
    for name, interval in wanted.items():
        assert found[name] == (None if interval is None else pytest.approx(tuple(interval), **exactly)), name


def test_intervals_hold_their_estimates():
    label, score = gaussian_clips(400, 600)
    metrics, intervals = detection_metrics(label, score).metrics, bootstrap_intervals(label, score)
    for name, (low, high) in vars(intervals).items():
        assert low < getattr(metrics, name) < high, name
    width = np.diff(intervals.auc).item()
    comparison = delong_test(label, score, np.zeros(1000))  # against a constant: the variance of one AUC
    assert width == pytest.approx(np.diff(comparison.interval).item(), rel=0.1)


@pytest.mark.parametrize(("digits", "shift"), [(9, 1.0), (1, 1.0), (9, 3.0)])
def test_intervals_of_groups_are_those_of_clips(monkeypatch, digits, shift):
    """Compares both on the same clips, also with many ties, and with classes that hardly overlap."""
    label, score = gaussian_clips(3000, 1500, shift=shift)
    score = (score + np.random.default_rng(1).uniform(-0.005, 0.005, len(score))).round(digits)
    exact = vars(bootstrap_intervals(label, score, 1.0, resamples=1500))
    monkeypatch.setattr(metrics, "MOST_RESAMPLED", 0)
    for name, (low, high) in vars(bootstrap_intervals(label, score, 1.0, resamples=1500)).items():
        width = exact[name][1] - exact[name][0]
        assert (low, high) == pytest.approx(exact[name], abs=0.15 * width), name


@hypothesis.given(clips(labels=(0, 1)), st.none() | st.integers(-4, 4).map(float))
def test_groups_hold_whole_ranks_on_one_side_of_the_threshold(found, threshold):
    label, score = found
    order = np.argsort(-score)
    fake, score = label[order] == 1, score[order]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "FINENESS", 0.3)  # so that few clips form groups
        group = group_clips(fake, score, threshold)
    assert group[0] == 0
    assert set(np.diff(group)) <= {0, 1}
    for n in range(len(group) - 1):
        same = group[n] == group[n + 1]
        assert same or score[n] != score[n + 1]
        assert not same or threshold is None or (score[n] >= threshold) == (score[n + 1] >= threshold)


def test_the_same_seed_draws_the_same_clips_for_every_method():
    label, score = gaussian_clips(30, 30)
    first = bootstrap_intervals(label, score, resamples=50)
    assert bootstrap_intervals(label, score, resamples=50) == first
    assert bootstrap_intervals(label, score, resamples=50, seed=1) != first
    # Scores in the same order have the same curves in every resample if the same clips are drawn.
    other = bootstrap_intervals(label, np.exp(score), resamples=50)
    assert vars(other) == {name: pytest.approx(interval, **exactly) for name, interval in vars(first).items()}
    reverse = bootstrap_intervals(label, -score, resamples=50).auc
    assert reverse == pytest.approx((1 - first.auc[1], 1 - first.auc[0]), **exactly)


def test_intervals_of_nothing_are_undefined():
    for label in (np.zeros(0, np.int64), np.array([-1, -1]), np.array([1, 1])):
        assert vars(bootstrap_intervals(label, np.zeros(len(label)))) == dict.fromkeys(METRIC_NAMES)


def quadratic_delong(label, one, other):
    """Computes the difference of AUCs and its variance from all pairs: equations 1-5 of DeLong et al. 1988."""
    pairs = [
        (s[label == 1][:, None] > s[label == 0]) + (s[label == 1][:, None] == s[label == 0]) / 2 for s in (one, other)
    ]
    fakes, reals = pairs[0].shape
    of_fakes, of_reals = (np.cov([pair.mean(axis) for pair in pairs], ddof=1) for axis in (1, 0))
    covariance = of_fakes / fakes + of_reals / reals
    contrast = np.array([1, -1])
    return contrast @ [pair.mean() for pair in pairs], contrast @ covariance @ contrast


@hypothesis.given(clips(), clips(both=False), st.integers(0, 99))
def test_delong_equals_all_pairs(rows, more, seed):
    label, one = (np.concatenate(columns) for columns in zip(rows, more, strict=True))
    other = np.random.default_rng(seed).permutation(one)
    found = delong_test(label, one, other)
    if min((label == 0).sum(), (label == 1).sum()) < 2:
        assert found is None
        return
    difference, variance = quadratic_delong(label, one, other)
    assert found.difference == pytest.approx(difference, rel=0, abs=1e-10)
    aucs = [roc_auc(label, score) for score in (one, other)]
    assert found.difference == pytest.approx(aucs[0] - aucs[1], **exactly)
    low, high = found.interval
    assert ((high - low) / 2 / 1.959963984540054) ** 2 == pytest.approx(variance, rel=0, abs=1e-10)
    assert high + low == pytest.approx(2 * found.difference, **exactly)
    reverse = delong_test(label, other, one)
    assert reverse.interval == pytest.approx((-high, -low), **exactly)
    assert (reverse.difference, reverse.p_value) == pytest.approx((-found.difference, found.p_value), **exactly)


def test_delong_is_calibrated():
    generator = np.random.default_rng(0)
    label = np.repeat([0, 1], [60, 40])
    found = []
    for _ in range(1000):
        shared = label + generator.standard_normal(100)
        found.append(delong_test(label, *(shared + generator.standard_normal((2, 100)))))
    p_value = np.array([test.p_value for test in found])
    for level in (
        0.05,
        0.5,
    ):  # for equally good methods, the share of p-values below a level equals the level, within 4 standard errors
        assert abs((p_value < level).mean() - level) < 4 * np.sqrt(level * (1 - level) / 1000)
    for test in found:
        assert (test.p_value < 0.05) == (not test.interval[0] <= 0 <= test.interval[1])


def test_delong_without_variance_is_certain():
    label, score = gaussian_clips(20, 20)
    assert delong_test(label, score, score) == DeLong(0.0, (0.0, 0.0), 1.0)
    assert delong_test(label, label * 1.0, -label * 1.0) == DeLong(1.0, (1.0, 1.0), 0.0)


@pytest.mark.parametrize("label", [[], [0, 0, -1], [1, 1, 1], [0, 0, 1]])
def test_delong_needs_two_clips_of_each_class(label):
    score = np.zeros(len(label))
    assert delong_test(np.array(label, np.int64), score, score) is None
