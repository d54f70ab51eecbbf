"""Tests of simultaneous runs with one output: every command rejects the second; a killed run blocks nobody."""

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest

from apps.demo import demo
from apps.paper import paper
from apps.simulate import simulate
from apps.sweep import make_trials, sweep
from avh_shards import ClipMeta, UserError, paths
from avh_shards.clip import offsets
from avh_shards.paths import file_lock, locked
from extract.convert.npz import import_features
from extract.prepare import PrepareSettings
from extract.run.job import ExtractSettings, Job, extract
from extract.store.shard_set import task_lock
from jax_avh.configs import make_config
from jax_avh.evaluation.submission import submit
from jax_avh.inference import score_shards
from jax_avh.report.audit import write_audit
from jax_avh.report.results import write_results
from jax_avh.scores import ScoreTable, write_scores
from tests.conftest import TESTDATA
from tests.jax_avh.data.test_batches import make_source
from tests.runs import train
from tests.sets import make_media, start_extract

ROI = PrepareSettings(input="roi")


def run_extract(tmp_path, checkpoint, output, index=0, count=1, **options):
    settings = ExtractSettings(ROI, processes=1, **options)
    return extract(Job([ClipMeta("s4.mp4")], str(TESTDATA), str(output), settings), checkpoint, index, count)


def run_train(tmp_path, checkpoint, output):
    data = {f"data.{split}": str(make_source(tmp_path / split, [5, 9]).path) for split in ("train", "val")}
    train(make_config(data), output)


def run_sweep(tmp_path, checkpoint, output):
    sweep(make_trials([f"--config.data.{split}=x" for split in ("train", "val")], str(output)), 1)


def run_score(tmp_path, checkpoint, output):
    score_shards(make_source(tmp_path / "test", [5, 9]).path, output, "factor")


def some_scores(tmp_path):
    clips = tuple(ClipMeta(f"{n}.mp4", label=n % 2) for n in range(2))
    table = ScoreTable("factor", clips, offsets([3, 3]), np.ones(6, np.float32), np.ones(2, np.float32), {})
    write_scores(table, tmp_path / "given.h5")
    (tmp_path / "list.txt").write_text("0.mp4\n1.mp4\n")
    return tmp_path / "given.h5"


def run_paper(tmp_path, checkpoint, output):
    for dataset in ("av_deepfake1m", "fakeavceleb"):
        for split in ("train", "val", "test"):
            make_source(tmp_path / "root" / dataset / "untrimmed" / split, [5, 9])
    paper(tmp_path / "root", output)


