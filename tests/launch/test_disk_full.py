"""Tests of a full disk: one message, no partial file, and the same command completes once space is free."""

import os
import subprocess

import pytest

from avh_shards import UserError, read_clip_list
from avh_shards.paths import append
from extract.convert.weights import convert_weights
from extract.run.job import Job, extract
from jax_avh.configs import make_config
from jax_avh.inference import score_shards
from jax_avh.report.audit import write_audit
from jax_avh.report.results import write_results
from jax_avh.scores import write_scores
from tests import rules
from tests.avh_shards.test_paths import contents
from tests.extract.run.test_job import settings
from tests.jax_avh.data.test_batches import make_source
from tests.jax_avh.evaluation.test_evaluate import make_table
from tests.runs import curve, train
from tests.sets import assert_same_set, make_media

FULL = "cannot be written: no space left on device; free some space"
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk takes root")


class Disk:
    """A disk of a few kilobytes or megabytes, mounted at `path`."""

    def __init__(self, path, size: str):
        self.path = path
        path.mkdir()
        if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path], check=False).returncode:
            pytest.skip("a small disk cannot be mounted here")

    def resize(self, size: str) -> None:
        """Changes the size of the disk."""
        subprocess.run(["mount", "-o", f"remount,size={size}", self.path], check=True)

    def fill(self, free: int) -> None:
        """Fills the disk up to some free bytes, rounded down to pages."""
        (self.path / "filler").unlink(missing_ok=True)
        room = os.statvfs(self.path).f_bavail * os.statvfs(self.path).f_frsize
        (self.path / "filler").write_bytes(bytes(room - free))

    def temporaries(self) -> list[str]:
        """Returns the leftovers that must not be there."""
        return [str(path) for path in self.path.rglob("*") if path.name.endswith((".part", "-tmp"))]


@pytest.fixture
def disk(tmp_path):
    """Returns a function that mounts a new disk of a given size."""
    made = []

    def make(size: str) -> Disk:
        made.append(Disk(tmp_path / f"disk{len(made)}", size))
        return made[-1]

    yield make
    for one in made:
        subprocess.run(["umount", "--lazy", one.path], check=True)  # Orbax may hold files open


def test_extraction(tmp_path, disk, tiny_checkpoint):
    clips = read_clip_list(make_media(tmp_path / "media", 3))
    small = disk("96k")

    def run(output):
        job = Job(clips, str(tmp_path / "media"), str(output), settings(clips_per_shard=2))
        return extract(job, tiny_checkpoint)

    with pytest.raises(UserError, match=rf"features-0000\d\.h5: {FULL}"):
        run(small.path / "out")
    assert not list(small.path.rglob("*.h5"))
    assert not small.temporaries()
    small.resize("4m")
    run(small.path / "out")
    run(tmp_path / "elsewhere")
    assert_same_set(small.path / "out", tmp_path / "elsewhere")


def test_training(tmp_path, disk):
    """Trains on a disk too small for settings, logs, one checkpoint or two checkpoints, enlarging it each time."""
    data = {split: make_source(tmp_path / split, [5, 9, 7]).path for split in ("train", "val")}
    given = {f"data.{split}": str(path) for split, path in data.items()}
    config = make_config(given | {"data.batch_frames": "10", "train.epochs": "2", "optimizer.learning_rate": "1e-3"})
    small = disk("4k")
    for size, reason in {
        "4k": rf"run/config\.json: {FULL}",
        "12k": rf"run/\S+: {FULL}",
        "6m": r"checkpoints: cannot be written: a checkpoint takes 9\.\d MB, but \d\.\d MB are free",
        "14m": r"checkpoints: cannot be written: a checkpoint takes 9\.\d MB, but 9\.\d MB are free",
    }.items():
        small.resize(size)
        with pytest.raises(UserError, match=reason):
            train(config, small.path / "run")
        assert not small.temporaries()
    assert [path.name for path in (small.path / "run" / "checkpoints").iterdir()] == ["0"]
    small.resize("64m")
    train(config, small.path / "run")
    train(config, tmp_path / "elsewhere")
    assert curve(small.path / "run") == curve(tmp_path / "elsewhere")
    for name in ("result.json", "best.safetensors"):
        assert (small.path / "run" / name).read_bytes() == (tmp_path / "elsewhere" / name).read_bytes()


