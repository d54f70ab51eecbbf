"""Frame labels and metrics, proposed segments and their official metrics, each against a plain implementation."""

import dataclasses

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from avh_shards import ClipMeta
from avh_shards.clip import offsets
from jax_avh.evaluation.localisation import (
    AP_IOU,
    AR_PROPOSALS,
    MOST_PROPOSALS,
    FrameMetrics,
    SegmentMetrics,
    clip_roc_auc,
    confidence,
    frame_labels,
    frame_metrics,
    localisation,
    proposals,
    segment_metrics,
    segments_of,
    table_proposals,
)
from jax_avh.scores import ScoreTable

SCORES = st.lists(st.integers(-3, 3), min_size=1, max_size=25).map(lambda x: np.array(x, np.float32))
THRESHOLDS = st.lists(st.integers(-4, 4), min_size=1, max_size=4).map(lambda x: np.array(x, np.float64))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("unit", [100, 10000])
@hypothesis.given(st.lists(st.tuples(st.integers(0, 6000), st.integers(0, 6000)), max_size=3), st.integers(1, 1500))
@hypothesis.example([(2799, 400)], 20)
def test_frame_labels_in_whole_parts_of_a_second(dtype, unit, segments, frames):
    """Includes frames that binary rounding would miss (25 * 1.16 < 29), but none beyond the end (25 * 0.2799 < 7)."""
    ends = [(start, start + length) for start, length in segments]
    clip = ClipMeta("a", 1, segments=tuple((float(dtype(s / unit)), float(dtype(e / unit))) for s, e in ends))
    expected = [any(25 * s // unit <= k <= 25 * e // unit for s, e in ends) for k in range(frames)]
    assert frame_labels(clip, frames).tolist() == expected


def test_frame_metrics_equal_those_of_sklearn_clip_by_clip():
    rng = np.random.default_rng(0)
    segments = [((0.5, 1.0),), (), ((0.0, 0.2), (1.3, 1.4)), (), ((0.0, 99.0),), ((0.1, 0.2),)]
    labels = [1, 0, 1, 1, 1, -1]  # the fourth is a fake without segments
    clips = [
        ClipMeta(str(n), label, segments=part) for n, (label, part) in enumerate(zip(labels, segments, strict=True))
    ]
    offset = offsets([40, 30, 50, 20, 10, 10])
    frame = rng.integers(0, 9, offset[-1]).astype(np.float32)
    parts = np.split(frame, offset[1:-1])
    fake = [frame_labels(clip, len(part)) for clip, part in zip(clips, parts, strict=True)]
    known = [0, 1, 2, 4]
    pooled = [np.concatenate([column[n] for n in known]) for column in (fake, parts)]
    found = frame_metrics(clips, offset, frame)
    assert found.frame_auc == pytest.approx(roc_auc_score(*pooled))
    assert found.frame_ap == pytest.approx(average_precision_score(*pooled))
    assert found.clip_auc == pytest.approx(np.mean([roc_auc_score(fake[n], parts[n]) for n in (0, 2)]))
    assert found.left_out == 2


@hypothesis.given(st.lists(st.tuples(st.booleans(), st.integers(-3, 3).map(float) | st.floats(-9, 9)), max_size=40))
def test_the_auc_of_a_clip_is_that_of_scikit_learn(frames):
    fake, score = (np.array(column) for column in zip(*frames, (True, 1.0), (False, 0.0), strict=True))
    assert clip_roc_auc(fake, score) == pytest.approx(roc_auc_score(fake, score), rel=0, abs=1e-12)


def test_frame_metrics_without_fake_frames_are_undefined():
    found = frame_metrics([ClipMeta("a", 0), ClipMeta("b", 1)], offsets([2, 2]), np.zeros(4, np.float32))
    assert found == FrameMetrics(None, None, None, left_out=1)


@hypothesis.given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=2, max_size=20))
def test_confidence_keeps_the_order(scores):
    scores = np.sort(np.array(scores, np.float32))
    found = confidence(scores)
    assert (np.diff(found) >= 0).all()
    assert ((found > 0) & (found < 1)).all()
    far = np.array([-np.inf, -1001, -1000, 0, 17, 18, 1000, 1001, np.inf])
    assert (np.diff(confidence(far).astype(np.float32)) > 0).all()
    assert confidence(far)[[0, 3, -1]].tolist() == [0, 0.5, 1]


