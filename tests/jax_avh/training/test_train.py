"""Training: the official curve, exact resume, equal numbers on any devices, rules of learning rate and early stop."""

import contextlib
import dataclasses
import functools
import itertools
import json
import random
import re
import shutil
import signal
import sys
import threading
import time
from types import SimpleNamespace
from typing import Any

import hypothesis
import jax
import numpy as np
import pytest
import torch
import tqdm
from hypothesis import strategies as st
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh
from orbax.checkpoint import CheckpointManager
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from avh_shards import UserError
from jax_avh.config import SETTINGS, Config, DataConfig, OptimizerConfig, TrainConfig, check_config, list_settings
from jax_avh.configs import make_config, read_settings
from jax_avh.inference import score_shards
from jax_avh.methods import METHODS
from jax_avh.methods.avh_align import AVHAlignConfig
from jax_avh.scores import open_scores
from jax_avh.training import logging
from jax_avh.training.checkpoint import Checkpoints
from jax_avh.training.logging import LossMeter, MetricsLog, read_metrics
from jax_avh.training.optimizer import make_optimizer
from jax_avh.training.progress import Preemption, RunProgress, looks_between
from jax_avh.training.run import CHECKPOINTS, initial_model, open_sources
from jax_avh.training.step import init_state
from tests import rules
from tests.conftest import TESTDATA
from tests.jax_avh.data.test_batches import make_source
from tests.runs import curve, finish, losses, start_training, train

TRAIN = sys.modules["jax_avh.training.train"]  # the package has a function of this name
OFFICIAL = json.loads((TESTDATA / "training.json").read_text())


@pytest.fixture(scope="module")
def init(tmp_path_factory):
    return rules.write_alignment_weights(tmp_path_factory.mktemp("init") / "init.safetensors")


def official_config(shards, init, **train_options) -> Config:
    """Returns the settings of the official run."""
    return Config(
        AVHAlignConfig(),
        data=DataConfig(str(shards["train"]), str(shards["val"]), batch_frames=256, shuffle=False),
        optimizer=OptimizerConfig(learning_rate=1e-5),
        train=TrainConfig(**{"epochs": 3} | train_options),
        init=str(init),
    )


def latest(workdir, config) -> list[np.ndarray]:
    """Returns the arrays of the latest checkpoint."""
    method, optimizer = METHODS[config.method.name], make_optimizer(config.optimizer)
    network = initial_model(method, config, open_sources(method, config)[0])
    with contextlib.closing(Checkpoints(workdir / CHECKPOINTS)) as checkpoints:
        _, like = init_state(network, method.trained, optimizer)
        state, progress = checkpoints.restore(like, RunProgress.before(config))
    assert progress.epoch >= 0
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state)]


@pytest.fixture(scope="module")
def official_run(rule_shards, init, tmp_path_factory):
    """Returns (config, workdir) of a run with the official settings."""
    workdir, config = tmp_path_factory.mktemp("run"), official_config(rule_shards, init)
    train(config, workdir)
    return config, workdir


def test_the_official_loss_curve_is_reproduced(official_run):
    lines = read_metrics(official_run[1] / "metrics.jsonl")
    assert [line["epoch"] for line in lines] == [0, 1, 2, 3]
    for line, wanted in zip(lines, OFFICIAL["lr1e-5"]["losses"], strict=True):
        assert line["train_loss"] == pytest.approx(wanted["train"], abs=1e-4)
        assert line["val_loss"] == pytest.approx(wanted["val"], abs=1e-4)
        assert line["learning_rate"] == 1e-5
        assert line["frames_per_second"] > 0


def test_the_official_scores_are_reproduced(official_run, rule_shards, init, tmp_path):
    for weights, name in ((init, "initial_scores"), (official_run[1], "scores")):
        table = score_shards(rule_shards["test"], tmp_path / "scores.h5", weights=weights)
        wanted = {path: value for path, _, value in OFFICIAL["lr1e-5"][name]}
        assert {clip.path: clip.label for clip in table.clips} == {p: y for p, y, _ in OFFICIAL["lr1e-5"][name]}
        for clip, value in zip(table.clips, table.clip, strict=True):
            assert value == pytest.approx(wanted[clip.path], abs=1e-3)
        assert OFFICIAL["lr1e-3"]["initial_scores"] == OFFICIAL["lr1e-5"]["initial_scores"]


