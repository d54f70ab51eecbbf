"""Fixtures that several modules of training's tests share."""

import pytest


@pytest.fixture(scope="session")
def small_run(tmp_path_factory):
    """Returns (config, workdir) of a run on a few tiny clips, saved after every step."""
    # Imported here, as pytest reads this file before the hook that checks annotations and the settings of hypothesis.
    from jax_avh.config import TrainConfig
    from tests.jax_avh.training.test_train import small_config
    from tests.runs import train

    folder = tmp_path_factory.mktemp("small")
    config = small_config(folder, train=TrainConfig(epochs=3, checkpoint_steps=1))
    train(config, folder / "run")
    return config, folder / "run"