@hypothesis.given(SCORES, st.integers(-4, 4), st.sampled_from([1, 3, 5, 41]))
def test_segments_equal_a_walk_through_the_frames(frame, threshold, smoothing):
    half = smoothing // 2
    smoothed = [np.mean(frame[max(k - half, 0) : k + half + 1].astype(np.float64)) for k in range(len(frame))]
    hypothesis.assume(smoothing == 1 or np.abs(np.array(smoothed) - threshold).min() > 1e-9)
    expected, run = [], []
    for k, score in enumerate([*smoothed, -np.inf]):
        if score >= threshold:
            run.append(score)
        elif run:
            expected.append([confidence(np.array([max(run)]))[0], (k - len(run)) / 25, k / 25])
            run = []
    expected.sort(key=lambda row: -row[0])
    found = segments_of(frame, float(threshold), smoothing)
    assert (np.diff(found[:, 0]) <= 0).all()
    np.testing.assert_allclose(np.sort(found, axis=0), np.sort(np.reshape(expected, (-1, 3)), axis=0), rtol=1e-12)


@hypothesis.given(SCORES, THRESHOLDS)
def test_proposals_are_the_segments_of_all_thresholds(frame, thresholds):
    found = proposals(frame, thresholds, 3)
    highest = np.array([np.mean(frame[max(k - 1, 0) : k + 2].astype(np.float64)) for k in range(len(frame))]).max()
    expected, layers = {}, len(thresholds) + 1
    for q, threshold in enumerate([*thresholds, highest - 1e-12]):
        for level, *times in segments_of(frame, float(threshold), 3).tolist():
            expected.setdefault(tuple(times), (level + layers - 1 - q) / layers)
    assert {tuple(times): level for level, *times in found.tolist()} == pytest.approx(expected)
    assert len(found) == len(expected) > 0
    assert (np.diff(found[:, 0]) <= 0).all()


def test_proposals_of_a_clip_below_all_thresholds_and_of_a_restless_one():
    found = proposals(np.array([0, 1, 3, 3, 0], np.float32), np.array([5.0, 9.0]), 1)
    np.testing.assert_allclose(found, [[confidence(np.array([3.0]))[0] / 3, 2 / 25, 4 / 25]])
    restless = np.tile(np.array([0, 1], np.float32), 300) * np.arange(1, 601, dtype=np.float32)
    many = proposals(restless, np.array([0.5, 200.5]), 1)
    assert len(many) == MOST_PROPOSALS
    assert many[0, 1] == 599 / 25  # the highest are kept


def plain_metrics(found, truth):
    """Computes the official metrics proposal by proposal."""

    def iou(a, b):
        outer = max(a[1], b[1]) - min(a[0], b[0])
        return np.float32(max(min(a[1], b[1]) - max(a[0], b[0]), 0)) / np.float32(outer) if outer else 0

    total, ap, ar = sum(map(len, truth.values())), {}, {}
    for threshold in AP_IOU:
        rows = []
        for file, segments in truth.items():
            hit = set()
            for segment in segments:
                free = (
                    n for n, p in enumerate(found[file]) if n not in hit and iou(p[1:], segment) > np.float32(threshold)
                )
                hit |= {n for n, _ in zip(free, range(1), strict=False)}
            rows += [(-p[0], n in hit) for n, p in enumerate(found[file])]
        hits = np.array([hit for _, hit in sorted(rows, key=lambda row: row[0])], dtype=int)
        precision = [hits[: n + 1].mean() for n in range(len(hits))]
        ap[threshold] = sum(max(precision[n:]) / total for n in range(1, len(hits)) if hits[n])
    for count in AR_PROPOSALS:
        best = [max([iou(p[1:], s) for p in found[f][:count]], default=0) for f in truth for s in truth[f]]
        ar[count] = np.mean([[b > np.float32(t / 100) for b in best] for t in range(50, 100, 5)])
    return ap, ar


STRETCH = st.tuples(st.integers(0, 20), st.integers(0, 20)).map(lambda p: (float(p[0]), float(sum(p))))