def test_epoch_0_of_the_fast_run_is_reproduced(rule_shards, init, tmp_path):
    config = dataclasses.replace(
        official_config(rule_shards, init, epochs=0), optimizer=OptimizerConfig(learning_rate=1e-3)
    )
    train(config, tmp_path)
    (line,), wanted = curve(tmp_path), OFFICIAL["lr1e-3"]["losses"][0]
    assert line["train_loss"] == pytest.approx(wanted["train"], abs=1e-4)
    assert line["val_loss"] == pytest.approx(wanted["val"], abs=1e-4)


def test_a_finished_run_stays_as_it_is(official_run):
    config, workdir = official_run
    before = curve(workdir), (workdir / "best.safetensors").read_bytes()
    assert train(config, workdir).epoch == 3
    assert (curve(workdir), (workdir / "best.safetensors").read_bytes()) == before


def test_tensorboard_shows_the_same_numbers(official_run):
    events = EventAccumulator(str(official_run[1] / "tensorboard"))
    events.Reload()
    for name in ("train_loss", "val_loss", "learning_rate"):
        shown = [(event.step, event.value) for event in events.Scalars(name)]
        wanted = [(line["epoch"], np.float32(line[name])) for line in curve(official_run[1])]
        assert shown == wanted


class Killed(BaseException):
    pass


@pytest.mark.parametrize("place", ["after a step", "before a save", "after a save", "after the line", "after the best"])
@pytest.mark.parametrize("nth", [1, 3])
def test_a_run_that_dies_anywhere_ends_the_same(small_run, tmp_path, monkeypatch, place, nth):
    """Kills a run when it passes a place the nth time; resumed, it writes the same files as the uninterrupted run."""
    config, unbroken = small_run
    target, name = {
        "after a step": (TRAIN, "train_steps"),
        "before a save": (Checkpoints, "save"),
        "after a save": (Checkpoints, "save"),
        "after the line": (MetricsLog, "write"),
        "after the best": (TRAIN, "save_weights"),
    }[place]
    original, passed = getattr(target, name), []

    def dying(*args, **kwargs):
        passed.append(1)
        if len(passed) == nth and place == "before a save":
            raise Killed
        result = original(*args, **kwargs)
        if len(passed) == nth:
            raise Killed
        return result

    with monkeypatch.context() as patched:
        patched.setattr(target, name, dying)
        with pytest.raises(Killed):
            train(config, tmp_path / "run")
    train(config, tmp_path / "run")
    assert_equal_runs(tmp_path / "run", unbroken, config)


@pytest.mark.parametrize(("minutes", "saves"), [(1e-9, 13), (0.0, 4)])
def test_checkpoints_by_time(small_run, tmp_path, monkeypatch, minutes, saves):
    """Saves whenever the time is up, here after every step, or never within an epoch; epochs end with a checkpoint."""
    config, unbroken = small_run
    config = dataclasses.replace(config, train=TrainConfig(epochs=3, checkpoint_steps=0, checkpoint_minutes=minutes))
    save, saved = Checkpoints.save, []

    def counting(self, step, *args):
        saved.append(step)
        save(self, step, *args)

    monkeypatch.setattr(Checkpoints, "save", counting)
    train(config, tmp_path / "run")
    assert len(set(saved)) == len(saved) == saves
    assert_equal_runs(tmp_path / "run", unbroken, config)


def test_processes_agree_on_the_time_of_a_checkpoint(monkeypatch):
    """Plays the second of two processes, whose own minutes are over, while those of the first are not and then are."""
    rows = iter([[0, 0, 0.5], [0, 1, 0.5], [1, 0, 4.0]])
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(multihost_utils, "process_allgather", lambda mine: np.array([next(rows), mine]))
    with Preemption(checkpoint_minutes=1e-9) as second:
        looks = [(second.reached(), second.checkpoint_due) for _ in range(8 + 16)]
        assert looks == [(False, False)] * 23 + [(False, True)]
        second.saved()
        looks = [(second.reached(), second.checkpoint_due) for _ in range(32)]
        assert looks == [(False, False)] * 31 + [(True, False)]
    assert next(rows, None) is None


