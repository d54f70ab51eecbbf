"""Pooling, metrics, score files and tables."""

import csv
import json

import h5py
import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from scipy.special import logsumexp

from extract.schema import ClipMeta, InputError, list_shards, offsets, place
from jax_avh.evaluation import POOLINGS, ScoreTable, detection_metrics, evaluate_scores, open_scores
from jax_avh.evaluation.score import score_shards
from jax_avh.evaluation.scores import write_scores
from tests import rules
from tests.test_data import make_source

DEFINITIONS = {
    "logsumexp": logsumexp,
    "mean": np.mean,
    "max": np.max,
    "logmeanexp": lambda x: logsumexp(x) - np.log(len(x)),
}


@hypothesis.given(
    st.lists(st.integers(1, 40), min_size=1, max_size=8), st.integers(0, 99), st.sampled_from([1, 30, 900])
)
def test_packed_pooling_equals_each_clip_alone(lengths, seed, scale):
    frame = (scale * np.random.default_rng(seed).standard_normal(sum(lengths))).astype(np.float32)
    offset = offsets(lengths)
    assert POOLINGS.keys() == DEFINITIONS.keys()
    for name, pool in POOLINGS.items():
        packed = pool(frame, offset)
        assert packed.shape == (len(lengths),)
        for n, value in enumerate(packed):
            alone = frame[offset[n] : offset[n + 1]]
            np.testing.assert_allclose(value, DEFINITIONS[name](alone.astype(np.float64)), rtol=1e-9, atol=1e-9)
            np.testing.assert_allclose(value, pool(alone), rtol=1e-12)
            assert np.ndim(pool(alone)) == 0


@hypothesis.given(st.lists(st.tuples(st.sampled_from([-1, 0, 1]), st.integers(-5, 5)), min_size=1, max_size=30))
def test_metrics_equal_their_definitions(rows):
    label, score = (np.array(column) for column in zip(*rows, strict=True))
    found = detection_metrics(label, score.astype(float))
    real, fake = score[label == 0], score[label == 1]
    assert (found["real"], found["fake"]) == (len(real), len(fake))
    if not len(real) or not len(fake):
        assert found["auc"] is found["ap"] is None
        return
    difference = fake[:, None] - real
    assert found["auc"] == pytest.approx(((difference > 0) + 0.5 * (difference == 0)).mean())
    steps, previous = 0.0, 0.0
    for threshold in sorted(set(score[label >= 0]), reverse=True):
        recall = (fake >= threshold).mean()
        precision = (fake >= threshold).sum() / ((fake >= threshold).sum() + (real >= threshold).sum())
        steps, previous = steps + (recall - previous) * precision, recall
    assert found["ap"] == pytest.approx(steps)


def make_table(method="avh_align", clips=("a.mp4", "b.mp4", "c.mp4"), labels=(0, 1, -1), **attributes):
    frame = np.arange(6, dtype=np.float32)
    metas = tuple(ClipMeta(path, label=label) for path, label in zip(clips, labels, strict=True))
    return ScoreTable(method, metas, offsets([1, 2, 3]), frame, np.zeros(3, np.float32), attributes)


