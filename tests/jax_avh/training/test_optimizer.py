"""Optimisers and learning rates: parity with PyTorch, gradient clipping, the cosine schedule, checkpoints."""

import contextlib
import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx

from avh_shards import UserError
from jax_avh.config import OPTIMIZERS, Config, DataConfig, OptimizerConfig, check_config
from jax_avh.methods.avh_align import AVHAlignConfig
from jax_avh.training.checkpoint import Checkpoints
from jax_avh.training.optimizer import cosine_rate, make_optimizer
from jax_avh.training.progress import RunProgress
from jax_avh.training.step import TrainState
from tests.jax_avh.data.test_batches import make_source
from tests.runs import curve, train

RATE, STEPS = 1e-2, 30
OPTIONS = {"weight_decay": 0.1}
TORCH = {
    "adam": lambda parameters: torch.optim.Adam(parameters, RATE, weight_decay=0.1),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, RATE, weight_decay=0.1),
    "sgd": lambda parameters: torch.optim.SGD(parameters, RATE, weight_decay=0.1),
}


def trajectory(config: OptimizerConfig) -> np.ndarray:
    """Returns the parameters after each of several steps in a quadratic bowl with gradients of very different sizes."""
    optimizer = make_optimizer(config)
    parameters = jnp.asarray([1.0, -2.0, 3.0], jnp.float32)
    state, found = optimizer.init(parameters), []
    for _ in range(STEPS):
        updates, state = optimizer.update(parameters * jnp.asarray([1e-3, 1, 1e3], jnp.float32), state, parameters)
        parameters = optax.apply_updates(parameters, -RATE * updates)
        found.append(np.asarray(parameters))
    return np.array(found)


@pytest.mark.parametrize("name", TORCH)
def test_steps_are_pytorchs(name):
    parameters = torch.tensor([1.0, -2.0, 3.0], requires_grad=True)
    optimizer, wanted = TORCH[name]([parameters]), []
    for _ in range(STEPS if name != "sgd" else 3):  # too long a step on the steepest side
        parameters.grad = parameters.detach() * torch.tensor([1e-3, 1.0, 1e3])
        optimizer.step()
        wanted.append(parameters.detach().numpy().copy())
    found = trajectory(OptimizerConfig(name=name, **OPTIONS))[: len(wanted)]
    np.testing.assert_allclose(found, wanted, rtol=2e-6)


def test_adam_corrects_its_bias_exactly():
    """Checks that steps have the length of the learning rate up to epsilon; optax's Adam is 1e-5 off at the second."""
    gradient = jnp.asarray([1.0], jnp.float32)
    optimizer = make_optimizer(OptimizerConfig())
    state = optimizer.init(gradient)
    for _ in range(5):
        updates, state = optimizer.update(gradient, state, gradient)
        np.testing.assert_allclose(updates, 1, rtol=2e-7)


def test_lion_takes_steps_of_one_length():
    moved = np.diff(trajectory(OptimizerConfig(name="lion")), axis=0)
    np.testing.assert_allclose(np.abs(moved), RATE, rtol=1e-4)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_gradient_is_scaled_down_to_its_largest_norm(name):
    clipped = make_optimizer(OptimizerConfig(name=name, clip_norm=1.0))
    plain = make_optimizer(OptimizerConfig(name=name))
    for gradient, wanted in (([3.0, 4.0], [0.6, 0.8]), ([0.3, 0.4], [0.3, 0.4])):
        gradient, wanted = jnp.asarray(gradient, jnp.float32), jnp.asarray(wanted, jnp.float32)
        found, _ = clipped.update(gradient, clipped.init(gradient), gradient)
        expected, _ = plain.update(wanted, plain.init(wanted), wanted)
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_equal_settings_give_one_optimiser():
    """Checks the cache by which runs share their compiled programs."""
    assert make_optimizer(OptimizerConfig()) == make_optimizer(OptimizerConfig(learning_rate=1.0))


