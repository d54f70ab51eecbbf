"""Tests that outside text is harmless in terminals, spreadsheets and pictures, and of warnings about few clips."""

import csv
import json
import re
import shutil

import h5py
import numpy as np
import pytest

from avh_shards import ClipMeta, UserError
from avh_shards.clip import offsets
from avh_shards.format import list_shards
from avh_shards.text import format_table, nearest, one_line
from jax_avh.audit import audit, verdict
from jax_avh.configs import make_config
from jax_avh.evaluation import evaluate
from jax_avh.report.audit import draw_audit, write_audit
from jax_avh.report.comparison import render_report
from jax_avh.report.results import write_results
from jax_avh.scores import ScoreTable, write_scores
from tests.jax_avh.data.test_batches import make_source
from tests.runs import train

ESCAPES = "\x1b]0;pwned\x07\x1b[31mRED\x1b[0m\u202e"


def harmless(output: str) -> bool:
    return all(c.isprintable() or c in "\r\n" for c in output)  # progress bars use carriage returns


def scored(labels, paths=None, dataset="", **meta):
    """Returns scores that follow the labels."""
    paths = paths or [f"{n}.mp4" for n in range(len(labels))]
    clips = tuple(ClipMeta(path, label, **meta) for path, label in zip(paths, labels, strict=True))
    score = np.array(labels, np.float32) - 0.5
    return ScoreTable("m", clips, offsets([1] * len(clips)), None, score, {"dataset": dataset})


def test_a_table_aligns_and_escapes_its_cells():
    assert format_table([["a", "bb"], ["\x1b[m", "c"]]) == "a       bb\n\\x1b[m  c"
    assert format_table([["a", "bb"], ["ccc", "d"]], right=True) == "  a  bb\nccc   d"
    assert "\n" not in format_table([["x\ny"]])


def test_escapes_of_shards_and_names_do_not_reach_the_terminal(tmp_path, fork):
    folder = tmp_path / f"shards{ESCAPES}"
    make_source(folder, [5, 9])
    damaged = shutil.copytree(folder, tmp_path / "damaged")
    with h5py.File(damaged / "features-00000.h5", "a") as file:
        file.attrs["encoder"] = ESCAPES
    missing = f"{tmp_path}/none{ESCAPES}"
    for status, command in [
        (1, ["inspect", str(folder), f"--against={folder}"]),
        (1, ["inspect", str(damaged)]),
        (2, ["score", "--method=factor", f"--features={damaged}", f"--output={folder}/scores.h5"]),
        (0, ["score", "--method=factor", f"--features={folder}", f"--output={folder}/scores.h5"]),
        (0, ["audit", f"--features={folder},{list_shards(folder)[0]}", f"--output={tmp_path}/audit"]),
        (2, ["evaluate", f"--scores={missing}", f"--output={tmp_path}/o"]),
        (2, ["convert", f"--input={missing}", f"--output={tmp_path}/w.safetensors"]),
        (2, ["submit", f"--scores={missing}", f"--test_files={missing}", f"--output={tmp_path}/s.zip"]),
        (2, ["import_npz", f"--clips={missing}", f"--features={folder}", f"--output={tmp_path}/o"]),
        (2, ["extract", f"--clips={missing}", "--media=.", "--avhubert=random", f"--output={tmp_path}/o"]),
        (2, ["train", f"--config.data.train={missing}", f"--config.data.val={folder}", f"--workdir={tmp_path}/w"]),
        (2, ["evaluate", f"--{ESCAPES}", "--scores=x"]),
    ]:
        found, output = fork(*command)
        assert found == status, output
        assert harmless(output), command


def test_escapes_of_a_clip_list_do_not_reach_the_terminal(tmp_path, fork):
    (tmp_path / "c.csv").write_text(f'path,category\n"a.mp4","{ESCAPES}"\n')
    status, output = fork("clips", f"--clips={tmp_path / 'c.csv'}", f"--media={tmp_path}")
    assert status in (1, 2)  # the file is missing, or the list is rejected
    assert harmless(output.replace(f",{ESCAPES}", "").replace("\r", ""))  # without the list itself on standard output