def test_processes_exchange_notices_every_two_seconds():
    assert looks_between(8, 0.001) == 16  # at most twice as many
    assert looks_between(200, 0.001) == 256
    assert looks_between(100, 4.0) == 50
    assert looks_between(100, 1000.0) == 8


def test_a_checkpoint_is_written_in_the_background(small_run, tmp_path, monkeypatch):
    """Lets next steps overwrite the state before a checkpoint is complete."""
    config, _ = small_run
    method, finalize, may_end = METHODS[config.method.name], CheckpointManager._finalize, threading.Event()

    def late(*args):
        assert may_end.wait(10)
        finalize(*args)

    monkeypatch.setattr(CheckpointManager, "_finalize", late)
    network = initial_model(method, config, open_sources(method, config)[0])
    _, state = init_state(network, method.trained, make_optimizer(config.optimizer))
    wanted = [np.array(leaf) for leaf in jax.tree.leaves(state)]
    step = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf + 1, tree), donate_argnums=0)
    with contextlib.closing(Checkpoints(tmp_path)) as checkpoints:
        checkpoints.save(1, state, RunProgress.before(config))
        for _ in range(3):
            state = step(state)
        jax.block_until_ready(state)
        may_end.set()
        checkpoints.wait()
        restored, _ = checkpoints.restore(state, RunProgress.before(config))
    for found, leaf in zip(jax.tree.leaves(restored), wanted, strict=True):
        np.testing.assert_array_equal(found, leaf)


def test_the_sum_of_the_losses_is_the_same_wherever_a_run_is_saved():
    losses = np.random.default_rng(0).standard_normal(100)
    epoch: Any = SimpleNamespace(frames=np.ones(100), items=np.ones(100))
    sums = []
    for saved in (0, 1, 37):
        with LossMeter("before", epoch, "frames", shown=False) as meter:
            if saved:
                meter.add(losses[:saved])
            progress = RunProgress(0, 0, 0.0, 1.0).after_steps(saved, meter.take())
        with LossMeter("after", epoch, "frames", saved, progress.loss_sum, shown=False) as meter:
            meter.add(losses[saved:])
            sums.append(meter.take())
    assert len(set(sums)) == 1


def assert_equal_runs(one, other, config) -> None:
    """Compares the curve, the best weights and the latest checkpoint bit by bit."""
    assert curve(one) == curve(other)
    assert (one / "best.safetensors").read_bytes() == (other / "best.safetensors").read_bytes()
    for a, b in zip(latest(one, config), latest(other, config), strict=True):
        np.testing.assert_array_equal(a, b)


def killed_runs(tmp_path, rule_shards, kills: int, seed: int, devices=(1,), x64=False) -> None:
    """Kills training at random moments, on each number of devices in turn, and compares it with an uninterrupted run.

    On the same devices it ends bit-equal.
    """
    rng = random.Random(seed)
    settings = {"data.batch_frames": 128, "train.epochs": 4, "train.checkpoint_steps": 1}
    settings |= {"data.train": rule_shards["train"], "data.val": rule_shards["val"]}
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    began = time.monotonic()
    finish(start_training(unbroken, x64=x64, **settings), unbroken)
    duration = time.monotonic() - began
    for kill in range(kills):
        (process,) = start_training(broken, devices=devices[kill % len(devices)], x64=x64, **settings)
        time.sleep(rng.uniform(0.3, 1.0) * duration)
        process.kill()
        process.wait()
    finish(start_training(broken, x64=x64, **settings), broken)
    if len(devices) > 1:
        np.testing.assert_allclose(losses(broken), losses(unbroken), rtol=0, atol=1e-9 if x64 else 1e-4)
        return
    assert_equal_runs(broken, unbroken, make_config(read_settings(unbroken / SETTINGS)))


