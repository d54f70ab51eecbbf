"""Tests that every output of every command labels numbers computed from simulated features as such."""

import csv
import json
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors
from flax import nnx

from apps.simulate import Corpus, simulate_corpus
from apps.sweep import format_results, make_trials
from avh_shards import open_shard, read_clip_list
from avh_shards.clip_list import MAX_FRAMES
from avh_shards.format import CAVEATS, caveat, marked, marks, read_shard_table
from extract.convert.npz import import_features
from jax_avh.audit import audit
from jax_avh.configs import make_config
from jax_avh.data.source import open_source
from jax_avh.evaluation.results import ScoredSet
from jax_avh.inference import score_shards
from jax_avh.models.alignment import NETWORKS
from jax_avh.models.weights import read_notes, save_weights
from jax_avh.report.audit import draw_audit
from jax_avh.scores import open_scores
from tests.jax_avh.data.test_batches import make_source
from tests.runs import train

METRIC = re.compile(r"\d\.\d\d")  # pattern of a number computed from features
SETTINGS = {"method.head": "linear", "data.batch_frames": "64", "train.epochs": "1", "optimizer.learning_rate": "1e-3"}


def texts(file: Path) -> str:
    """Returns the text that a reader of a file sees."""
    if file.suffix == ".safetensors":
        with safetensors.safe_open(file, "numpy") as weights:
            return caveat(read_notes(file)) + str(weights.metadata()) + " 0.00"
    if file.name.startswith("scores"):
        return caveat(open_scores(file).attributes) + " 0.00"
    if file.suffix == ".h5":
        return caveat(read_shard_table(file).attributes) + " 0.00"
    if file.suffix == ".zip":
        with zipfile.ZipFile(file) as archive:
            return archive.comment.decode() + archive.read("prediction.txt").decode()
    if "tfevents" in file.name:
        return file.read_bytes().decode("latin-1") + " 0.00"
    return file.read_text()


@pytest.fixture(scope="module")
def simulated(tmp_path_factory, fork):
    """Returns every output of the main path on a small simulated corpus, with a file of what each command printed."""
    root = tmp_path_factory.mktemp("simulated")
    corpus, out, printed = root / "corpus", root / "out", root / "out" / "printed"
    simulate_corpus(corpus, Corpus(train=6, val=3, test=12, frames=(20, 30), width=4))
    run, shards = out / "sweep" / "run", out / "shards"
    data = {f"data.{split}": str(shards / split) for split in ("train", "val")}
    flags = [f"--config.{name}={value}" for name, value in (SETTINGS | data).items()]
    features = f"--features={shards / 'test'}"
    scores = f"--scores={out / 'scores.h5'}"
    commands = [
        *(
            [
                "import_npz",
                f"--clips={corpus / split}.csv",
                f"--features={corpus}",
                f"--output={shards / split}",
                "--width=4",
            ]
            for split in ("train", "val", "test")
        ),
        ["inspect", str(shards / "test")],
        ["train", *flags, f"--workdir={run}"],
        ["sweep", *flags, f"--workdir={out / 'sweep'}"],
        ["score", f"--weights={run}", features, f"--output={out / 'scores.h5'}", "--dataset=FakeAVCeleb"],
        ["calibrate", scores, f"--output={out / 'reference.json'}", f"--page={out / 'reference.html'}"],
        ["evaluate", scores, f"--output={out / 'results'}", f"--reference={out / 'reference.json'}"],
        ["audit", features, f"--output={out / 'audit'}"],
        ["submit", scores, f"--test_files={root / 'files.txt'}", f"--output={out / 'submission.zip'}"],
    ]
    (root / "files.txt").write_text("c000.mp4\nc001.mp4\n")
    printed.mkdir(parents=True)
    for n, (command, *arguments) in enumerate(commands):
        status, output = fork(command, *arguments)
        assert status == 0, output
        (printed / f"{n} {command}.txt").write_text(output + "\n0.00")  # treated as if each command printed a number
    return out


def test_every_output_says_so(simulated):
    seen = []
    for file in sorted(path for path in simulated.rglob("*") if path.is_file()):
        if file.suffix == ".png" or "checkpoints" in file.parts or file.name == "config.json":
            continue  # pictures are tested below; settings do not depend on features
        text = texts(file)
        if METRIC.search(text):
            seen.append(file.name)
            assert "SIMULATED" in text, file
    kinds = {
        "metrics.jsonl",
        "result.json",
        "best.safetensors",
        "scores.h5",
        "metrics.json",
        "clips.csv",
        "report.html",
    }
    kinds |= {
        "reference.json",
        "reference.html",
        "audit.json",
        "submission.zip",
        "extraction.json",
        "features-00000.h5",
    }
    assert kinds <= set(seen)
    assert sum(name.startswith("events") for name in seen) == 1
    assert sum(name.endswith(".txt") for name in seen) == 11