def test_a_line_of_the_log_is_added_whole_or_not_at_all(disk):
    log = disk("8k").path / "metrics.jsonl"
    log.write_bytes(b"a" * 4000)
    with pytest.raises(UserError, match=f"metrics.jsonl: {FULL}"):
        append(log, b"b" * 6000)  # fits in part
    assert log.read_bytes() == b"a" * 4000


def test_training_whose_disk_fills_while_a_checkpoint_is_written(tmp_path, disk, monkeypatch):
    """Simulates a quota that the system does not announce: Orbax hits it in its own threads."""
    data = {f"data.{split}": str(make_source(tmp_path / split, [5, 9]).path) for split in ("train", "val")}
    monkeypatch.setattr("jax_avh.training.checkpoint.METADATA_BYTES", -(10**9))
    config = make_config(data | {"data.batch_frames": "10", "train.epochs": "1"})
    small = disk("1m")
    with pytest.raises(UserError, match=f"checkpoints: {FULL}"):
        train(config, small.path / "run")
    small.resize("64m")
    train(config, small.path / "run")
    train(config, tmp_path / "elsewhere")
    assert curve(small.path / "run") == curve(tmp_path / "elsewhere")


def test_scores(tmp_path, disk):
    make_source(tmp_path / "s", [3, 5])
    small = disk("4k")
    with pytest.raises(UserError, match=rf"x\.h5\.pieces/scores-00000\.h5: {FULL}"):
        score_shards(tmp_path / "s", small.path / "x.h5", "clip_length")
    assert not list(small.path.iterdir())
    small.resize("1m")
    score_shards(tmp_path / "s", small.path / "x.h5", "clip_length")


def test_results(tmp_path, disk):
    """Checks that all old results stay if the new ones do not fit."""
    write_scores(make_table(), tmp_path / "a.h5")
    write_scores(make_table("other", clips=("x.mp4", "y.mp4", "z.mp4")), tmp_path / "b.h5")
    small = disk("1m")
    out = small.path / "out"
    write_results([tmp_path / "a.h5"], out, resamples=5)
    old = contents(out)
    for free in (0, 8192, 32768):  # room for no file, some files, or all but part of the last
        small.fill(free)
        with pytest.raises(UserError, match=f"out: {FULL}"):
            write_results([tmp_path / "b.h5"], out, resamples=5)
        assert contents(out) == old
        assert not small.temporaries()
    (small.path / "filler").unlink()
    write_results([tmp_path / "b.h5"], out, resamples=5)
    assert not contents(out).items() & old.items()


def test_an_audit(tmp_path, disk):
    for name, lengths in {"one": [3, 5], "two": [4, 9]}.items():
        make_source(tmp_path / name, lengths, labels=[0, 1])
    small = disk("1m")
    out = small.path / "out"
    write_audit([tmp_path / "one"], out)
    old = contents(out)
    for free in (0, 16384):
        small.fill(free)
        with pytest.raises(UserError, match=f"out: {FULL}"):
            write_audit([tmp_path / "two"], out)
        assert contents(out) == old
        assert not small.temporaries()
    (small.path / "filler").unlink()
    write_audit([tmp_path / "two"], out)
    assert set(contents(out)) == {"audit.json", "two_length.png"}


def test_converted_weights(tmp_path, disk):
    weights = rules.write_alignment_weights(tmp_path / "w.safetensors")
    small = disk("1m")
    for name in ("w.pt", "w.safetensors"):
        source = weights if name == "w.pt" else tmp_path / "w.pt"
        with pytest.raises(UserError, match=f"{name}: {FULL}"):
            convert_weights(source, small.path / name)
        assert not list(small.path.iterdir())
        convert_weights(weights, tmp_path / "w.pt")


def test_a_command_says_it_in_one_line(tmp_path, disk, launch):
    make_source(tmp_path / "s", [3, 5])
    small = disk("4k")
    output = small.path / "x.h5"
    status, text = launch("score", "--method=clip_length", f"--features={tmp_path}/s", f"--output={output}")
    assert status == 2
    assert text.splitlines()[-1] == f"error: {output}.pieces/scores-00000.h5: {FULL}, or name another place"
    assert "Traceback" not in text