def test_a_killed_run_goes_on(small_run, tmp_path):
    """Kills the command some time after its first epoch."""
    config, unbroken = small_run
    settings = {name: setting.value for name, setting in list_settings(config).items() if setting.value != ""}
    (process,) = start_training(tmp_path / "run", devices=2, **settings)
    while process.poll() is None and not (tmp_path / "run" / "best.safetensors").exists():
        time.sleep(0.001)
    process.kill()
    process.wait()
    finish(start_training(tmp_path / "run", devices=2, **settings), tmp_path / "run")
    assert_equal_runs(tmp_path / "run", unbroken, config)


def test_a_run_that_died_goes_on_on_other_devices(small_run, tmp_path, monkeypatch):
    config, unbroken = small_run
    original, passed = TRAIN.train_steps, itertools.count(1)

    def dying(*args, **kwargs):
        if next(passed) == 3:
            raise Killed
        return original(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(TRAIN, "train_steps", dying)
        with pytest.raises(Killed):
            train(config, tmp_path)
    monkeypatch.setattr(TRAIN, "make_mesh", one_device)
    train(config, tmp_path)
    np.testing.assert_allclose(losses(tmp_path), losses(unbroken), rtol=0, atol=1e-4)
    assert curve(tmp_path)[0] == curve(unbroken)[0]  # written before it died


@pytest.mark.slow
@pytest.mark.parametrize(("devices", "x64"), [((1,), False), ((2, 4, 1), False), ((2, 4, 1), True)])
def test_a_run_killed_twenty_times_goes_on(tmp_path, rule_shards, devices, x64):
    killed_runs(tmp_path, rule_shards, kills=20, seed=1, devices=devices, x64=x64)


def test_sigterm_saves_and_ends_well(tmp_path):
    """Stops a run at some point between its checkpoints; it resumes bit-equal."""
    config = small_config(tmp_path, train=TrainConfig(epochs=2000, early_stop=1_000_000))
    settings = {name: setting.value for name, setting in list_settings(config).items() if setting.value != ""}
    (process,) = start_training(tmp_path / "run", devices=2, **settings)
    while not (tmp_path / "run" / "checkpoints" / "0").exists() and process.poll() is None:
        time.sleep(0.01)
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    finish([process], tmp_path / "run")
    stopped = re.search(r"stopped by SIGTERM, saved after epoch (\d+)", (tmp_path / "run.0.log").read_text())
    assert not (tmp_path / "run" / "result.json").exists()
    config.train.epochs = int(stopped[1]) + 1
    for name in ("run", "unbroken"):
        train(config, tmp_path / name)
    assert curve(tmp_path / "run") == curve(tmp_path / "unbroken")


def one_device() -> Mesh:
    return jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:1])


def test_one_device_gives_the_curve_of_two(small_run, tmp_path, monkeypatch):
    assert jax.device_count() == 2
    config, two = small_run
    monkeypatch.setattr(TRAIN, "make_mesh", one_device)
    train(config, tmp_path)
    np.testing.assert_allclose(losses(tmp_path), losses(two), rtol=0, atol=1e-5)


def small_config(tmp_path, head="linear", **options) -> Config:
    """Returns the settings of a run of two epochs of four steps on a few tiny clips."""
    for name in ("train", "val"):
        if not (tmp_path / name).exists():
            make_source(tmp_path / name, [5, 9, 7, 11])
    data = DataConfig(str(tmp_path / "train"), str(tmp_path / "val"), batch_frames=8)
    sections = {"data": data, "train": TrainConfig(epochs=2), "optimizer": OptimizerConfig(1e-3)}
    return Config(AVHAlignConfig(head=head), **sections | options)