def test_every_row_and_sentence_with_a_number_says_so(simulated):
    printed = {file.stem.split()[1]: file.read_text().splitlines() for file in (simulated / "printed").iterdir()}
    rows = [line for line in printed["evaluate"] if METRIC.search(line)]
    assert all("FakeAVCeleb (SIMULATED)" in line for line in rows[:-1])
    assert "real clips of FakeAVCeleb (SIMULATED)" in rows[-2]  # what the reference's thresholds give
    assert "real clips of FakeAVCeleb (SIMULATED)" in printed["calibrate"][0]
    assert all("SIMULATED" in line for line in printed["audit"][:-1] if line)
    assert any(line.startswith("SIMULATED features") for line in printed["sweep"])
    metrics = json.loads((simulated / "results" / "metrics.json").read_text())
    assert {result["dataset"] for result in metrics["results"]} == {"FakeAVCeleb (SIMULATED)"}
    with (simulated / "results" / "clips.csv").open() as file:
        assert {row["caveat"] for row in csv.DictReader(file)} == {CAVEATS["simulated"]}
    for line in (simulated / "sweep" / "run" / "metrics.jsonl").read_text().splitlines():
        assert json.loads(line)["caveat"] == CAVEATS["simulated"]
    assert "<h2>FakeAVCeleb (SIMULATED)</h2>" in (simulated / "results" / "report.html").read_text()


def test_pictures_of_an_audit_say_so(simulated):
    figures = draw_audit(audit({"test": open_source(simulated / "shards" / "test")}))
    assert {figure.get_suptitle() for figure in figures.values()} == {"test (SIMULATED)"}


def test_a_detector_trained_on_simulated_features_says_so_on_others(simulated, tmp_path):
    """Uses features of an unknown encoder, which any weights accept; weights trained from it carry the caveat too."""
    source = make_source(tmp_path / "s", [5, 9], weights_sha256="unknown")
    weights = simulated / "sweep" / "run" / "best.safetensors"
    table = score_shards(source.path, tmp_path / "scores.h5", weights=weights)
    assert "SIMULATED" in caveat(table.attributes)
    titles = [ScoredSet(name, "m", None, table).title for name in ("", "set (SIMULATED)", "(SIMULATED)")]
    assert titles == ["m", "m (set (SIMULATED))", "m (SIMULATED)"]
    data = {"data.train": str(source.path), "data.val": str(source.path)}
    train(make_config(SETTINGS | data | {"init": str(weights)}), tmp_path / "run")
    assert marks(read_notes(tmp_path / "run" / "best.safetensors")) == ["simulated"]


def test_features_of_real_weights_say_nothing(tmp_path):
    source = make_source(tmp_path / "s", [5, 9])
    save_weights(NETWORKS["mlp"](source.width, rngs=nnx.Rngs(0)), tmp_path / "w.safetensors", {"weights_sha256": "0"})
    table = score_shards(source.path, tmp_path / "scores.h5", weights=tmp_path / "w.safetensors")
    assert "trained_on" not in table.attributes
    assert caveat(table.attributes) == ""
    assert marked("FakeAVCeleb", table.attributes) == "FakeAVCeleb"


def test_marks_add_up():
    both = {"weights_sha256": "random"}, {"weights_sha256": "0", "trained_on": "simulated"}
    assert caveat(*both) == f"{CAVEATS['random']}; {CAVEATS['simulated']}"
    assert marked("", *both) == "(RANDOM, SIMULATED)"


def test_simulated_and_other_features_do_not_share_a_set(tmp_path):
    simulate_corpus(tmp_path, Corpus(train=3, val=1, test=2, frames=(20, 30), width=16))
    clips = read_clip_list(tmp_path / "train.csv")
    with np.load(tmp_path / "train" / "c001.npz") as arrays:
        features = {name: arrays[name] for name in ("visual", "audio")}
    np.savez(tmp_path / "train" / "c001.npz", **features)
    summary = import_features(clips, tmp_path, tmp_path / "shards", width=16)
    assert (summary.stored, summary.failed) == (2, 1)
    assert "SIMULATED" in (tmp_path / "shards" / "failures.jsonl").read_text()
    assert open_shard(tmp_path / "shards" / "features-00000.h5").attributes["weights_sha256"] == "simulated"
    (tmp_path / "train" / "c000.npz").write_bytes(b"no npz")  # the first readable file decides
    summary = import_features(clips, tmp_path, tmp_path / "others", width=16)
    assert (summary.stored, summary.caveat) == (1, "")


@pytest.mark.parametrize("damage", ["no arrays", "too large"])
def test_a_damaged_first_file_costs_only_its_clip(tmp_path, damage):
    simulate_corpus(tmp_path, Corpus(train=3, val=1, test=2, frames=(20, 30), width=16))
    huge = np.zeros((MAX_FRAMES * 16 + 1, 1), np.float32)
    arrays = {"no arrays": {"other": np.zeros(1)}, "too large": {"visual": huge, "audio": huge}}[damage]
    np.savez_compressed(tmp_path / "train" / "c000.npz", **arrays)
    summary = import_features(read_clip_list(tmp_path / "train.csv"), tmp_path, tmp_path / "shards", width=16)
    assert (summary.stored, summary.failed) == (2, 1)
    assert "SIMULATED" in summary.caveat
    for file in (tmp_path / "train").iterdir():  # a restart finds no files, but the set keeps its mark
        file.unlink()
    again = import_features(read_clip_list(tmp_path / "train.csv"), tmp_path, tmp_path / "shards", width=16)
    assert "SIMULATED" in again.caveat


def test_results_of_a_sweep_say_so(simulated):
    data = {f"data.{split}": str(simulated / "shards" / split) for split in ("train", "val")}
    flags = [f"--config.{name}={value}" for name, value in (SETTINGS | data).items()]
    assert format_results(make_trials(flags, str(simulated / "sweep"))).splitlines()[-1] == CAVEATS["simulated"]
