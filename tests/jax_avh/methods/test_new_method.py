"""Adding a method takes its module, its settings file and a line in the registry; all commands then work with it."""

import json
import re

import numpy as np

from jax_avh.scores import open_scores
from jax_avh.training.logging import read_metrics
from tests.jax_avh.methods.test_methods import write_shard

METHOD = '''
import dataclasses

import jax
from flax import nnx

from jax_avh.config import POSITIVE, MethodConfig, rules
from jax_avh.methods.base import FrameMethod
from jax_avh.models.alignment import LinearNetwork


@dataclasses.dataclass
class ToyConfig(MethodConfig):
    """A toy."""

    name: str = "toy"
    spread: float = rules(1.0, POSITIVE)  # of the first weights


def make_model(config, source):
    network = LinearNetwork(source.width, rngs=nnx.Rngs(config.seed), precision=config.train.precision)
    kernel = network.head_layer.kernel
    kernel.set_value(kernel[...] * config.method.spread)
    return network


def loss(network, batch, boundary):
    halo = (batch.audio.shape[1] - batch.visual.shape[1]) // 2  # after the axis of chunks
    sign = 1 - 2 * batch.label.astype(network.dtype)
    return jax.nn.softplus(sign * network(batch.visual, batch.audio[:, halo:-halo]))


METHOD = FrameMethod(
    name="toy",
    deviation="it is a toy",
    make_model=make_model,
    loss=loss,
    outputs=lambda score, batch: score(batch.visual, batch.audio)[:, None],
    pooling="mean",
)
'''
SETTINGS = '''
"""A toy."""

from jax_avh.config import Config
from toy_method import ToyConfig


def get_config():
    config = Config(ToyConfig())
    config.train.epochs, config.optimizer.learning_rate, config.data.batch_frames = 20, 0.1, 40
    return config
'''
REGISTER = """
import sys
sys.path.insert(0, {folder!r})
import jax_avh.configs, jax_avh.methods, toy_method
jax_avh.configs.__path__.append({folder!r})
jax_avh.methods.METHODS["toy"] = toy_method.METHOD  # the line of the registry
"""


def test_a_new_method_is_trained_scored_and_evaluated_by_the_commands(tmp_path, launch):
    (tmp_path / "toy_method.py").write_text(METHOD)
    (tmp_path / "toy.py").write_text(SETTINGS)
    rng = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        features = [rng.standard_normal((2, 20, 8)).astype(np.float32) for _ in range(8)]
        clips = [(f"{split}{n}.mp4", n % 2, v, a + 3 * (n % 2)) for n, (v, a) in enumerate(features)]
        write_shard(tmp_path / split, clips)

    def command(*arguments):
        status, output = launch(*arguments, before=REGISTER.format(folder=str(tmp_path)))
        assert not status, output

    data = [f"--config.data.{split}={tmp_path / split}" for split in ("train", "val")]
    command("train", "--config.method=toy", "--config.method.spread=0.5", *data, f"--workdir={tmp_path}/run")
    before, *_, after = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert after["val_loss"] < before["val_loss"] / 2
    assert json.loads((tmp_path / "run" / "config.json").read_text())["method"] == {"name": "toy", "spread": 0.5}
    scores = tmp_path / "scores.h5"
    command("score", f"--weights={tmp_path}/run", f"--features={tmp_path}/test", f"--output={scores}")
    table = open_scores(scores)
    assert (table.method, table.attributes["pooling"]) == ("toy", "mean")
    command("evaluate", f"--scores={scores}", f"--output={tmp_path}/results")
    metrics = json.loads((tmp_path / "results" / "metrics.json").read_text())
    assert any("toy is not the published system: it is a toy" in line for line in metrics["warnings"])
    assert re.search(r'"auc": (1\.0|0\.9)', json.dumps(metrics))