@pytest.mark.parametrize("nth", [1, 8, 10, 13, 16])
def test_a_run_stopped_anywhere_and_once_more_ends_the_same(small_run, tmp_path, monkeypatch, nth):
    """Stops at the nth check (8 in epoch 0, then 4 in training and 4 in validation), and at the first after that."""
    config, unbroken = small_run
    config = dataclasses.replace(config, train=TrainConfig(epochs=3))  # saved where it stops, not after every step
    for stop in (nth, 1):
        looks = iter(range(1, 100))
        with monkeypatch.context() as patched:
            patched.setattr(Preemption, "reached", lambda self, looks=looks, stop=stop: next(looks) == stop)
            assert train(config, tmp_path / "run").epoch < 2
        assert not (tmp_path / "run" / "result.json").exists()
    train(config, tmp_path / "run")
    assert_equal_runs(tmp_path / "run", unbroken, config)


def test_a_run_is_a_function_of_its_seed(tmp_path):
    curves = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(small_config(tmp_path, seed=seed), tmp_path / name)
        curves.append(curve(tmp_path / name))
    assert curves[0] == curves[1] != curves[2]


def test_a_batch_need_not_fit_the_devices_nor_the_data(tmp_path):
    """Trains on batches of 7 frames on 2 devices, 32 frames in all: padding has no weight."""
    losses = []
    for size in (7, 8, 32, 1000):
        config = small_config(tmp_path, train=TrainConfig(epochs=0))
        config.data.batch_frames = size
        train(config, tmp_path / str(size))
        losses.append(curve(tmp_path / str(size))[0]["train_loss"])
    np.testing.assert_allclose(losses, losses[0], rtol=1e-6)


def test_a_longer_run_goes_on_where_the_shorter_ended(tmp_path):
    train(small_config(tmp_path), tmp_path / "a")
    train(small_config(tmp_path, train=TrainConfig(epochs=4)), tmp_path / "a")
    train(small_config(tmp_path, train=TrainConfig(epochs=4)), tmp_path / "b")
    assert curve(tmp_path / "a") == curve(tmp_path / "b")


def test_a_workdir_of_another_run_is_refused(tmp_path):
    train(small_config(tmp_path), tmp_path / "a")
    with pytest.raises(UserError, match="other settings"):
        train(small_config(tmp_path, seed=1), tmp_path / "a")


@hypothesis.given(
    st.lists(st.sampled_from([1.0, 0.99995, 0.9999, 0.99985, 0.9, 0.5, 1.1, 0.2]), min_size=1, max_size=40)
)
def test_the_rate_falls_as_pytorchs_does_and_the_run_ends_as_the_official_one(losses):
    config = Config(AVHAlignConfig())
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=1e-5)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.1, patience=5)
    progress = RunProgress(epoch=0, step=0, loss_sum=0.0, learning_rate=1e-5)
    best, stale = float("inf"), 0
    for loss in losses:
        progress = progress.after_epoch(loss, config)
        scheduler.step(loss)
        best, stale = (loss, 0) if loss < best else (best, stale + 1)
        assert progress.learning_rate == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)
        assert progress.finished(config) == (stale >= 10)
    assert progress.epoch == len(losses)


def test_other_features_at_the_same_place_are_refused_and_the_same_elsewhere_are_not(tmp_path):
    train(small_config(tmp_path), tmp_path / "run")
    before = curve(tmp_path / "run")
    shutil.move(tmp_path / "train", tmp_path / "moved")
    config = small_config(tmp_path)  # creates the same features again
    shutil.rmtree(tmp_path / "train")
    config.data.train = str(tmp_path / "moved")
    train(config, tmp_path / "run")
    assert curve(tmp_path / "run") == before
    make_source(tmp_path / "train", [5, 9, 7, 12])
    with pytest.raises(
        UserError, match=r"other settings or features: --config.data.train=\S+ holds other features than"
    ):
        train(small_config(tmp_path), tmp_path / "run")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", b"{"),
        ("config.json", b"[]"),
        ("config.json", b'{"train": 3}'),
        ("config.json", b"\xff"),
        ("metrics.jsonl", b"5\n"),
        ("metrics.jsonl", b'{"a": 1}\n'),
    ],
)
def test_a_workdir_of_garbage_is_refused(tmp_path, name, content):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).write_bytes(content)
    with pytest.raises(UserError, match=name):
        train(small_config(tmp_path), tmp_path / "run")