@pytest.mark.parametrize(("warmup", "epochs"), [(0, 10), (1, 10), (5, 100), (3, 3), (4, 2), (0, 1)])
def test_the_cosine_rises_linearly_and_ends_at_zero(warmup, epochs):
    config = OptimizerConfig(0.003, schedule="cosine", warmup_epochs=warmup)
    for epoch in range(epochs + 1):
        done = min((epoch - warmup) / max(epochs - warmup, 1), 1)
        cosine = 0.003 * (1 + math.cos(math.pi * done)) / 2
        wanted = 0.003 * (epoch + 1) / warmup if epoch < warmup else cosine
        assert cosine_rate(config, epochs, epoch) == pytest.approx(wanted, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_checkpoint_holds_the_whole_optimiser(tmp_path, name):
    optimizer = make_optimizer(OptimizerConfig(name=name, clip_norm=1.0, **OPTIONS))
    params = nnx.State({"w": nnx.Param(jnp.arange(3.0))})
    state = TrainState(params, nnx.State({}), optimizer.init(params))
    progress = RunProgress.before(Config(AVHAlignConfig()))
    with jax.numpy_dtype_promotion("standard"):
        _, moved = optimizer.update(params, state.optimizer, params)
    with contextlib.closing(Checkpoints(tmp_path / "c")) as checkpoints:
        checkpoints.save(3, state._replace(optimizer=moved), dataclasses.replace(progress, epoch=1))
    with contextlib.closing(Checkpoints(tmp_path / "c")) as checkpoints:
        found, where = checkpoints.restore(state, progress)
    assert where.epoch == 1
    assert optax.tree_utils.tree_get(found.optimizer, "count") == 1
    for a, b in zip(*map(jax.tree.leaves, (found.optimizer, moved)), strict=True):
        np.testing.assert_array_equal(a, b)


def run_config(tmp_path, epochs=2, **optimizer) -> Config:
    for split in ("train", "val"):
        if not (tmp_path / split).exists():
            make_source(tmp_path / split, [5, 9, 7, 11])
    config = Config(
        AVHAlignConfig(head="linear"),  # compiles quickly
        data=DataConfig(str(tmp_path / "train"), str(tmp_path / "val"), batch_frames=8),
        optimizer=OptimizerConfig(1e-3, **optimizer),
    )
    config.train.epochs = epochs
    return config


@pytest.mark.parametrize("options", [{"name": "adamw", "weight_decay": 0.01}, {"name": "sgd", "clip_norm": 0.1}])
def test_a_run_with_another_optimiser_resumes(tmp_path, options):
    train(run_config(tmp_path, **options), tmp_path / "whole")
    train(run_config(tmp_path, 1, **options), tmp_path / "halves")
    train(run_config(tmp_path, **options), tmp_path / "halves")
    assert curve(tmp_path / "halves") == curve(tmp_path / "whole")
    with pytest.raises(UserError, match=r"--config\.optimizer\.name was"):
        train(run_config(tmp_path), tmp_path / "whole")


def test_a_run_of_a_version_without_a_setting_resumes_with_its_default(tmp_path):
    train(run_config(tmp_path), tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    record = json.loads(path.read_text())
    for name in ("name", "clip_norm"):
        del record["optimizer"][name]
    path.write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"--config\.optimizer\.clip_norm was 0\.0, now 1\.0"):
        train(run_config(tmp_path, clip_norm=1.0), tmp_path / "run")
    train(run_config(tmp_path), tmp_path / "run")


@pytest.mark.parametrize(("name", "value"), [("name", "adagrad"), ("clip_norm", -1.0), ("clip_norm", float("nan"))])
def test_settings_that_mean_nothing_are_rejected(name, value):
    config = Config(AVHAlignConfig(), DataConfig("a", "b"))
    setattr(config.optimizer, name, value)
    with pytest.raises(UserError, match=f"optimizer.{name}={value}"):
        check_config(config)
