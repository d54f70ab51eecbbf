"""Reproduction of the paper on a small simulated corpus: its layout, tables, resumption and errors."""

import json
import shutil

import h5py
import numpy as np
import pytest

from apps import simulate as simulation
from apps.paper import (
    PAPER_TABLES,
    SUPERVISED,
    TEST_DATASETS,
    Experiment,
    _ablations,
    experiments,
    format_tables,
    paper,
)
from apps.simulate import Corpus, simulate
from avh_shards import UserError, leading_silence, open_shard
from avh_shards.format import CAVEATS, list_shards
from jax_avh.data.source import open_source
from jax_avh.evaluation import POOLINGS
from jax_avh.evaluation.metrics import METRIC_NAMES, DetectionMetrics
from jax_avh.evaluation.results import Result
from jax_avh.scores import open_scores
from tests.small import use_small_networks

SMALL = Corpus(8, 4, 12, fakes=True, kinds=("local",), frames=(20, 30), width=16)
FLAGS = ["--config.train.epochs=1", "--config.data.batch_frames=128", "--avh_sup-linear.train.epochs=2"]
FLAGS += ["--config.data.batch_examples=2"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simulation, "CORPORA", {"av_deepfake1m": SMALL})
        root = tmp_path_factory.mktemp("corpus")
        simulate(root)
        return root


