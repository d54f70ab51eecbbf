"""Score files and tables."""

import csv
import dataclasses
import json
import sys

import h5py
import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh
from sklearn.metrics import roc_auc_score

from avh_shards import ClipMeta, UserError
from avh_shards.clip import offsets
from avh_shards.format import list_shards
from avh_shards.paths import as_path
from jax_avh.evaluation import POOLINGS, evaluate
from jax_avh.evaluation.metrics import detection_metrics
from jax_avh.inference import score_shards
from jax_avh.parallel import DATA_AXIS
from jax_avh.report.results import write_results
from jax_avh.scores import ScoreTable, open_scores, write_scores
from tests import rules
from tests.jax_avh.data.test_batches import make_source


def make_table(method="avh_align", clips=("a.mp4", "b.mp4", "c.mp4"), labels=(0, 1, -1), **attributes):
    frame = np.arange(6, dtype=np.float32)
    metas = tuple(ClipMeta(path, label=label) for path, label in zip(clips, labels, strict=True))
    return ScoreTable(method, metas, offsets([1, 2, 3]), frame, np.zeros(3, np.float32), attributes)


def results_of(folder, **wanted):
    """Returns the results in metrics.json that have these fields."""
    results = json.loads((folder / "metrics.json").read_text())["results"]
    return [result for result in results if all(result[name] == value for name, value in wanted.items())]


def test_warnings_name_what_many_clips_change(tmp_path, monkeypatch):
    write_scores(make_table(), tmp_path / "a.h5")
    for name in ("MOST_RESAMPLED", "MOST_LOCALISED"):
        monkeypatch.setattr(sys.modules["jax_avh.evaluation.evaluate"], name, 1)  # its name is also the function's
    warnings = evaluate([tmp_path / "a.h5"], resamples=2).metrics.warnings
    assert "avh_align: intervals come from resamples of groups of clips, as there are over 1." in warnings
    assert "avh_align: localisation is measured on 10000 of its 3 clips, drawn at random." in warnings


