"""Sweeps: each combination runs once, stopped sweeps resume, failures are reported, results are tabulated."""

import dataclasses
import errno
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest

from apps.sweep import format_results, make_trials, sweep
from avh_shards import UserError
from jax_avh.configs import make_config
from tests.jax_avh.data.test_batches import make_source


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    """Returns the flags of a tiny run."""
    folder = tmp_path_factory.mktemp("data")
    data = {f"data.{split}": make_source(folder / split, [5, 9, 7]).path for split in ("train", "val")}
    settings = data | {"method.head": "linear", "data.batch_frames": 10, "train.epochs": 1}
    return [f"--config.{name}={value}" for name, value in settings.items()]


def test_a_sweep_runs_each_combination_once_and_resumes(tmp_path, flags, launch):
    grid = [*flags, "--config.seed=0,1", f"--workdir={tmp_path}"]
    status, output = launch("sweep", *grid, "--parallel=2")
    assert status == 0, output
    rows = [line.split() for line in output.splitlines() if line.split()[0] in {"0", "1"}]
    results = {seed: json.loads((tmp_path / f"seed={seed}" / "result.json").read_text()) for seed in "01"}
    assert {seed: float(loss) for seed, _, _, loss in rows} == pytest.approx(
        {seed: result["best_val_loss"] for seed, result in results.items()}, rel=1e-5
    )
    assert [float(loss) for *_, loss in rows] == sorted(float(loss) for *_, loss in rows)
    # Restarted after one run was deleted, it repeats only this run.
    shutil.rmtree(tmp_path / "seed=1")
    kept = (tmp_path / "seed=0" / "metrics.jsonl").stat().st_mtime_ns
    again = launch("sweep", *grid)
    assert again[0] == 0
    assert "seed=1: done" in again[1]
    assert "seed=0: done" not in again[1]
    assert [line for line in again[1].splitlines() if line.split()[0] in {"0", "1"}] == [
        line for line in output.splitlines() if line.split()[0] in {"0", "1"}
    ]
    assert (tmp_path / "seed=0" / "metrics.jsonl").stat().st_mtime_ns == kept


def test_a_failed_run_is_reported_and_the_others_continue(tmp_path, flags):
    jobs = make_trials([*flags, "--config.init=,none.safetensors"], str(tmp_path))
    assert sweep(jobs, 1) == jobs[1:]
    table = format_results(jobs)
    assert len(table.splitlines()) == 3
    assert table.endswith("init=none.safetensors: error: none.safetensors: no such file of weights")


def test_a_sweep_that_fails_itself_leaves_no_run_behind(tmp_path, flags, monkeypatch):
    started = []

    def start(job):
        if started:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(job.workdir))
        started.append(subprocess.Popen(["sleep", "60"]))
        return started[0]

    monkeypatch.setattr("apps.sweep._start", start)
    with pytest.raises(OSError, match="No space left"):
        sweep(make_trials([*flags, "--config.seed=0,1"], str(tmp_path)), 2)
    assert started[0].returncode == -signal.SIGTERM


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_an_interrupted_sweep_stops_its_runs_once_and_resumes(tmp_path, flags, launch, number):
    """Sends the signal to the whole process group, as a terminal does, while two runs train."""
    endless = [flag for flag in flags if "epochs" not in flag] + ["--config.seed=0,1", f"--workdir={tmp_path}"]
    command = [sys.executable, "-m", "launch.sweep", *endless, "--config.train.epochs=100000", "--parallel=2"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, start_new_session=True, **pipes)
    while not all((tmp_path / f"seed={seed}" / "metrics.jsonl").exists() for seed in "01"):
        assert process.poll() is None
        time.sleep(0.1)
    runs = psutil.Process(process.pid).children()
    os.killpg(process.pid, number)
    try:
        output, errors = process.communicate(timeout=120)
    finally:  # has no effect on a sweep that has stopped
        process.terminate()
    assert process.returncode == 2
    assert errors.splitlines() == ["error: interrupted"]
    assert sorted(output.splitlines()) == ["seed=0: stopped", "seed=1: stopped"]
    assert not any(run.is_running() for run in runs)
    for seed in "01":
        assert not (tmp_path / f"seed={seed}" / "result.json").exists()
        log = (tmp_path / f"seed={seed}" / "train.log").read_text()
        assert log.count("stopped by SIGTERM, saved after") == 1
        assert "Traceback" not in log
    done = max(len((tmp_path / f"seed={seed}" / "metrics.jsonl").read_text().splitlines()) for seed in "01")
    status, output = launch("sweep", *endless, f"--config.train.epochs={done}", "--parallel=2")
    assert status == 0
    assert sorted(output.splitlines()[:2]) == ["seed=0: done", "seed=1: done"]


def test_a_run_that_ends_without_a_result_is_not_done(tmp_path, flags, monkeypatch, capsys):
    monkeypatch.setattr("apps.sweep.Trial.command", [sys.executable, "-c", ""])
    jobs = make_trials(flags, str(tmp_path))
    assert sweep(jobs, 1) == jobs
    assert capsys.readouterr().out == "run: exit status 0, without a result\n"


@pytest.mark.parametrize("name", ["config.json", "result.json"])
@pytest.mark.parametrize("content", ["", "[]", "3", '{"epochs": "many"}', '{"train": []}', "[" * 100_000])
def test_a_run_with_damaged_files_has_no_result(tmp_path, flags, name, content):
    (job,) = make_trials(flags, str(tmp_path))
    job.workdir.mkdir()
    written = {"config.json": json.dumps(dataclasses.asdict(make_config(job.settings)))}
    written["result.json"] = json.dumps({"epochs": 1, "best_epoch": 1, "best_val_loss": 3.5})
    for file, text in written.items():
        (job.workdir / file).write_text(text)
    assert job.result()["best_val_loss"] == 3.5
    (job.workdir / name).write_text(content)
    assert job.result() is None


def test_jobs_are_printed_for_others_to_run(tmp_path, flags, launch):
    grid = ["--config.seed=0,1", "--config.optimizer.learning_rate=1e-4,1e-3"]
    status, output = launch("sweep", *flags, *grid, f"--workdir={tmp_path}/a b", "--print_jobs")
    assert status == 0
    commands = [shlex.split(line) for line in output.splitlines()]
    assert commands == [job.command for job in make_trials([*flags, *grid], f"{tmp_path}/a b")]
    assert len({command[-1] for command in commands}) == len(commands) == 4
    assert not (tmp_path / "a b").exists()


@pytest.mark.parametrize(
    ("flag", "reason"),
    [
        ("--config.sed=1", "no such setting"),
        ("--config.data=1", "no such setting"),
        ("--config.train.early_stop=1,x", "early_stop=x: not a value"),
        ("--config.data.shuffle=maybe", "not a value"),
        ("--config.model.tau=0", "must be at least 1"),
        ("--config.seed", "give --config.FIELD"),
        ("--other=1", "give --config.FIELD"),
        ("--config.train.epochs=3", "once for each field"),
    ],
)
def test_an_invalid_grid_is_rejected(flags, flag, reason):
    with pytest.raises(UserError, match=reason):
        make_trials([*flags, flag], "workdir")


def test_settings_are_read_by_their_type():
    text = {"data.shuffle": "False", "seed": "3", "optimizer.learning_rate": "1e-4", "init": "x,y"}
    config = make_config(text)
    assert (config.data.shuffle, config.seed, config.optimizer.learning_rate, config.init) == (False, 3, 1e-4, "x,y")
    assert make_config({}).data.shuffle