COMMANDS = {  # command -> a run of it, and the lock of its output
    "extract": (run_extract, task_lock),
    "import_npz": (lambda t, _, o: import_features([ClipMeta("a.mp4")], t, o), task_lock),
    "train": (run_train, None),
    "sweep": (run_sweep, None),
    "score": (run_score, file_lock),
    "evaluate": (lambda t, _, o: write_results([some_scores(t)], o, resamples=10), None),
    "audit": (lambda t, _, o: write_audit([make_source(t / "test", [5, 9]).path], o), None),
    "submit": (lambda t, _, o: submit(some_scores(t), t / "list.txt", o), file_lock),
    "paper": (run_paper, None),
    "simulate": (lambda t, _, o: simulate(o), None),
    "demo": (lambda t, _, o: demo(o), None),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_the_second_of_two_runs_is_refused(tmp_path, tiny_checkpoint, command):
    run, lock = COMMANDS[command]
    output = tmp_path / ("out.zip" if command == "submit" else "out")
    with locked(output, lock and lock(output)):
        before = set(tmp_path.glob("out*/**/*"))
        with pytest.raises(UserError) as refusal:
            run(tmp_path, tiny_checkpoint, output)
        assert set(tmp_path.glob("out*/**/*")) == before
    assert str(refusal.value).startswith(f"{output}: another run is writing there (process {os.getpid()} on ")
    assert not output.exists()


def test_score_files_of_one_folder_are_written_side_by_side(tmp_path):
    with locked(tmp_path / "a.h5", file_lock(tmp_path / "a.h5")):
        run_score(tmp_path, None, tmp_path / "b.h5")
    assert (tmp_path / "b.h5").is_file()
    assert not list(tmp_path.glob(".*"))


def test_tasks_of_one_folder_run_side_by_side(tmp_path, tiny_checkpoint):
    with locked(tmp_path / "out", task_lock(tmp_path / "out", 1, 2)):
        run_extract(tmp_path, tiny_checkpoint, tmp_path / "out", 0, 2)
        left = tmp_path / "out" / ".features-00001.h5.x.part"
        with left.open("xb") as file:  # a temporary of task 1, which is running
            fcntl.flock(file, fcntl.LOCK_EX)
            run_extract(tmp_path, tiny_checkpoint, tmp_path / "out", 0, 2)
            assert left.exists()
    run_extract(tmp_path, tiny_checkpoint, tmp_path / "out", 0, 2)
    assert not list((tmp_path / "out").glob(".*"))


def test_tasks_of_different_settings_are_refused_before_any_shard(tmp_path, tiny_checkpoint):
    """Starts task 0 with another precision after task 1, which has no shards to write."""
    run_extract(tmp_path, tiny_checkpoint, tmp_path / "out", 1, 2)
    assert not list((tmp_path / "out").glob("*.h5"))
    with pytest.raises(UserError, match=r"settings.json: was made with dtype = 'float16', but this run has 'float32'"):
        run_extract(tmp_path, tiny_checkpoint, tmp_path / "out", 0, 2, dtype="float32")


def test_a_killed_run_keeps_nobody_out(tmp_path):
    code = (
        f"from avh_shards.paths import locked\nwith locked({str(tmp_path / 'out')!r}):\n print('', flush=True); input()"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    process.stdout.readline()
    with pytest.raises(UserError, match=f"process {process.pid} on"), locked(tmp_path / "out"):
        pass
    process.kill()
    process.communicate()
    assert (tmp_path / "out" / ".lock").exists()
    with locked(tmp_path / "out"):
        pass
    assert not (tmp_path / "out" / ".lock").exists()


def test_a_url_is_not_locked():
    with locked("memory://somewhere/out"), locked("memory://somewhere/out"):
        pass


def without_locks(monkeypatch):
    """Simulates a file system without locks, as on some clusters."""

    def refuse(file, operation):
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    paths._warn_of_no_locks.cache_clear()


def test_without_locks_runs_continue_and_warn_once(tmp_path, tiny_checkpoint, monkeypatch, capsys):
    without_locks(monkeypatch)
    (summary,) = run_extract(tmp_path, tiny_checkpoint, tmp_path / "shards")
    assert summary.stored == 1
    run_score(tmp_path, None, tmp_path / "scores.h5")
    assert (tmp_path / "scores.h5").is_file()
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: no file locks")]
    assert len(warnings) == 1
    assert not list(tmp_path.glob("**/.*lock"))


def test_two_extractions_at_once(tmp_path, tiny_checkpoint):
    """Runs two real processes: the second fails immediately, the first succeeds."""
    make_media(tmp_path / "media", 3)
    first = start_extract(tmp_path / "media", tiny_checkpoint, tmp_path / "out")
    while not (tmp_path / "out" / ".task-0-of-1.lock").exists():
        assert first.poll() is None
        time.sleep(0.01)
    second = start_extract(tmp_path / "media", tiny_checkpoint, tmp_path / "out", dtype="float32")
    assert second.wait() == 2
    assert first.wait() == 0
    assert f"another run is writing there (process {first.pid} on" in (tmp_path / "media.err").read_text()


def test_an_interrupted_extraction_ends_with_one_sentence(tmp_path, tiny_checkpoint):
    """Sends the signal to the whole process group, as Ctrl-C in a terminal does."""
    make_media(tmp_path / "media", 12)
    flags = {"clips": tmp_path / "media.csv", "media": tmp_path / "media", "avhubert": tiny_checkpoint}
    flags |= {"output": tmp_path / "out", "input": "roi", "clips_per_shard": 2}
    command = [sys.executable, "-m", "launch.extract", *(f"--{name}={value}" for name, value in flags.items())]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True, text=True)
    while not list((tmp_path / "out").glob("features-*.h5")):
        assert process.poll() is None
        time.sleep(0.05)
    workers = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)
    errors = process.communicate()[1]
    assert process.returncode == 2
    assert errors.count("error: interrupted") == 1
    assert "Traceback" not in errors
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert not alive


@pytest.fixture
def lockless(tmp_path, monkeypatch):
    """Makes `flock` fail for every library of a command, as on some network file systems."""
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc")
    (tmp_path / "nolock.c").write_text("#include <errno.h>\nint flock(int f, int o) { errno = ENOLCK; return -1; }\n")
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", tmp_path / "nolock.so", tmp_path / "nolock.c"], check=True)
    monkeypatch.setenv("LD_PRELOAD", str(tmp_path / "nolock.so"))


def run_all(commands: dict[str, dict[str, object]]) -> None:
    """Runs each command in a new process, because LD_PRELOAD has no effect on a fork."""
    for command, flags in commands.items():
        arguments = [sys.executable, "-m", f"launch.{command}", *(f"--{name}={value}" for name, value in flags.items())]
        result = subprocess.run(arguments, capture_output=True, text=True, timeout=300)
        assert result.returncode == 0, result.stderr
        assert (result.stdout + result.stderr).count("warning: no file locks") == 1


def test_importing_and_scoring_need_no_locks_of_the_kernel(tmp_path, lockless, rule_shards):
    (tmp_path / "c.csv").write_text("path\nval/c00.mp4\n")
    importing = {"clips": tmp_path / "c.csv", "features": rule_shards["npz"], "output": tmp_path / "shards"}
    scoring = {"method": "factor", "features": tmp_path / "shards", "output": tmp_path / "s.h5"}
    run_all({"import_npz": importing, "score": scoring})


@pytest.mark.slow
def test_extraction_training_and_scoring_need_no_locks_of_the_kernel(tmp_path, lockless, tiny_checkpoint):
    (tmp_path / "c.csv").write_text("path,label\ns4.mp4,0\nst48.mp4,0\n")
    shards, run = tmp_path / "shards", tmp_path / "run"
    extraction = {"clips": tmp_path / "c.csv", "media": TESTDATA, "avhubert": tiny_checkpoint, "output": shards}
    training = {"config.data.train": shards, "config.data.val": shards, "workdir": run, "config.train.epochs": 1}
    scoring = {"weights": run, "features": shards, "output": tmp_path / "s.h5"}
    run_all({"extract": extraction | {"input": "roi"}, "train": training, "score": scoring})


def test_interrupted_locks_are_released(tmp_path):
    with contextlib.suppress(KeyboardInterrupt), locked(tmp_path / "out"):
        raise KeyboardInterrupt
    assert not (tmp_path / "out").exists()