def test_random_features_are_said(tmp_path, capsys):
    for name in ("train", "val"):
        make_source(tmp_path / name, [5, 9], weights_sha256="random")
    train(small_config(tmp_path, train=TrainConfig(epochs=0)), tmp_path / "run")
    assert "RANDOM AV-HuBERT weights" in capsys.readouterr().out


def test_training_and_validation_features_of_different_encoders_are_refused(tmp_path):
    make_source(tmp_path / "val", [5, 9], weights_sha256="1")
    with pytest.raises(UserError, match=r"its weights_sha256 is 1, but that of .* is 0"):
        train(small_config(tmp_path), tmp_path / "run")


def test_the_best_weights_are_those_of_the_lowest_validation_loss(tmp_path):
    """Validates on different clips, whose loss rises in training, so that the first epoch stays the best."""
    config = small_config(tmp_path, train=TrainConfig(epochs=6, early_stop=2), optimizer=OptimizerConfig(0.3))
    train(config, tmp_path / "run")
    lines = curve(tmp_path / "run")[1:]
    best = min(lines, key=lambda line: line["val_loss"])
    assert len(lines) == min(6, best["epoch"] + 2)
    replay = small_config(
        tmp_path, train=TrainConfig(epochs=best["epoch"], early_stop=2), optimizer=OptimizerConfig(0.3)
    )
    train(replay, tmp_path / "replay")
    found, wanted = ((tmp_path / name / "best.safetensors").read_bytes() for name in ("run", "replay"))
    assert found == wanted


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("data.train", ""),
        ("data.val", ""),
        ("data.batch_frames", 0),
        ("model.tau", 0),
        ("model.boundary", "wrap"),
        ("data.placement", "cloud"),
        ("train.precision", "float8"),
        ("optimizer.learning_rate", 0.0),
        ("optimizer.learning_rate", float("nan")),
        ("optimizer.plateau_factor", 2.0),
        ("optimizer.plateau_patience", -1),
        ("train.epochs", -1),
        ("train.early_stop", 0),
        ("train.checkpoint_steps", -1),
        ("train.checkpoint_minutes", -1.0),
        ("seed", -1),
    ],
)
def test_settings_that_mean_nothing_are_refused(field, value):
    config = Config(AVHAlignConfig(), data=DataConfig("a", "b"))
    section, _, name = field.rpartition(".")
    setattr(getattr(config, section) if section else config, name, value)
    with pytest.raises(UserError, match=field):
        check_config(config)