def test_formulas_of_names_are_text_in_a_spreadsheet(tmp_path):
    names = ["=cmd|'/c calc'!A0", "+1.mp4", "-2.mp4", "@SUM(1).mp4", "plain.mp4"]
    write_scores(scored([0, 1, 0, 1, 0], names, dataset="=d", category="@c"), tmp_path / "a.h5")
    write_results([tmp_path / "a.h5"], tmp_path / "out")
    with (tmp_path / "out" / "clips.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == [*(f"'{name}" for name in names[:4]), "plain.mp4"]
    assert {(row["dataset"], row["category"]) for row in rows} == {("'=d", "'@c")}
    assert [float(row["own"]) for row in rows] == [-0.5, 0.5, -0.5, 0.5, -0.5]


@pytest.mark.parametrize("name", [r"$\frac$", "$x$", "a_$\\alpha^2$", "x\x1b[31m"])
def test_folder_names_are_not_formulas_in_pictures(tmp_path, name):
    source = make_source(tmp_path / name, [5, 9], labels=[0, 1])
    write_audit([source.path], tmp_path / "audit")
    (figure,) = draw_audit(audit({name: source})).values()
    assert figure.get_suptitle() == name.replace("\x1b", "\\x1b")


def test_pages_hold_no_control_characters(tmp_path):
    table = scored([0, 1] * 6, dataset=ESCAPES, category=ESCAPES)
    write_scores(scored([0, 1] * 6), tmp_path / "a.h5")
    evaluation = evaluate([tmp_path / "a.h5"], resamples=10)
    (scored_set,) = evaluation.scored_sets
    object.__setattr__(scored_set, "table", table)
    (tmp_path / "r.html").write_text(render_report(evaluation), encoding="utf-8")
    page = (tmp_path / "r.html").read_text()
    assert harmless(page)
    assert "\\x1b]0;pwned" in page


@pytest.mark.parametrize(("labels", "few"), [([0, 1, 1, 1, 1, 1], True), ([0, 1] * 4, True), ([0, 1] * 5, False)])
def test_too_few_clips_have_no_interval(tmp_path, labels, few):
    write_scores(scored(labels), tmp_path / "a.h5")
    write_scores(scored(labels), tmp_path / "b.h5")
    text = write_results([tmp_path / "a.h5", tmp_path / "b.h5"], tmp_path / "out")
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert [result["metrics"]["auc"] for result in metrics["results"]] == [1, 1]
    assert all((result["intervals"]["auc"] is None) is few for result in metrics["results"])
    assert (metrics["comparisons"][0]["p_value"] is None) is few
    assert ("1.000-1.000" in text) is not few
    assert ("too few clips" in text) is few
    assert ("too few clips" in (tmp_path / "out" / "report.html").read_text()) is few
    assert any("too few for intervals and p-values" in warning for warning in metrics["warnings"]) is few


@pytest.mark.parametrize(
    ("lengths", "labels", "expected"),
    [
        ([5, 9], [0, 1], "too few clips to say whether labels can be predicted from length \\(1 real, 1 fake\\)"),
        ([5, 9, 7, 6, 8, 5, 9], [0, 1, 1, 1, 1, 1, 1], "too few clips to say .* \\(1 real, 6 fake\\)"),
        ([5, 7, 7, 5, 9, 6, 6, 9, 8, 8], [0, 1] * 5, "too few clips to say .*AUC 0.50, 95 %"),
        ([5, 7] * 40, [0, 0, 1, 1] * 20, "labels cannot be predicted from length"),
        ([5, 7] * 5, [0, 1] * 5, "labels can be predicted from length:"),
    ],
)
def test_an_audit_of_few_clips_does_not_judge(tmp_path, lengths, labels, expected):
    text = verdict(audit({"s": make_source(tmp_path / "s", lengths, per_shard=100, labels=labels)}))
    (sentence,) = (line for line in text if "length" in line)
    assert re.search(expected, sentence)


def settings(tmp_path, **more):
    data = {f"data.{split}": str(tmp_path / split) for split in ("train", "val")}
    return make_config(data | {"train.epochs": "1", "data.batch_frames": "10"} | more)


@pytest.fixture
def sources(tmp_path):
    make_source(tmp_path / "train", [5, 9, 7])
    make_source(tmp_path / "val", [5, 6], name="v")
    return tmp_path


def test_a_run_reports_its_progress(sources, capsys):
    run = sources / "run"
    train(settings(sources), run)
    first = capsys.readouterr().out
    result = json.loads((run / "result.json").read_text())
    last = f"best epoch 1, val_loss {result['best_val_loss']:.6g}: {run}/best.safetensors; next: python -m launch.score"
    assert first.splitlines()[-1].startswith(f"{last} --weights={run} ")
    assert "warning" not in first
    assert "resumes" not in first
    train(settings(sources), run)
    again = capsys.readouterr().out
    assert "this run has already ended; nothing to train" in again
    assert again.splitlines()[-1] == first.splitlines()[-1]
    train(settings(sources, **{"train.epochs": "2"}), run)
    longer = capsys.readouterr().out
    assert "resumes after epoch 1, step 0" in longer
    assert "train_loss" in longer
    train(settings(sources, **{"train.epochs": "0"}), sources / "none")
    assert capsys.readouterr().out.splitlines()[-1] == "no epoch was trained, so there are no weights"


def test_validation_on_training_clips_is_warned_of(sources, capsys):
    config = settings(sources, **{"data.val": str(sources / "train"), "train.epochs": "0"})
    train(config, sources / "run")
    assert "warning: 3 of the 3 validation clips are training clips, too" in capsys.readouterr().out


def test_refusals_say_what_differs(sources, fork):
    """Trains with other settings, other features, another encoder and other weights."""
    given = {"train.epochs": "0", "method.head": "linear"}
    train(settings(sources, **given), sources / "run")
    make_source(sources / "other", [5, 9], weights_sha256="f00")
    make_source(sources / "mixed", [5, 9], per_shard=1)
    with h5py.File(sources / "mixed" / "features-00001.h5", "a") as file:
        file.attrs["trimmed"] = True
    make_source(sources / "moved", [5, 9, 8])
    for more, expected in [
        ({"model.tau": "7", "seed": "3"}, "--config.model.tau was 15, now 7; --config.seed was 0, now 3"),
        ({"model.normalise": "False"}, "--config.model.normalise was True, now False"),
        ({"data.train_clips": "2"}, "--config.data.train_clips was 0, now 2"),
        (
            {"data.train": str(sources / "moved")},
            f"{sources / 'moved'} holds other features than {sources / 'train'} did",
        ),
        ({"data.val": str(sources / "other")}, f"its weights_sha256 is f00, but that of {sources / 'train'} is 0"),
        ({"data.val": str(sources / "mixed")}, "00001.h5: its trimmed is True, but that of"),
    ]:
        with pytest.raises(UserError, match=re.escape(expected)):
            train(settings(sources, **given | more), sources / "run")
    flags = [f"--config.data.{split}={sources / split}" for split in ("train", "val")]
    flags += ["--config.train.epochs=0", "--config.data.batch_frames=10", f"--workdir={sources / 'run'}"]
    status, output = fork("train", *flags)
    assert (status, output.count("error: ")) == (2, 1)
    assert "--config.method.head was 'linear', now 'mlp'" in output


def test_nearest_names_and_single_lines():
    assert nearest("outptu", ["output", "scores"], "--") == "; did you mean --output?"
    assert nearest("xyz", ["output", "scores"]) == ""
    assert one_line("a\n b\x1b") == "a b\\x1b"