@hypothesis.given(
    st.lists(
        st.tuples(st.lists(st.tuples(st.integers(1, 7), STRETCH), max_size=12), st.lists(STRETCH, max_size=3)),
        min_size=1,
        max_size=5,
    )
)
def test_segment_metrics_equal_a_plain_reading_of_the_rule(files):
    """Uses times on a grid and few confidences, so that ties and IoUs exactly at a threshold are frequent."""
    found = {
        n: sorted(([c / 8, *times] for c, times in rows), key=lambda row: -row[0]) for n, (rows, _) in enumerate(files)
    }
    truth = {n: segments for n, (_, segments) in enumerate(files)}
    hypothesis.assume(any(truth.values()))
    ours = segment_metrics(
        {str(n): np.reshape(rows, (-1, 3)).astype(np.float64) for n, rows in found.items()},
        {str(n): np.reshape(rows, (-1, 2)).astype(np.float64) for n, rows in truth.items()},
    )
    ap, ar = plain_metrics(found, truth)
    assert ours.ap == pytest.approx(ap, abs=1e-9)
    assert ours.ar == pytest.approx(ar, abs=1e-9)


def test_segment_metrics_in_cases_done_by_hand():
    truth = {"a": np.array([[1.0, 2.0]]), "b": np.array([[3.0, 4.0]]), "real": np.empty((0, 2))}
    exact = {"a": np.array([[0.9, 1, 2]]), "b": np.array([[0.8, 3, 4]]), "real": np.array([[0.1, 5, 6]])}
    assert segment_metrics(exact, truth) == SegmentMetrics(  # officially, the first proposal's share does not count
        ap=dict.fromkeys([0.5, 0.75, 0.9, 0.95], 0.5),
        ar=dict.fromkeys([50, 30, 20, 10, 5], 1.0),
    )
    half = exact | {"b": np.array([[0.8, 3, 3.5]])}  # IoU 0.5 is not above 0.5
    assert segment_metrics(half, truth).ap[0.5] == 0
    assert segment_metrics(half, truth).ar[5] == 0.5
    edge = segment_metrics({"a": np.array([[0.9, 0, 11]])}, {"a": np.array([[0.0, 20.0]])})
    assert edge.ar[5] == pytest.approx(0.1)  # IoU 0.55 exceeds only 0.5, although 11/20 in float32 is above 0.55
    without = {name: exact[name] for name in ("a", "real")}  # a clip without proposals misses its segments
    assert segment_metrics(without, truth).ar[50] == 0.5
    nothing = segment_metrics(exact, {"real": np.empty((0, 2))})
    assert set(nothing.ap.values()) == set(nothing.ar.values()) == {None}


def make_table(shift=0.0):
    """Returns scores of three clips: two with eight fake frames of high scores, one with unknown segments."""
    frame = np.zeros(480, np.float32)
    frame[20:28], frame[210:218] = 5, 3
    clips = (
        ClipMeta("a.mp4", 1, segments=((20 / 25, 27.9 / 25),)),
        ClipMeta("b.mp4", 1, segments=((50 / 25, 57.9 / 25),)),
        ClipMeta("c.mp4", 1),
    )
    return ScoreTable("m", clips, offsets([160, 160, 160]), frame + shift, np.zeros(3, np.float32), {})


@pytest.mark.parametrize("shift", [0, -50, 4000])
def test_localisation_of_a_table(shift):
    table = make_table(np.float32(shift))
    frames, found = localisation(table)
    assert frames == FrameMetrics(1.0, 1.0, 1.0, left_out=1)
    best = {path: rows[0, 1:].tolist() for path, rows in table_proposals(table).items()}
    assert best == {"a.mp4": [18 / 25, 30 / 25], "b.mp4": [48 / 25, 60 / 25], "c.mp4": [0, 160 / 25]}
    assert found.ap[0.5] == 0.5  # both segments rank first, and the first one does not count
    assert found.ar[5] == pytest.approx((10 + 4) / 20)  # a's own frames by the third threshold; 8 of 12 of b's


def test_many_clips_are_drawn(monkeypatch):
    monkeypatch.setattr("jax_avh.evaluation.localisation.MOST_LOCALISED", 2)
    monkeypatch.setattr("jax_avh.evaluation.localisation.LOCALISED", 1)
    table = make_table()
    frames, found = localisation(table)
    single = [localisation(table.chosen(np.array([row]))) for row in (0, 1)]
    assert (dataclasses.replace(frames, left_out=0), found) in single
    assert frames.left_out == 1


def test_localisation_without_frame_scores_or_segments_is_none():
    table = make_table()
    assert localisation(dataclasses.replace(table, frame=None)) is None
    bare = tuple(dataclasses.replace(clip, segments=()) for clip in table.clips)
    assert localisation(dataclasses.replace(table, clips=bare)) is None