def test_the_trimmed_set_is_the_untrimmed_one_less_its_silence(corpus):
    folders = (corpus / "av_deepfake1m" / state / "test" for state in ("untrimmed", "trimmed"))
    whole, rest = (open_shard(list_shards(folder)[0]) for folder in folders)
    assert (whole.attributes["trimmed"], rest.attributes["trimmed"]) == (False, True)
    for n, (clip, cut) in enumerate(zip(whole.clips, rest.clips, strict=True)):
        sound = whole.waveform[n]
        assert clip.leading_silence == pytest.approx(leading_silence(sound))
        start = cut.trimmed_frames
        assert start == (int(np.argmax(np.abs(sound.astype(int)) > 16)) // 640 + 1 if clip.leading_silence else 0)
        np.testing.assert_array_equal(rest.waveform[n], sound[640 * start :])
        np.testing.assert_array_equal(rest.crops[n], whole.crops[n][start:])
        np.testing.assert_array_equal(
            rest.visual[slice(*rest.offset[n : n + 2])], whole.visual[slice(*whole.offset[n : n + 2])][start:]
        )
        for (a, b), (c, d) in zip(clip.segments, cut.segments, strict=True):
            assert (c, d) == pytest.approx((max(a - start / 25, 0), b - start / 25), abs=1e-6)


def test_what_the_run_does_not_read_is_not_written(tmp_path, monkeypatch):
    """Leaves out trimmed training sets and crops that no method is trained on; writes all other shards."""
    monkeypatch.setattr(simulation, "CORPORA", dict.fromkeys(TEST_DATASETS, SMALL))
    monkeypatch.setattr(simulation, "CLIPS_PER_SHARD", 5)
    simulate(tmp_path)
    sources = {
        str(folder.relative_to(tmp_path)): open_source(folder) for folder in tmp_path.glob("*/*/*") if folder.is_dir()
    }
    contents = {name: {c for c in ("waveform", "crops") if source.has(c)} for name, source in sources.items()}
    for dataset in TEST_DATASETS:
        crops = {"crops"} if dataset == "av_deepfake1m" else set()
        for split in ("train", "val"):
            assert contents.pop(f"{dataset}/untrimmed/{split}") == {"waveform"} | crops
        for state in ("untrimmed", "trimmed"):
            assert contents.pop(f"{dataset}/{state}/test") == {"waveform", "crops"}
            assert [clip.path for clip in sources[f"{dataset}/{state}/test"].clips] == [
                f"{dataset}/test/c{n:03d}.mp4" for n in range(SMALL.test)
            ]
    assert not contents


def test_a_corpus_is_reproducible_and_never_overwritten(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(simulation, "CORPORA", {"av_deepfake1m": SMALL})
    simulate(tmp_path)
    for folder in ("untrimmed/val", "trimmed/test"):
        one, two = (open_shard(list_shards(root / "av_deepfake1m" / folder)[0]) for root in (corpus, tmp_path))
        assert repr(one.clips) == repr(two.clips)  # NaN is not equal to itself
        for name in ("visual", "audio"):
            np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
        for name in ("waveform", "crops"):
            np.testing.assert_array_equal(getattr(one, name).value, getattr(two, name).value)
    with pytest.raises(UserError, match="is not an empty folder"):
        simulate(tmp_path)


@pytest.mark.parametrize("short", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_the_run_trains_scores_prints_and_resumes(corpus, tmp_path, monkeypatch, capsys, short):
    """In short without MDS and RawNet2, which other tests train, and with one ablation of each kind."""
    use_small_networks(monkeypatch)
    if short:
        monkeypatch.delitem(SUPERVISED, "mds")
        monkeypatch.delitem(SUPERVISED, "rawnet2")
        few = ("avh_sup-linear", "avh_align-50%")
        monkeypatch.setattr("apps.paper._ablations", lambda root: [e for e in _ablations(root) if e.name in few])
    text = paper(corpus, tmp_path, FLAGS)
    planned = [experiment.name for experiment in experiments(corpus)]
    files = {file.name: file for file in (tmp_path / "scores").iterdir()}
    assert files.keys() == {f"{name},av_deepfake1m,{s}.h5" for name in planned for s in ("untrimmed", "trimmed")}
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {n for n in planned if n not in UNTRAINED}
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    of_silence = {
        r["trimmed"]: 100 * r["metrics"]["auc"]
        for r in metrics["results"]
        if (r["method"], r["group"]) == ("leading_silence", "all")
    }
    row = next(line for line in text.splitlines() if line.startswith("leading silence, duration"))
    assert f"{of_silence[False]:.1f} -> {of_silence[True]:.1f} (98.2 -> 50.6)" in row
    assert of_silence[False] == 100
    assert {table.title.partition(":")[0] for table in PAPER_TABLES} == {f"Table {n}" for n in (1, 2, 4, 5)}
    assert all(table.title in text for table in PAPER_TABLES)
    headings = [line for line in text.splitlines() if line.startswith("Table")]
    assert all("AV-Deepfake1M (SIMULATED): ours" in line for line in headings)
    assert CAVEATS["simulated"] in text
    for name in ("metrics.json", "clips.csv", "report.html"):
        assert "AV-Deepfake1M (SIMULATED)" in (tmp_path / name).read_text()
    assert (tmp_path / "tables.txt").read_text().strip() == text.strip()
    assert json.loads((tmp_path / "runs" / "avh_sup-linear" / "result.json").read_text())["epochs"] == 2
    lost, kept = files["factor,av_deepfake1m,trimmed.h5"], files["avh_align-mlp,av_deepfake1m,trimmed.h5"]
    before = kept.stat().st_mtime_ns
    lost.unlink()
    capsys.readouterr()
    assert paper(corpus, tmp_path, FLAGS) == text
    assert lost.is_file()
    assert kept.stat().st_mtime_ns == before
    assert "train_loss" not in capsys.readouterr().out  # nothing was retrained
    assert open_scores(lost).attributes["dataset"] == "AV-Deepfake1M"


UNTRAINED = ("leading_silence", "leading_amplitude", "speech_forensics", "factor", "clip_length")


def test_every_published_number_has_its_row():
    for table in PAPER_TABLES[:2]:
        shown = {(experiment, dataset) for _, experiment, _ in table.rows for dataset in TEST_DATASETS}
        assert table.published.keys() <= shown
        assert all(0 < auc <= 100 for numbers in table.published.values() for auc in numbers)


def result(method, dataset, trimmed, pooling, own, auc, group="all"):
    metrics = DetectionMetrics(**dict.fromkeys(METRIC_NAMES) | {"auc": auc})
    intervals = DetectionMetrics(**dict.fromkeys(METRIC_NAMES))
    return Result(dataset, method, trimmed, pooling, own, group, "", "given", 1, 1, 0.5, metrics, intervals)


def test_every_cell_is_of_its_own_row_set_state_and_pooling():
    """Gives each result a distinct AUC, so that a value from the wrong row, set, state, pooling or group shows."""
    rows = [(title, experiment, pooling) for table in PAPER_TABLES for title, experiment, pooling in table.rows]
    names = sorted({experiment for _, experiment, _ in rows})
    keys = [
        (name, TEST_DATASETS[dataset], trimmed, pooling, pooling == "max")
        for name in names for dataset in TEST_DATASETS for trimmed in (True, False) for pooling in POOLINGS
    ]  # fmt: skip
    aucs = {key: (n + 1) / 1000 for n, key in enumerate(keys)}
    assert len(aucs) < 1000
    results = [result(*key, auc) for key, auc in aucs.items()]
    results += [result(*key, 0.9999, group="category") for key in aucs]
    lines = iter(format_tables(results).splitlines())
    for title, experiment, pooling in rows:
        line = next(line for line in lines if line.startswith(title + " "))
        for dataset in TEST_DATASETS.values():
            own = pooling is None or pooling == "max"
            whole, cut = (100 * aucs[experiment, dataset, state, pooling or "max", own] for state in (False, True))
            assert f"{whole:.1f} -> {cut:.1f}" in line


def test_a_table_prints_only_existing_results():
    results = [result("avh_align-mlp", "FakeAVCeleb", False, "mean", True, 0.5)]
    text = format_tables([*results, result("factor", "FakeAVCeleb", True, "mean", True, None)])
    assert "50.0 -> - (94.6 -> 94.6)" in text
    assert "FACTOR" not in text
    assert "linear" not in text


def test_scores_of_other_clips_are_not_reused(tmp_path, monkeypatch, corpus):
    """Scores a changed test set again, also with methods that are not trained."""
    plan = [Experiment("factor", "factor")]
    monkeypatch.setattr("apps.paper.experiments", lambda root: plan)
    root = tmp_path / "root"
    shutil.copytree(corpus, root)
    assert CAVEATS["simulated"] in paper(root, tmp_path / "out")
    (file,) = (tmp_path / "out" / "scores").glob("*,untrimmed.h5")
    untrimmed = root / "av_deepfake1m" / "untrimmed"
    shutil.rmtree(untrimmed / "test")
    shutil.copytree(untrimmed / "val", untrimmed / "test")
    paper(root, tmp_path / "out")
    assert len(open_scores(file).clips) == SMALL.val


def test_missing_contents_are_reported_and_the_rest_is_done(tmp_path, monkeypatch, corpus):
    monkeypatch.setattr(
        "apps.paper.experiments", lambda root: [Experiment(m, m) for m in ("factor", "leading_silence")]
    )
    root = tmp_path / "root"
    shutil.copytree(corpus, root)
    with h5py.File(root / "av_deepfake1m" / "trimmed" / "test" / "features-00000.h5", "r+") as file:
        del file["waveform"]
    text = paper(root, tmp_path / "out")
    assert "leading_silence on av_deepfake1m, trimmed: its shards hold no waveform" in text
    assert "100.0 -> - (98.2 -> 50.6)" in text


def test_without_the_set_it_is_trained_on_avh_align_has_no_row(tmp_path, corpus):
    (tmp_path / "fakeavceleb").symlink_to(corpus / "av_deepfake1m")
    names = [experiment.name for experiment in experiments(tmp_path) if experiment.trained_on]
    assert names == ["avh_sup-fakeavceleb", "rawnet2-fakeavceleb", "mds-fakeavceleb"]


@pytest.mark.parametrize(
    ("flag", "reason"),
    [
        ("--config.sed=1", "no such setting"),
        ("--avh_align-50%.seed=-1", "seed=-1: must"),
        ("--other.seed=1", "give --NAME"),
        ("x", "give"),
        ("--avh_sup.method.head=mlp", "cannot be set"),
        ("--config.data.val=x", "cannot be set"),
    ],
)
def test_invalid_settings_are_rejected(corpus, tmp_path, flag, reason):
    with pytest.raises(UserError, match=reason):
        paper(corpus, tmp_path / "out", [flag])
    assert not (tmp_path / "out" / "scores").exists()  # rejected before any work


def test_a_root_without_shards(tmp_path):
    with pytest.raises(UserError, match="no training shards; lay them out as fakeavceleb"):
        paper(tmp_path, tmp_path / "out")