def test_evaluation_writes_metrics_and_clips(tmp_path):
    write_scores(make_table(), tmp_path / "a.h5")
    text = evaluate_scores([tmp_path / "a.h5"], tmp_path / "out")
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics == {"avh_align": {name: {"auc": 1.0, "ap": 1.0, "real": 1, "fake": 1} for name in POOLINGS}}
    with (tmp_path / "out" / "clips.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["path", "label", *POOLINGS]
    assert [(row["path"], row["label"]) for row in rows] == [("a.mp4", "0"), ("b.mp4", "1"), ("c.mp4", "-1")]
    assert [float(row["mean"]) for row in rows] == [0, 1.5, 4]
    assert "1.0000" in text
    assert "RANDOM" not in text


def test_several_score_files_stand_side_by_side(tmp_path):
    write_scores(make_table(), tmp_path / "a.h5")
    write_scores(make_table(clips=("b.mp4", "c.mp4", "d.mp4"), labels=(1, -1, 0)), tmp_path / "b.h5")
    write_scores(make_table(method="other"), tmp_path / "c.h5")
    evaluate_scores([tmp_path / f"{name}.h5" for name in "abc"], tmp_path / "out")
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert list(metrics) == ["avh_align@a", "avh_align@b", "other"]
    with (tmp_path / "out" / "clips.csv").open() as file:
        rows = {row["path"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["a.mp4", "b.mp4", "c.mp4", "d.mp4"]
    assert rows["a.mp4"]["avh_align@b/mean"] == ""
    assert float(rows["b.mp4"]["avh_align@b/mean"]) == 0


def test_the_same_file_twice_is_refused(tmp_path):
    write_scores(make_table(), tmp_path / "a.h5")
    with pytest.raises(InputError, match="rename one"):
        evaluate_scores([tmp_path / "a.h5"] * 2, tmp_path / "out")


def test_an_absent_class_is_undefined(tmp_path):
    write_scores(make_table(labels=(0, 0, 0)), tmp_path / "a.h5")
    assert "undefined" in evaluate_scores([tmp_path / "a.h5"], tmp_path / "out")
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["avh_align"]["mean"] == {"auc": None, "ap": None, "real": 3, "fake": 0}


def test_random_weights_are_said(tmp_path):
    write_scores(make_table(weights_sha256="random"), tmp_path / "a.h5")
    assert "RANDOM AV-HuBERT weights" in evaluate_scores([tmp_path / "a.h5"], tmp_path / "out")


@pytest.mark.parametrize("part", [0.0, 0.3, 0.95])
def test_a_score_file_cut_short_is_refused(tmp_path, part):
    write_scores(make_table(), tmp_path / "a.h5")
    data = (tmp_path / "a.h5").read_bytes()
    (tmp_path / "a.h5").write_bytes(data[: int(part * len(data))])
    with pytest.raises(InputError, match=r"a\.h5"):
        open_scores(tmp_path / "a.h5")


def test_a_feature_shard_is_no_score_file(tmp_path):
    make_source(tmp_path, [3])
    with pytest.raises(InputError, match="avh-features"):
        open_scores(tmp_path / "features-00000.h5")


def test_scoring_keeps_what_is_known_of_the_clips(tmp_path):
    weights = rules.write_alignment_weights(tmp_path / "w.safetensors", width=4)
    source = make_source(tmp_path / "s", [3, 8, 5], per_shard=2, labels=[0, 1, -1])
    table = score_shards(weights, tmp_path / "s", tmp_path / "scores.h5")
    assert repr(table.clips) == repr(tuple(source.clips))
    assert table.offset.tolist() == [0, 3, 11, 16]
    np.testing.assert_allclose(table.clip, POOLINGS["logsumexp"](table.frame, table.offset), rtol=1e-6)
    again = open_scores(tmp_path / "scores.h5")
    np.testing.assert_array_equal(again.frame, table.frame)
    np.testing.assert_array_equal(again.clip, table.clip)
    assert again.attributes["weights"] == str(weights)


def test_features_with_nan_are_not_scored(tmp_path):
    weights = rules.write_alignment_weights(tmp_path / "w.safetensors", width=4)
    path = make_source(tmp_path / "s", [3, 8, 5]).shards[0].path
    with h5py.File(path, "r+") as file:
        file["visual"][4] = np.nan
    with pytest.raises(InputError, match=r"'c1\.mp4' hold NaN"):
        score_shards(weights, tmp_path / "s", tmp_path / "scores.h5")


def test_an_input_is_not_overwritten(tmp_path):
    weights = rules.write_alignment_weights(tmp_path / "w.safetensors", width=4)
    shard = make_source(tmp_path / "s", [3]).shards[0].path
    for output in (weights, shard):
        before = output.read_bytes()
        with pytest.raises(InputError, match="is an input"):
            score_shards(weights, tmp_path / "s", output)
        assert output.read_bytes() == before
    with pytest.raises(InputError, match="device"):
        score_shards(weights, tmp_path / "s", "/dev/null")


def test_scores_do_not_depend_on_the_batches(tmp_path, monkeypatch):
    weights = rules.write_alignment_weights(tmp_path / "w.safetensors", width=4)
    make_source(tmp_path / "s", [3, 8, 5])
    frames = []
    for size in (3, 8192):
        monkeypatch.setattr("jax_avh.evaluation.score.BATCH_FRAMES", size)
        frames.append(score_shards(weights, tmp_path / "s", tmp_path / "scores.h5").frame)
    np.testing.assert_allclose(*frames, atol=1e-5)


def test_shards_at_a_url_are_scored(tmp_path):
    weights = rules.write_alignment_weights(tmp_path / "w.safetensors", width=4)
    make_source(tmp_path / "s", [3, 8, 5, 2])
    for shard in list_shards(tmp_path / "s"):
        place(f"memory://scored/{shard.name}").write_bytes(shard.read_bytes())
    local, remote = (score_shards(weights, path, tmp_path / "s.h5") for path in (tmp_path / "s", "memory://scored"))
    np.testing.assert_array_equal(local.frame, remote.frame)


def test_what_cannot_be_scored_is_told(tmp_path):
    weights = rules.write_alignment_weights(tmp_path / "w.safetensors", width=5)
    make_source(tmp_path / "s", [3])
    with pytest.raises(InputError, match=r"width 5, but those in .* have 4"):
        score_shards(weights, tmp_path / "s", tmp_path / "scores.h5")
    with pytest.raises(InputError, match=r"holds no best\.safetensors"):
        score_shards(tmp_path, tmp_path / "s", tmp_path / "scores.h5")
    assert not (tmp_path / "scores.h5").exists()
