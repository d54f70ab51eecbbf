"""Many devices and processes: same batches and losses, a common end, and checkpoints that fit any topology."""

import functools
import signal
import time
from pathlib import Path

import pytest

from tests.jax_avh.data.test_batches import make_source
from tests.runs import curve, finish, losses, start_training

LENGTHS = [9, 1, 2, 20, 3, 17, 1, 30]  # frames of the clips, in shards of three: 83, so the last batch is not full
SLOW = pytest.mark.slow
TOPOLOGIES = [  # processes, devices of each, placement, streams, float64
    pytest.param(1, 4, "host", 1, True, id="four devices"),
    pytest.param(2, 1, "device", 4, True, id="two processes, features on them"),
    pytest.param(2, 2, "stream", 1, False, id="two processes of two, float32"),
    pytest.param(1, 2, "stream", 1, True, id="two devices", marks=SLOW),
    pytest.param(1, 2, "stream", 4, True, id="two devices, two streams each", marks=SLOW),
    pytest.param(1, 4, "device", 4, True, id="four devices, features on them", marks=SLOW),
    pytest.param(2, 2, "stream", 1, True, id="two processes of two", marks=SLOW),
    pytest.param(2, 2, "device", 4, True, id="two processes of two, features on them", marks=SLOW),
    pytest.param(2, 2, "device", 4, False, id="two processes of two, features on them, float32", marks=SLOW),
    pytest.param(1, 4, "device", 4, False, id="four devices, features on them, float32", marks=SLOW),
]


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """Returns the settings of a short run at the official learning rate."""
    folder = tmp_path_factory.mktemp("data")
    data = {f"data.{split}": make_source(folder / split, LENGTHS).path for split in ("train", "val")}
    return {**data, "data.batch_frames": 28, "train.epochs": 2}


@pytest.fixture(scope="module")
def on_one_device(settings, tmp_path_factory):
    """Returns the losses of one process on one device, by the number of streams and whether in float64."""

    @functools.cache
    def run(streams, x64):
        workdir = tmp_path_factory.mktemp("one") / "run"
        finish(start_training(workdir, x64=x64, **settings | {"data.streams": streams}), workdir)
        return losses(workdir)

    return run


@pytest.mark.parametrize(("processes", "devices", "placement", "streams", "x64"), TOPOLOGIES)
def test_any_devices_and_processes_give_one_curve(
    tmp_path, settings, on_one_device, processes, devices, placement, streams, x64
):
    run = settings | {"data.placement": placement, "data.streams": streams}
    finish(start_training(tmp_path / "run", processes, devices, x64, **run), tmp_path / "run")
    found = losses(tmp_path / "run")
    assert len(found) == 3
    for line, wanted in zip(found, on_one_device(streams, x64), strict=True):
        assert line == pytest.approx(wanted, abs=1e-9 if x64 else 1e-4)


def test_three_processes_over_unequal_shards_end_together(tmp_path):
    """Trains on shards of 3, 3 and 1 clips in batches of 7 frames on 3 devices; the last batch is a single frame."""
    run = {"data.batch_frames": 7, "train.epochs": 1, "optimizer.learning_rate": 1e-3}
    for split in ("train", "val"):
        run[f"data.{split}"] = make_source(tmp_path / split, [9, 1, 2, 20, 3, 7, 1]).path
    for name, processes in (("one", 1), ("three", 3)):
        finish(start_training(tmp_path / name, processes, x64=True, **run), tmp_path / name)
    for line, wanted in zip(losses(tmp_path / "three"), losses(tmp_path / "one"), strict=True):
        assert line == pytest.approx(wanted, abs=1e-9)
    assert (tmp_path / "one.0.log").read_text().count("epoch 1  train_loss") == 1
    assert all("train_loss" not in (tmp_path / f"three.{k}.log").read_text() for k in (1, 2))  # only the first prints


def test_a_run_of_many_stopped_by_sigterm_goes_on_elsewhere(tmp_path, settings, on_one_device):
    """Sends SIGTERM to one of two processes: both save and exit cleanly, and one process on other devices resumes."""
    run = settings | {"train.epochs": 200}
    started = start_training(tmp_path / "run", 2, 1, x64=True, **run)
    wait_for_epoch(tmp_path / "run", 1)
    started[1].send_signal(signal.SIGTERM)
    finish(started, tmp_path / "run")
    assert "stopped by SIGTERM, saved after epoch" in (tmp_path / "run.0.log").read_text()
    ended = len(curve(tmp_path / "run"))
    run["train.epochs"] = max(ended, 2)
    finish(start_training(tmp_path / "run", 1, 4, x64=True, **run), tmp_path / "run")
    found = losses(tmp_path / "run")
    assert len(found) == run["train.epochs"] + 1
    for line, wanted in zip(found, on_one_device(1, True), strict=False):
        assert line == pytest.approx(wanted, abs=1e-9)
    if ended > 2:  # the resumed part, against an uninterrupted run
        finish(start_training(tmp_path / "whole", x64=True, **run), tmp_path / "whole")
        for line, wanted in zip(found, losses(tmp_path / "whole"), strict=True):
            assert line == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize("resumed", [True, pytest.param(False, marks=SLOW)])
def test_a_workdir_that_is_not_shared_is_refused(tmp_path, settings, resumed):
    """Gives each process a workdir of its own, for a new run and for one whose checkpoint only the first has."""
    workdirs = [tmp_path / "run", tmp_path / "other"]
    if resumed:
        finish(start_training(workdirs[0], **settings), workdirs[0])
    started = start_training(workdirs[0], 2, workdirs=workdirs, **settings)
    assert [process.wait(timeout=60) for process in started] == [2, 2]
    for number, workdir in enumerate(workdirs):
        said = Path(f"{workdirs[0]}.{number}.log").read_text()
        assert f"--workdir={workdir}: process 1 does not see what process 0 writes there; give a folder" in said
        assert "Traceback" not in said
    assert not any(tmp_path.glob("*/.*"))
    assert [workdir.exists() for workdir in workdirs] == [resumed, False]


def test_a_workdir_that_the_first_process_cannot_use_ends_all(tmp_path, settings):
    (tmp_path / "run").touch()
    started = start_training(tmp_path / "run", 2, **settings)
    assert [process.wait(timeout=60) for process in started] == [2, 2]
    assert f"{tmp_path}/run: is not a folder" in (tmp_path / "run.0.log").read_text()
    assert f"--workdir={tmp_path}/run: process 0 failed; see the message there" in (tmp_path / "run.1.log").read_text()


def wait_for_epoch(workdir, epoch: int) -> None:
    """Waits until epoch `epoch` has been logged."""
    for _ in range(600):
        if len(curve(workdir)) > epoch:
            return
        time.sleep(0.1)
    raise AssertionError((workdir.parent / f"{workdir.name}.0.log").read_text())


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--coordinator_address=127.0.0.1:1"], "belong together"),
        (["--coordinator_address=127.0.0.1:1", "--num_processes=2", "--process_id=2"], "must be from 0 to"),
        ([], "coordinator_address"),
    ],
)
def test_a_cluster_that_cannot_be_found_is_told(launch, tmp_path, flags, reason):
    data = [f"--config.data.{split}={tmp_path}" for split in ("train", "val")]
    status, output = launch("train", *data, f"--workdir={tmp_path}/run", "--distributed", *flags)
    assert status == 2
    assert reason in output
    assert "Traceback" not in output