def test_evaluation_writes_metrics_and_clips(tmp_path):
    write_scores(make_table(pooling="mean"), tmp_path / "a.h5")
    text = write_results([tmp_path / "a.h5"], tmp_path / "out")
    results = results_of(tmp_path / "out", method="avh_align", group="all", dataset="", trimmed=None)
    assert {result["pooling"]: result["own"] for result in results} == {name: name == "mean" for name in POOLINGS}
    for result in results:
        assert (result["real"], result["fake"]) == (1, 1)
        if not result["own"]:
            assert (result["metrics"]["auc"], result["metrics"]["ap"], result["metrics"]["eer"]) == (1, 1, 0)
    with (tmp_path / "out" / "clips.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["path", "label", "dataset", "category", "split", "own", *POOLINGS]
    assert [(row["path"], row["label"]) for row in rows] == [("a.mp4", "0"), ("b.mp4", "1"), ("c.mp4", "-1")]
    assert [float(row["mean"]) for row in rows] == [0, 1.5, 4]
    assert (tmp_path / "out" / "report.html").stat().st_size > 5000
    assert "1.0000" in text
    assert "RANDOM" not in text
    assert "1 of 3 clips have no label" in text


def test_several_score_files_are_evaluated_together(tmp_path):
    write_scores(make_table(), tmp_path / "a.h5")
    write_scores(make_table(clips=("b.mp4", "c.mp4", "d.mp4"), labels=(1, -1, 0)), tmp_path / "b.h5")
    write_scores(make_table(method="other"), tmp_path / "c.h5")
    text = write_results([tmp_path / f"{name}.h5" for name in "abc"], tmp_path / "out")
    assert [r["method"] for r in results_of(tmp_path / "out", own=True)] == ["avh_align@a", "avh_align@b", "other@c"]
    with (tmp_path / "out" / "clips.csv").open() as file:
        rows = {row["path"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["a.mp4", "b.mp4", "c.mp4", "d.mp4"]
    assert rows["a.mp4"]["avh_align@b/-/mean"] == ""
    assert float(rows["b.mp4"]["avh_align@b/-/mean"]) == 0
    assert "avh_align@a and avh_align@b scored different clips: 2 in common, 1 and 1 by only one" in text
    comparisons = json.loads((tmp_path / "out" / "metrics.json").read_text())["comparisons"]
    assert [(c["one"], c["other"], c["clips"]) for c in comparisons] == [
        ("avh_align@a", "avh_align@b", 2),
        ("avh_align@a", "other@c", 3),
        ("avh_align@b", "other@c", 2),
    ]


def test_a_method_untrimmed_and_trimmed_keeps_its_name(tmp_path):
    """Names two runs of a method after their workdirs, in both states."""
    files = []
    for run in ("small", "large"):
        for trimmed in (False, True):
            weights = {"weights": f"runs/{run}/best.safetensors", "alignment_sha256": run}
            files.append(tmp_path / f"{run}{trimmed}.h5")
            write_scores(make_table(trimmed=trimmed, dataset="set", **weights), files[-1])
    evaluation = evaluate(files[:2])
    assert [(e.method, e.trimmed) for e in evaluation.scored_sets] == [("avh_align", False), ("avh_align", True)]
    assert not evaluation.metrics.comparisons
    evaluation = evaluate(files)
    assert [(e.dataset, e.method, e.trimmed) for e in evaluation.scored_sets] == [
        ("set", f"avh_align@{run}", trimmed) for run in ("small", "large") for trimmed in (False, True)
    ]
    assert len(evaluation.metrics.comparisons) == 2


def test_numbers_of_groups_come_from_their_own_clips(tmp_path):
    """Compares with metrics computed here on the clips of each category and split."""
    rng, count = np.random.default_rng(0), 60
    label, category = rng.integers(0, 2, count), rng.choice(["x", "y"], count)
    split = rng.choice(["dev", "test"], count)
    metas = tuple(ClipMeta(f"{n}.mp4", int(label[n]), category[n], split[n]) for n in range(count))
    score = rng.standard_normal(count).astype(np.float32) + label
    table = ScoreTable("m", metas, offsets([1] * count), None, score.astype(np.float32), {"threshold": 0.5})
    write_scores(table, tmp_path / "a.h5")
    results = evaluate([tmp_path / "a.h5"], resamples=50).metrics.results
    found = {(r.group, r.value): r for r in results}
    chosen = {("all", ""): label >= 0}
    chosen |= {("category", value): (label == 0) | (category == value) for value in "xy"}
    chosen |= {("split", value): split == value for value in ("dev", "test")}
    assert found.keys() == chosen.keys()
    for key, of_group in chosen.items():
        wanted = detection_metrics(label[of_group], score[of_group], 0.5).metrics
        assert found[key].metrics.auc == wanted.auc
        assert found[key].metrics.accuracy == wanted.accuracy
        assert (found[key].threshold, found[key].threshold_rule) == (0.5, "the method's own")
        low, high = found[key].intervals.auc
        assert 0 <= low <= wanted.auc <= high <= 1


def test_a_threshold_may_be_given(tmp_path):
    write_scores(make_table(), tmp_path / "a.h5")
    (result,) = evaluate([tmp_path / "a.h5"], thresholds={"avh_align": 0.1}).metrics.results[:1]
    assert (result.threshold, result.threshold_rule, result.metrics.accuracy) == (0.1, "given", 0.5)
    with pytest.raises(UserError, match="no scores of method 'x'; choose from avh_align"):
        evaluate([tmp_path / "a.h5"], thresholds={"x": 0.1})


def test_coverage_counts_the_listed_clips(tmp_path):
    labels = {f"{n}.mp4": n % 2 for n in range(10)}
    metas = tuple(ClipMeta(path, label) for path, label in list(labels.items())[:6])
    score = np.array([clip.label for clip in metas], np.float32)
    write_scores(ScoreTable("m", metas, offsets([1] * 6), None, score, {}), tmp_path / "a.h5")
    listed = [ClipMeta(path, label) for path, label in labels.items() if path != "0.mp4"]
    evaluation = evaluate([tmp_path / "a.h5"], listed, failed=["7.mp4", "1.mp4", "elsewhere.mp4"], resamples=10)
    (coverage,) = evaluation.metrics.coverage
    counts = coverage.listed, coverage.scored, coverage.failed, coverage.missing
    assert (counts, coverage.auc) == ((9, 5, 1, 3), 1.0)
    known = [clip for clip in metas if clip.path != "0.mp4"]
    scores = [float(clip.label) for clip in known] + [9, -9, 9, -9]  # 6 real, 7 fake, 8 real, 9 fake
    wanted = roc_auc_score([clip.label for clip in known] + [0, 1, 0, 1], scores)
    assert coverage.worst_case_auc == pytest.approx(wanted)
    assert "1 of its clips are not in the list" in " ".join(evaluation.metrics.warnings)
    evaluation = evaluate([tmp_path / "a.h5"], [ClipMeta("other.mp4", 0)], resamples=10)
    assert not evaluation.metrics.coverage
    assert "none of its clips is in the list" in " ".join(evaluation.metrics.warnings)


def test_faces_count_for_their_listed_videos(tmp_path):
    keys = ["a.mp4#shot1.face1", "a.mp4#shot2.face1", "b.mp4#shot1.face2", "elsewhere.mp4#shot1.face1"]
    metas = tuple(ClipMeta(key, label) for key, label in zip(keys, (0, 0, 1, 1), strict=True))
    table = ScoreTable("m", metas, offsets([1] * 4), None, np.array([0, 2, 1, 9], np.float32), {})
    write_scores(table, tmp_path / "a.h5")
    listed = [ClipMeta("a.mp4", 0), ClipMeta("b.mp4", 1), ClipMeta("c.mp4", 1), ClipMeta("d.mp4", 0)]
    evaluation = evaluate([tmp_path / "a.h5"], listed, failed=["c.mp4"], resamples=10)
    (coverage,) = evaluation.metrics.coverage
    counts = coverage.listed, coverage.scored, coverage.failed, coverage.missing
    assert (counts, coverage.auc) == ((4, 2, 1, 1), 0.5)
    assert "1 of its clips are not in the list" in " ".join(evaluation.metrics.warnings)
    with pytest.raises(UserError, match=r"clip 'b\.mp4#shot1\.face2': has label 1 in m, but 0 in the clip list"):
        evaluate([tmp_path / "a.h5"], [ClipMeta("b.mp4", 0)], resamples=10)


def test_files_with_contradictory_labels_are_rejected(tmp_path):
    write_scores(make_table(), tmp_path / "a.h5")
    write_scores(make_table("other", labels=(1, 1, -1)), tmp_path / "b.h5")
    with pytest.raises(UserError, match=r"clip 'a\.mp4': has label 1 in other, but 0 in avh_align"):
        evaluate([tmp_path / "a.h5", tmp_path / "b.h5"])
    write_scores(make_table("other", labels=(1, 1, -1), dataset="another"), tmp_path / "b.h5")
    assert len(evaluate([tmp_path / "a.h5", tmp_path / "b.h5"], resamples=5).scored_sets) == 2


def test_scores_that_are_not_finite_are_rejected(tmp_path):
    write_scores(make_table(), tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file["clips/score"][1] = np.nan
    with pytest.raises(UserError, match=r"a\.h5: .*/clips/score does not fit its clips, or is not finite"):
        evaluate([tmp_path / "a.h5"])


def replaced(name, value):
    def change(file):
        del file[name]
        file[name] = value

    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (replaced("clips/score", ["a", "b", "c"]), "text, not numbers"),
        (replaced("score", np.zeros(6, np.float64)), "cast"),
        (replaced("score", np.zeros((6, 1), np.float32)), "/score does not fit"),
        (lambda f: f.attrs.pop("method"), "method"),
        (lambda f: f.attrs.update(method="a\x1b[2J"), "its attribute method holds control"),
        (lambda f: f.attrs.update(dataset="a\nb"), "its attribute dataset holds control"),
        (lambda f: f.attrs.update(weights="a\x07.pt"), "its attribute weights holds control"),
        (lambda f: f.attrs.update(weights_sha256=["random", "0"]), "not a single number or text"),
        (lambda f: f.attrs.update(pooling="median"), "its pooling 'median' is not one of logsumexp"),
        (lambda f: f.attrs.update(threshold=np.nan), "its threshold nan is not a finite number"),
        (lambda f: f.attrs.update(threshold="high"), "its threshold 'high' is not a finite number"),
        (replaced("clips/category", h5py.ExternalLink("other.h5", "x")), "a link into another file"),
    ],
)
def test_an_inconsistent_score_file_is_rejected(tmp_path, change, reason):
    write_scores(make_table(), tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        change(file)
    with pytest.raises(UserError, match=rf"a\.h5: .*{reason}"):
        open_scores(tmp_path / "a.h5")


def test_results_never_overwrite_their_inputs(tmp_path, monkeypatch):
    """Rejects inputs with the names of results, and unwritable paths, before anything is computed."""
    monkeypatch.setattr("jax_avh.report.results.evaluate", lambda *_: pytest.fail("computed"))
    write_scores(make_table(), tmp_path / "metrics.json")
    with pytest.raises(UserError, match=r"metrics\.json: is an input"):
        write_results([tmp_path / "metrics.json"], tmp_path)
    with pytest.raises(UserError, match=r"clips\.csv: is an input"):
        write_results([tmp_path / "a.h5"], tmp_path, inputs=[tmp_path / "clips.csv"])
    with pytest.raises(UserError, match=r"metrics\.json: is not a folder"):
        write_results([tmp_path / "a.h5"], tmp_path / "metrics.json")
    (tmp_path / "out" / "report.html").mkdir(parents=True)
    with pytest.raises(UserError, match="is a folder"):
        write_results([tmp_path / "a.h5"], tmp_path / "out")


def test_the_same_file_twice_is_rejected(tmp_path):
    write_scores(make_table(), tmp_path / "a.h5")
    with pytest.raises(UserError, match="rename one"):
        write_results([tmp_path / "a.h5"] * 2, tmp_path / "out")


def test_arguments_of_evaluate_are_checked(tmp_path):
    path = tmp_path / "a.h5"
    write_scores(make_table(), path)
    for files, options, reason in (
        ([], {}, "0 score files"),
        ([path], {"resamples": 0}, "0 resamples"),
        ([path], {"names": ["a", "b"]}, "names: 2 for 1 score files"),
        ([path, path], {"names": ["a", "a"]}, "two are named 'a'"),
    ):
        with pytest.raises(UserError, match=reason):
            evaluate(files, **options)


@pytest.mark.parametrize("clips", [1, 3])
def test_an_absent_class_is_undefined(tmp_path, clips):
    table = make_table(labels=(0, 0, 0))
    table = ScoreTable("m", table.clips[:clips], table.offset[: clips + 1], table.frame[: table.offset[clips]],
                       table.clip[:clips], {})  # fmt: skip
    write_scores(table, tmp_path / "a.h5")
    text = write_results([tmp_path / "a.h5"], tmp_path / "out")
    assert "undefined" in text
    assert "no clip is labelled fake" in text
    for result in results_of(tmp_path / "out"):
        assert result["metrics"]["auc"] is result["metrics"]["ap"] is None
        assert (result["real"], result["fake"]) == (clips, 0)


def test_segments_beyond_the_scored_frames_give_a_warning(tmp_path):
    table = make_table(labels=(0, 1, 1))  # of 1, 2 and 3 frames
    for milliseconds, count in ((400.0, 1), (0.04, 0)):
        clips = (*table.clips[:2], dataclasses.replace(table.clips[2], segments=((milliseconds, milliseconds),)))
        write_scores(dataclasses.replace(table, clips=clips), tmp_path / "s.h5")
        warnings = " ".join(evaluate([tmp_path / "s.h5"]).metrics.warnings)
        assert ("1 clips have fake segments beyond their end" in warnings) == bool(count)


def test_random_weights_give_a_warning(tmp_path):
    write_scores(make_table(weights_sha256="random"), tmp_path / "a.h5")
    assert "RANDOM AV-HuBERT weights" in write_results([tmp_path / "a.h5"], tmp_path / "out")


@pytest.mark.parametrize("part", [0.0, 0.3, 0.95])
def test_a_truncated_score_file_is_rejected(tmp_path, part):
    write_scores(make_table(), tmp_path / "a.h5")
    data = (tmp_path / "a.h5").read_bytes()
    (tmp_path / "a.h5").write_bytes(data[: int(part * len(data))])
    with pytest.raises(UserError, match=r"a\.h5"):
        open_scores(tmp_path / "a.h5")


def test_a_feature_shard_is_not_a_score_file(tmp_path):
    make_source(tmp_path, [3])
    with pytest.raises(UserError, match="avh-features"):
        open_scores(tmp_path / "features-00000.h5")


def test_scoring_keeps_the_metadata_of_the_clips(tmp_path):
    weights = rules.write_alignment_weights(tmp_path / "w.safetensors", width=4)
    source = make_source(tmp_path / "s", [3, 8, 5], per_shard=2, labels=[0, 1, -1])
    table = score_shards(tmp_path / "s", tmp_path / "scores.h5", weights=weights)
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
    with pytest.raises(UserError, match=r"'c1\.mp4' hold NaN"):
        score_shards(tmp_path / "s", tmp_path / "scores.h5", weights=weights)


def test_an_input_is_not_overwritten(tmp_path):
    weights = rules.write_alignment_weights(tmp_path / "w.safetensors", width=4)
    shard = make_source(tmp_path / "s", [3]).shards[0].path
    for output in (weights, shard):
        before = output.read_bytes()
        with pytest.raises(UserError, match="is an input"):
            score_shards(tmp_path / "s", output, weights=weights)
        assert output.read_bytes() == before
    with pytest.raises(UserError, match="device"):
        score_shards(tmp_path / "s", "/dev/null", weights=weights)


@pytest.mark.parametrize("method", ["avh_align", "speech_forensics", "factor"])
def test_scores_depend_neither_on_the_batches_nor_on_the_devices(tmp_path, monkeypatch, method):
    weights = {"weights": rules.write_alignment_weights(tmp_path / "w.safetensors", width=4)}
    rng = np.random.default_rng(0)
    make_source(tmp_path / "s", [3, 8, 5, 40])
    with h5py.File(tmp_path / "s" / "features-00000.h5", "r+") as file:
        file["visual"][:], file["audio"][:] = rng.standard_normal((2, *file["visual"].shape))
    options = weights if method == "avh_align" else {}
    tables = []
    for devices in (1, 2):
        mesh = Mesh(np.array(jax.devices()[:devices]), (DATA_AXIS,), axis_types=(AxisType.Auto,))
        monkeypatch.setattr("jax_avh.data.passes.make_mesh", lambda _, mesh=mesh: mesh)
        for size in (3, 7, 8192):
            table = score_shards(tmp_path / "s", tmp_path / "scores.h5", method, batch_frames=size, **options)
            tables.append(table)
    for table in tables[1:]:
        np.testing.assert_allclose(table.frame, tables[0].frame, atol=1e-5)
        np.testing.assert_allclose(table.clip, tables[0].clip, atol=1e-5)


def test_shards_at_a_url_are_scored(tmp_path):
    weights = rules.write_alignment_weights(tmp_path / "w.safetensors", width=4)
    make_source(tmp_path / "s", [3, 8, 5, 2])
    for shard in list_shards(tmp_path / "s"):
        as_path(f"memory://scored/{shard.name}").write_bytes(shard.read_bytes())
    local, remote = (
        score_shards(path, tmp_path / "s.h5", weights=weights) for path in (tmp_path / "s", "memory://scored")
    )
    np.testing.assert_array_equal(local.frame, remote.frame)


def test_unusable_weights_are_rejected(tmp_path):
    weights = rules.write_alignment_weights(tmp_path / "w.safetensors", width=5)
    make_source(tmp_path / "s", [3])
    with pytest.raises(UserError, match=r"width 5, but .* has width 4"):
        score_shards(tmp_path / "s", tmp_path / "scores.h5", weights=weights)
    with pytest.raises(UserError, match=r"holds no best\.safetensors"):
        score_shards(tmp_path / "s", tmp_path / "scores.h5", weights=tmp_path)
    assert not (tmp_path / "scores.h5").exists()
