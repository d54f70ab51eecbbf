"""The paper's run on a small simulated corpus: its layout, its tables, going on, and what is told when it cannot."""

import json

import numpy as np
import pytest

from apps import simulate as simulation
from apps.paper.plan import DATASETS, detectors
from apps.paper.run import paper
from apps.paper.tables import PUBLISHED, TABLES, format_tables
from apps.simulate import simulate
from extract.schema import InputError, list_shards, open_shard
from jax_avh.data import Corpus
from jax_avh.evaluation import open_scores
from jax_avh.methods.leading_silence import leading_silence

SMALL = Corpus(8, 4, 12, fakes=True, kinds=("local",), frames=(20, 30), width=16)
FLAGS = ["--config.train.epochs=1", "--config.data.batch_frames=128", "--avh_sup-linear.train.epochs=2"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simulation, "CORPORA", {"av_deepfake1m": SMALL})
        root = tmp_path_factory.mktemp("corpus")
        simulate(root)
        return root


def test_the_trimmed_set_is_the_untrimmed_one_less_its_silence(corpus):
    for split in ("train", "val", "test"):
        folders = (corpus / "av_deepfake1m" / state / split for state in ("untrimmed", "trimmed"))
        whole, rest = (open_shard(list_shards(folder)[0]) for folder in folders)
        assert (whole.attributes["trimmed"], rest.attributes["trimmed"]) == (False, True)
        for n, (clip, cut) in enumerate(zip(whole.clips, rest.clips, strict=True)):
            sound = whole.waveform[n]
            assert clip.leading_silence == pytest.approx(leading_silence(sound))
            start = cut.trimmed_frames
            assert start == (int(np.argmax(np.abs(sound.astype(int)) > 16)) // 640 + 1 if clip.leading_silence else 0)
            np.testing.assert_array_equal(rest.waveform[n], sound[640 * start :])
            np.testing.assert_array_equal(
                rest.visual[slice(*rest.offset[n : n + 2])], whole.visual[slice(*whole.offset[n : n + 2])][start:]
            )
            for (a, b), (c, d) in zip(clip.segments, cut.segments, strict=True):
                assert (c, d) == pytest.approx((max(a - start / 25, 0), b - start / 25), abs=1e-6)


def test_a_corpus_is_the_same_each_time_and_not_written_over(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(simulation, "CORPORA", {"av_deepfake1m": SMALL})
    simulate(tmp_path)
    for state in ("untrimmed", "trimmed"):
        one, two = (open_shard(list_shards(r / "av_deepfake1m" / state / "val")[0]) for r in (corpus, tmp_path))
        assert one.clips == two.clips
        for name in ("visual", "audio"):
            np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
        np.testing.assert_array_equal(one.waveform.value, two.waveform.value)
    with pytest.raises(InputError, match="is not empty"):
        simulate(tmp_path)


def test_the_run_trains_scores_prints_and_goes_on(corpus, tmp_path, capsys):
    text = paper(corpus, tmp_path, FLAGS)
    planned = [detector.name for detector in detectors(corpus)]
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
    assert {table.title.partition(":")[0] for table in TABLES} == {f"Table {n}" for n in (1, 2, 4, 5)}
    assert all(table.title in text for table in TABLES)
    assert (tmp_path / "tables.txt").read_text().strip() == text.strip()
    assert json.loads((tmp_path / "runs" / "avh_sup-linear" / "result.json").read_text())["epochs"] == 2
    lost, kept = files["factor,av_deepfake1m,trimmed.h5"], files["avh_align,av_deepfake1m,trimmed.h5"]
    before = kept.stat().st_mtime_ns
    lost.unlink()
    capsys.readouterr()
    assert paper(corpus, tmp_path, FLAGS) == text
    assert lost.is_file()
    assert kept.stat().st_mtime_ns == before
    assert "epoch" not in capsys.readouterr().out  # nothing was trained again
    assert open_scores(lost).attributes["dataset"] == "AV-Deepfake1M"


UNTRAINED = ("leading_silence", "leading_amplitude", "speech_forensics", "factor", "clip_length")


def test_every_published_number_has_its_row():
    shown = {(detector, dataset) for table in TABLES for _, detector, _ in table.rows for dataset in DATASETS}
    assert PUBLISHED.keys() <= shown
    assert all(0 < auc <= 100 for numbers in PUBLISHED.values() for auc in numbers)


def test_a_table_prints_what_there_is():
    def result(method, trimmed, auc):
        return {"method": method, "pooling": "mean", "own": True, "dataset": "FakeAVCeleb", "trimmed": trimmed,
                "group": "all", "metrics": {"auc": auc}}  # fmt: skip

    text = format_tables([result("avh_align", False, 0.5), result("factor", True, None)])
    assert "AVH-Align" in text
    assert "50.0 -> - (94.6 -> 94.6)" in text
    assert "FACTOR" not in text
    assert "linear" not in text


@pytest.mark.parametrize(
    ("flag", "reason"), [("--config.sed=1", "no such setting"), ("--other.seed=1", "give --NAME.FIELD"), ("x", "give")]
)
def test_settings_that_mean_nothing(corpus, tmp_path, flag, reason):
    with pytest.raises(InputError, match=reason):
        paper(corpus, tmp_path / "out", [flag])


def test_a_root_without_shards(tmp_path):
    with pytest.raises(InputError, match="no training shards; lay them out as fakeavceleb"):
        paper(tmp_path, tmp_path / "out")