def test_features_that_do_not_fit_the_weights_are_refused(tmp_path, init):
    with pytest.raises(UserError, match="width 4, but the network takes 1024"):
        train(small_config(tmp_path, "mlp", init=str(init)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_features_with_nan_are_named_and_no_weights_are_spoilt(tmp_path):
    config = small_config(tmp_path)
    path = tmp_path / "train" / "features-00001.h5"
    data = bytearray(path.read_bytes())
    value = np.array([12, 1], np.float32) * 0 + np.array([4, 3], np.float32)  # clip 4, frame 3
    data = data.replace(value.tobytes(), np.array([np.nan, 3], np.float32).tobytes(), 1)
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"features-00001\.h5: .*'c3\.mp4' hold NaN"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run" / "best.safetensors").exists()


def test_a_damaged_checkpoint_is_told(tmp_path, launch):
    config = small_config(tmp_path)
    train(config, tmp_path / "run")
    for file in (tmp_path / "run" / "checkpoints").rglob("d/*"):
        file.write_bytes(b"damaged")
    flags = {"data.train": config.data.train, "data.val": config.data.val, "data.batch_frames": 8, "train.epochs": 2}
    flags |= {"optimizer.learning_rate": 1e-3, "method.head": "linear"}
    status, output = launch("train", f"--workdir={tmp_path}/run", *(f"--config.{k}={v}" for k, v in flags.items()))
    assert status == 2
    assert "latest checkpoint cannot be restored" in output
    assert "/jax_avh/" not in output  # no traceback from this project (Orbax's abandoned reads may still print one)


def test_damaged_metrics_of_a_checkpoint_are_told(tmp_path):
    """Checks that they are found at the start, not when the next checkpoint is compared with them."""
    config = small_config(tmp_path)
    train(config, tmp_path / "run")
    file = max((tmp_path / "run" / "checkpoints").glob("*/metrics/metrics"))
    for content in (b"", b'{"val_loss": 3.0', b"\xff", b"[]", b"{}", b'{"val_loss": "low"}', b'{"val_loss": NaN}'):
        file.write_bytes(content)
        with pytest.raises(UserError, match=r"run/checkpoints: a checkpoint in it cannot be read \(.+\); remove this"):
            train(config, tmp_path / "run")


def test_processes_that_see_different_checkpoints_are_told(small_run, monkeypatch):
    """Plays the first of two processes, of which only it sees a checkpoint."""
    config, workdir = small_run
    monkeypatch.setattr(multihost_utils, "process_allgather", lambda mine: np.array([mine, -1]))
    with pytest.raises(UserError, match="run/checkpoints: the processes see different checkpoints in it"):
        latest(workdir, config)


def test_a_metrics_line_cut_off_by_a_kill_is_dropped(tmp_path):
    train(small_config(tmp_path), tmp_path / "run")
    whole = curve(tmp_path / "run")
    shutil.copytree(tmp_path / "run", tmp_path / "cut")
    with (tmp_path / "cut" / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 3, "train_lo')
    train(small_config(tmp_path), tmp_path / "cut")
    assert curve(tmp_path / "cut") == whole


def test_scores_come_back_from_the_file(rule_shards, init, tmp_path):
    table = score_shards(rule_shards["test"], tmp_path / "s.h5", weights=init)
    again = open_scores(tmp_path / "s.h5")
    np.testing.assert_array_equal(again.frame, table.frame)
    np.testing.assert_array_equal(again.clip, table.clip)
    assert repr(again.clips) == repr(table.clips)


def test_a_run_says_what_it_trains_and_on_what(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(
        logging.tqdm, "tqdm", functools.partial(tqdm.tqdm, mininterval=0)
    )  # an epoch takes no time here
    train(small_config(tmp_path, train=TrainConfig(epochs=1)), tmp_path / "run")
    said, bar = capfd.readouterr()
    assert "head.weight          [1, 8]                  8" in said
    assert "2 cpu devices of 1 processes, float32" in said
    assert re.search(r"epoch 1: .*<.*, .* frames/s, step \d/4, loss \d\.\d{4}\]", bar)


def test_steps_are_traced_where_asked_for(tmp_path):
    train(small_config(tmp_path), tmp_path / "plain")
    train(small_config(tmp_path), tmp_path / "traced", profile=True)
    assert not (tmp_path / "plain" / "profile").exists()
    (trace,) = (tmp_path / "traced" / "profile").rglob("*.xplane.pb")
    assert trace.stat().st_size
    assert curve(tmp_path / "traced") == curve(tmp_path / "plain")


@pytest.mark.parametrize(("head", "epochs"), [("linear", 1), ("mlp", 0)])
def test_bfloat16_trains_as_float32_does_but_for_its_digits(tmp_path, head, epochs):
    """Only evaluates the MLP, whose training takes long to compile; the slow test below trains it."""
    config = small_config(tmp_path, head, train=TrainConfig(epochs=epochs), optimizer=OptimizerConfig(1e-5))
    train(config, tmp_path / "float32")
    config.train.precision = "bfloat16"
    train(config, tmp_path / "bfloat16")
    assert all(leaf.dtype in (np.float32, np.int32) for leaf in latest(tmp_path / "bfloat16", config))
    difference = np.abs(np.array(losses(tmp_path / "bfloat16")) - np.array(losses(tmp_path / "float32")))
    assert 1e-7 < difference.max() < 5e-3


@pytest.mark.slow
def test_bfloat16_reproduces_the_official_loss_curve(rule_shards, init, tmp_path, official_run):
    config = official_config(rule_shards, init, epochs=1)
    config.train.precision = "bfloat16"
    train(config, tmp_path)
    difference = np.abs(np.array(losses(tmp_path)) - np.array(losses(official_run[1])[:2]))
    assert 1e-7 < difference.max() < 5e-3
