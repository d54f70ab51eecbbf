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

from apps.sweep import make_trials, sweep
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


def test_a_failed_run_is_reported_and_the_others_continue(tmp_path, flags, launch):
    grid = [*flags, "--config.init=none.safetensors,", f"--workdir={tmp_path}"]
    status, output = launch("sweep", *grid)
    assert status == 1
    first, second, *table = output.splitlines()
    assert (first, second) == ("init=none.safetensors: exit status 2, without a result", "init=: done")
    assert len(table) == 3
    assert table[-1].endswith("init=none.safetensors: error: none.safetensors: no such file of weights")


def test_a_sweep_that_fails_itself_leaves_no_run_behind(tmp_path, flags, monkeypatch):
    started = []

    def start(job, variables):
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


def test_a_sweep_at_a_url_is_rejected_and_its_jobs_are_not(flags, launch):
    """Checks that such runs can be started one by one, since each may keep its workdir at a URL."""
    jobs = make_trials(flags, "memory://sweep")
    with pytest.raises(UserError, match="memory://sweep: a sweep keeps the output of its runs in a local folder"):
        sweep(jobs, 1)
    status, output = launch("sweep", *flags, "--workdir=memory://sweep", "--print_jobs")
    assert status == 0
    assert "--workdir=memory://sweep/run" in output


TPU = {"TPU_PROCESS_BOUNDS": "1,1,1", "TPU_CHIPS_PER_PROCESS_BOUNDS": "1,1,1"}
READ = {"CUDA_VISIBLE_DEVICES", "XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION", "TPU_VISIBLE_CHIPS", *TPU}


def gpu(name: str, share: str | None = None) -> dict[str, str]:
    return {"CUDA_VISIBLE_DEVICES": name} | ({"XLA_CLIENT_MEM_FRACTION": share} if share else {})


def tpu(name: str) -> dict[str, str]:
    return {"CUDA_VISIBLE_DEVICES": "", "TPU_VISIBLE_CHIPS": name, **TPU}


OWN_SHARE = gpu("5") | {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.3"}


@pytest.mark.parametrize(
    ("parallel", "environment", "chips", "wanted"),
    [
        pytest.param(2, gpu("5,7"), 0, [gpu("5"), gpu("7")], id="a GPU each"),
        pytest.param(2, gpu("5"), 0, [gpu("5", "0.450")] * 2, id="one GPU for two"),
        pytest.param(3, gpu("5,7"), 0, [gpu(n, "0.450") for n in "575"], id="two GPUs for three"),
        pytest.param(1, gpu("5,7"), 0, [gpu("5,7")], id="one run at a time"),
        pytest.param(2, OWN_SHARE, 0, [OWN_SHARE] * 2, id="the user's share of memory"),
        pytest.param(2, gpu("5") | {"JAX_PLATFORMS": "cpu"}, 0, [gpu("5")] * 2, id="the CPU is wanted"),
        pytest.param(2, gpu(""), 4, [tpu("0"), tpu("1")], id="a TPU chip each"),
        pytest.param(2, gpu(""), 0, [gpu("")] * 2, id="no device"),
    ],
)
def test_simultaneous_runs_have_devices_of_their_own(
    tmp_path, flags, monkeypatch, parallel, environment, chips, wanted
):
    machine_of(monkeypatch, chips, environment)
    sweep(make_trials([*flags, f"--config.seed={','.join(map(str, range(parallel)))}"], str(tmp_path)), parallel)
    found = [{name: value for name, value in given.items() if name in READ} for given in environments(tmp_path)]
    assert found == wanted


def test_a_device_is_free_for_another_run_once_its_run_has_ended(tmp_path, flags, monkeypatch):
    """Two GPUs and three runs, of which the second ends after the third."""
    machine_of(monkeypatch, 0, {"CUDA_VISIBLE_DEVICES": "5,7"})
    monkeypatch.setenv("WAITS", f"{tmp_path}/seed=1 {tmp_path}/seed=2")
    sweep(make_trials([*flags, "--config.seed=0,1,2"], str(tmp_path)), 2)
    assert [given["CUDA_VISIBLE_DEVICES"] for given in environments(tmp_path)] == ["5", "7", "5"]


def test_more_runs_than_tpu_chips_are_refused_before_they_start(tmp_path, flags, monkeypatch):
    machine_of(monkeypatch, 1, {"CUDA_VISIBLE_DEVICES": ""})
    with pytest.raises(UserError, match="this machine has 1; give --parallel=1"):
        sweep(make_trials([*flags, "--config.seed=0,1"], str(tmp_path)), 2)
    assert not environments(tmp_path)


def machine_of(monkeypatch, chips: int, environment: dict[str, str]) -> None:
    """Gives sweeps a number of TPU chips and an environment, and runs that only write down theirs."""
    code = """
import json, os, pathlib, sys, time
own = pathlib.Path(sys.argv[1])
first, then = os.environ.get("WAITS", " ").split(" ")
while sys.argv[1] == first and not pathlib.Path(then, "environment").exists():
    time.sleep(0.02)
(own / "environment").write_text(json.dumps(dict(os.environ)))
"""
    monkeypatch.setattr(
        "apps.sweep.Trial.command", property(lambda trial: [sys.executable, "-c", code, str(trial.workdir)])
    )
    monkeypatch.setattr("apps.sweep.tpu_chips", lambda: [str(chip) for chip in range(chips)])
    for name in ("JAX_PLATFORMS", *READ):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


def environments(workdir) -> list[dict[str, str]]:
    """Returns the environments of the runs, in the order of the grid."""
    return [json.loads(file.read_text()) for file in sorted(workdir.glob("**/environment"))]
