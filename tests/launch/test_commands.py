"""Tests of the commands as a user types them: results, and one line and exit status 2 for every mistake."""

import json

import cv2
import h5py
import numpy as np
import pytest
import safetensors.numpy

from avh_shards import open_shard
from extract.check.contact_sheet import CAPTION, SHEET_COLUMNS
from jax_avh.evaluation import POOLINGS
from jax_avh.training.logging import read_metrics
from tests import rules

# Imports of torch and jax take seconds, so each mistake is made where it is cheap to reach.
MISTAKES = {
    "a missing flag": (["evaluate", "--scores=a.h5"], "--output"),
    "an unknown flag": (["evaluate", "--scores=a.h5", "--output=o", "--outptu=x"], "outptu"),
    "a stray argument": (["evaluate", "--scores=a.h5", "--output=o", "x"], "unexpected argument 'x'"),
    "an empty list of score files": (["evaluate", "--scores=", "--output=o"], "--scores"),
    "an empty score file's name": (["evaluate", "--scores=a.h5,", "--output=o"], "--scores"),
    "a list among the results": (
        ["evaluate", "--scores=a.h5", "--clips=r/clips.csv", "--output=r"],
        "r/clips.csv: is an input",
    ),
    "failures without a list": (["evaluate", "--scores=a.h5", "--output=o", "--failures=f.jsonl"], "--clips: required"),
    "no failures": (
        ["evaluate", "--scores=a.h5", "--output=o", "--clips=c.csv", "--failures=none.jsonl"],
        "none.jsonl: no such file",
    ),
    "no score file": (["evaluate", "--scores=none.h5", "--output=o"], "none.h5: no such file"),
    "no clip list": (["import_npz", "--clips=none.csv", "--features=.", "--output=o"], "none.csv: no such file"),
    "a list without paths": (
        ["import_npz", "--clips=bad.csv", "--features=.", "--output=o"],
        "bad.csv, line 1: no column",
    ),
    "no folder of features": (["import_npz", "--clips=c.csv", "--features=none", "--output=o"], "none: no such folder"),
    "a dtype of no use": (["import_npz", "--clips=c.csv", "--features=.", "--output=o", "--dtype=int8"], "--dtype"),
    "a file where a folder should be": (
        ["import_npz", "--clips=c.csv", "--features=.", "--output=c.csv"],
        "cannot be written",
    ),
    "two clips of one file": (["import_npz", "--clips=twins.csv", "--features=.", "--output=o"], "from the same file"),
    "no clips in a shard": (
        ["import_npz", "--clips=c.csv", "--features=.", "--output=o", "--clips_per_shard=0"],
        "clips_per_shard",
    ),
    "no media": (
        ["extract", "--clips=c.csv", "--media=none", "--avhubert=random", "--output=o"],
        "none: no such folder",
    ),
    "a contact sheet in place of a clip": (
        ["extract", "--clips=c.csv", "--media=.", "--avhubert=random", "--output=o", "--contact_sheet=a.mp4"],
        "a.mp4: is an input",
    ),
    "a contact sheet in place of another file": (
        ["extract", "--clips=c.csv", "--media=.", "--avhubert=random", "--output=r", "--contact_sheet=r/clips.csv"],
        "r/clips.csv: exists, and this command did not write it",
    ),
    "no encoder": (
        ["extract", "--clips=c.csv", "--media=.", "--avhubert=none.pt", "--output=o"],
        "none.pt: no such file",
    ),
    "no weights to convert": (["convert", "--input=none.pt", "--output=w.safetensors"], "none.pt: no such file"),
    "an unknown setting": (["train", "--config.data.trian=x", "--workdir=w"], "trian"),
    "a setting of another type": (["train", "--config.seed=x", "--workdir=w"], "seed"),
    "a cluster without --distributed": (
        ["train", "--coordinator_address=127.0.0.1:1", "--num_processes=2", "--process_id=1", "--workdir=w"],
        "--coordinator_address: needs --distributed",
    ),
    "a number of processes without --distributed": (
        ["train", "--num_processes=2", "--workdir=w"],
        "--num_processes: needs --distributed",
    ),
    "a part of a job array": (
        ["extract", "--clips=c.csv", "--media=.", "--avhubert=random", "--output=o", "--task_count=8"],
        "--task_count=8: no job array or launcher sets the index",
    ),
    "no training features": (["train", "--config.data.val=x", "--workdir=w"], "--config.data.train"),
    "no shards": (["train", "--config.data.train=.", "--config.data.val=.", "--workdir=w"], "no feature shards"),
    "a task of several processes": (
        ["score", "--method=factor", "--features=.", "--output=s.h5", "--distributed", "--task_count=2"],
        "--distributed, --task_count, --merge: only one is possible",
    ),
    "a task without a count": (
        ["score", "--method=factor", "--features=.", "--output=s.h5", "--task_index=0"],
        "--task_index: needs --task_count",
    ),
    "no weights to score with": (["score", "--weights=none", "--features=.", "--output=s.h5"], "none: no such file"),
    "a method of no training": (
        ["train", "--config.method=factor", "--config.data.train=.", "--config.data.val=.", "--workdir=w"],
        "must be avh_align or avh_sup",
    ),
    "no weights": (["score", "--method=avh_sup", "--features=.", "--output=s.h5"], "avh_sup needs --weights"),
    "a method of no training in a file of flags": (["train", "--flagfile=f.flags"], "must be avh_align or avh_sup"),
    "no file of flags": (["train", "--flagfile=none.flags"], "Unable to open flagfile"),
    "a threshold of no number": (["evaluate", "--scores=a.h5", "--output=o", "--threshold=x=y"], "--threshold"),
    "a threshold that is infinite": (["evaluate", "--scores=a.h5", "--output=o", "--threshold=x=inf"], "'x=inf'"),
    "a threshold that is none": (["evaluate", "--scores=a.h5", "--output=o", "--threshold=x=nan"], "'x=nan'"),
    "a threshold without a number": (["evaluate", "--scores=a.h5", "--output=o", "--threshold=x=y"], "'x=y' is not a"),
    "two thresholds of a name": (["evaluate", "--scores=a.h5", "--output=o", "--threshold=x=1,x=2"], "'x=2'"),
    "no score file to submit": (
        ["submit", "--scores=none.h5", "--test_files=c.csv", "--output=s.zip"],
        "none.h5: no such file",
    ),
    "no folder to audit": (["audit", "--features=", "--output=o"], "--features"),
    "no shards to audit": (["audit", "--features=none", "--output=o"], "no feature shards"),
    "no corpus": (["paper", "--root=none", "--output=o"], "no training shards"),
    "no video": (["detect", "--avhubert=random", "--weights=w"], "no VIDEO given"),
    "a folder of videos without results": (["detect", ".", "--avhubert=random", "--weights=w"], "--results: required"),
    "results of single videos": (
        ["detect", "x.mp4", "--avhubert=random", "--weights=w", "--results=r.jsonl"],
        "--results: is for --clips or a folder",
    ),
    "retries of single videos": (
        ["detect", "x.mp4", "--avhubert=random", "--weights=w", "--retry_failed=all"],
        "--retry_failed: is for --clips or a folder",
    ),
    "both sides of no reference": (
        ["detect", "x.mp4", "--avhubert=random", "--weights=w", "--two_sided"],
        "--two_sided: needs --reference",
    ),
    "rates of no reference": (
        ["evaluate", "--scores=a.h5", "--output=o", "--false_alarms=0.1"],
        "--false_alarms: needs --reference",
    ),
    "two kinds of verdicts": (
        ["detect", ".", "--avhubert=random", "--weights=w", "--results=r.jsonl", "--json=v.json"],
        "--json: is for videos that are named one by one",
    ),
    "a folder and a video": (
        ["detect", "x.mp4", ".", "--avhubert=random", "--weights=w", "--results=r.jsonl"],
        ".: is a folder; name no other video",
    ),
    "a list and a video": (
        ["detect", "x.mp4", "--clips=c.csv", "--avhubert=random", "--weights=w", "--results=r.jsonl"],
        "x.mp4: is given together with --clips",
    ),
    "a list without its folder": (
        ["detect", "--clips=c.csv", "--avhubert=random", "--weights=w", "--results=r.jsonl"],
        "--media: required here",
    ),
    "a folder without videos": (
        ["detect", ".", "--avhubert=random", "--weights=w", "--results=r.jsonl"],
        ".: holds no videos",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_reported_in_one_sentence(tmp_path, monkeypatch, launch, mistake):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.csv").write_text("file\na.mp4\n")
    (tmp_path / "c.csv").write_text("path\na.mp4\n")
    (tmp_path / "twins.csv").write_text("path\na.mp4\na.avi\n")
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "clips.csv").write_text("path\na.mp4\n")
    (tmp_path / "f.flags").write_text(
        "--config.method=factor\n--config.data.train=.\n--config.data.val=.\n--workdir=w\n"
    )
    arguments, expected = MISTAKES[mistake]
    before = set(tmp_path.rglob("*"))
    status, output = launch(*arguments)
    assert status == 2
    errors = [line for line in output.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert expected in errors[0]
    assert "Traceback" not in output
    assert set(tmp_path.rglob("*")) == before


def test_the_main_path_by_its_commands(tmp_path, launch, tiny_checkpoint, short_clips, monkeypatch):
    """Runs extract, train, score and evaluate, each on the output of the one before."""
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")  # --compile would compile for minutes
    (tmp_path / "c.csv").write_text("path,label\ns4.mp4,0\nst48.mp4,0\ntrim.mp4,1\nnone.mp4,1\n")
    shards, run, scores, results = (tmp_path / name for name in ("shards", "run", "scores.h5", "results"))
    extraction = {"clips": tmp_path / "c.csv", "media": short_clips, "avhubert": tiny_checkpoint, "output": shards}
    extraction |= {"input": "roi", "dtype": "float32", "clips_per_shard": 3, "contact_sheet": tmp_path / "sheet.png"}
    extraction |= {"compile": True, "clip_timeout": 100, "fps_policy": "native", "retry_failed": "none"}
    training = {"config.data.train": shards, "config.data.val": shards, "workdir": run, "config.train.epochs": 2}
    training |= {
        "profile": True,
        "config.data.batch_frames": 32,
        "config.optimizer.learning_rate": 1e-3,
        "config.data.shuffle": False,
        "config.method.head": "linear",
    }
    for command, flags in {
        "extract": extraction,
        "train": training,
        "score": {"weights": run, "features": shards, "output": scores},
        "evaluate": {"scores": scores, "output": results},
    }.items():
        status, output = launch(command, *(f"--{name}={value}" for name, value in flags.items()))
        assert status == 0, output
        assert "Traceback" not in output
        assert "I1" not in output  # log lines of libraries
    assert [len(open_shard(path).clips) for path in sorted(shards.glob("*.h5"))] == [3, 0]
    assert json.loads((shards / "failures.jsonl").read_text())["path"] == "none.mp4"
    rows = 4 * [CAPTION] + 3 * [2 * 96]  # sheet rows: a caption for each clip, crops for three
    assert cv2.imread(str(tmp_path / "sheet.png")).shape == (sum(rows), SHEET_COLUMNS * 2 * 96, 3)
    lines = read_metrics(run / "metrics.jsonl")
    assert [line["epoch"] for line in lines] == [0, 1, 2]
    assert lines[-1]["train_loss"] < lines[0]["train_loss"]
    files = {"metrics.jsonl", "tensorboard", "checkpoints", "best.safetensors", "profile"}
    assert {path.name for path in run.iterdir()} >= files
    with h5py.File(scores) as file:
        assert file.attrs["format"] == "avh-scores"
        assert file["score"].shape == (75,)
        assert np.isfinite(file["clips/score"][:]).all()
    found = json.loads((results / "metrics.json").read_text())["results"]
    assert {result["pooling"] for result in found} == set(POOLINGS)
    assert {(result["method"], result["real"]) for result in found} == {("avh_align", 2)}
    assert {path.name for path in results.iterdir()} == {"metrics.json", "clips.csv", "report.html"}


def test_weights_convert_both_ways_by_command(tmp_path, launch):
    rules.write_alignment_weights(tmp_path / "a.safetensors")
    for source, target in (("a.safetensors", "b.pt"), ("b.pt", "c.safetensors")):
        assert launch("convert", f"--input={tmp_path / source}", f"--output={tmp_path / target}")[0] == 0
    found = safetensors.numpy.load_file(tmp_path / "c.safetensors")
    for name, array in rules.alignment_weights().items():
        np.testing.assert_array_equal(found[name], array)
