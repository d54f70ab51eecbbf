"""The training loop: epochs over the frame stream, validation, checkpoints, an end."""

import dataclasses
import functools
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import tqdm
from flax import nnx

from extract.schema import InputError, caveat, whole_file
from jax_avh.config import Config, check_config
from jax_avh.data import FeatureSource, FrameBatches, frame_stream, open_source, prefetched
from jax_avh.data.source import SET_ATTRIBUTES
from jax_avh.models import BEST_WEIGHTS, AlignmentNetwork, FrameBatch, load_weights, save_weights
from jax_avh.training.checkpoint import Checkpoints
from jax_avh.training.log import MetricsLog
from jax_avh.training.sharding import by_chunk, make_mesh, replicated
from jax_avh.training.state import Progress, init_state, total_loss, train_step

RESUMABLE = ("epochs", "checkpoint_steps")  # settings of TrainConfig that a restarted run may change


def train(config: Config, workdir: str | Path) -> Progress:
    """Trains an alignment network on the real clips of a folder of shards; goes on where a killed run was.

    Args:
      config: the run's settings.
      workdir: gets `config.json`, `metrics.jsonl`, `tensorboard/`, `checkpoints/`, `best.safetensors`.

    Returns:
      Where the run ended.

    Raises:
      InputError: a setting, the features, the initial weights, or a workdir of another run.
    """
    check_config(config)
    run = Run(config, Path(workdir))
    try:
        run.start()
        while not run.progress.finished(config):
            run.epoch()
    finally:
        run.close()
    return run.progress


class Run:
    """A training run: its data, its compiled steps, its state, and its files."""

    def __init__(self, config: Config, workdir: Path):
        self.config, self.workdir = config, workdir
        self.train_source, self.val_source = (open_source(p).real() for p in (config.data.train, config.data.val))
        network = self._initial_network()
        _adopt(workdir, config, {"train": self.train_source.fingerprint(), "val": self.val_source.fingerprint()})
        self.mesh = make_mesh()
        self.graph = nnx.graphdef(network)
        self.state = jax.device_put(init_state(network), replicated(self.mesh))
        self.progress = Progress(epoch=-1, step=0, loss_sum=0.0, learning_rate=config.optimizer.learning_rate)
        self.compiled_step = jax.jit(functools.partial(train_step, self.graph, config), donate_argnums=0)
        self.compiled_loss = jax.jit(functools.partial(total_loss, self.graph, config))
        self.checkpoints = Checkpoints(workdir / "checkpoints")
        self.state, self.progress = self.checkpoints.restore(self.state, self.progress)
        self.log = MetricsLog(workdir, self.progress.epoch)

    def start(self) -> None:
        """Measures the losses before training (epoch 0), unless a restored run has done so."""
        if note := caveat(self.train_source.attributes):
            print(note)
        if self.progress.epoch >= 0:
            return
        started = time.perf_counter()
        train_loss = self._evaluate(self.train_source, "epoch 0, train")
        speed = self._batches(self.train_source).stream.frames / (time.perf_counter() - started)
        self.progress = dataclasses.replace(self.progress, epoch=0)
        self._report(train_loss, self._evaluate(self.val_source, "epoch 0, val"), speed)
        self._save()

    def epoch(self) -> None:
        """Trains one epoch (or the rest of one), validates, logs, and saves."""
        train_loss, speed = self._train_epoch()
        val_loss = self._evaluate(self.val_source, f"epoch {self.progress.epoch + 1}, val")
        rate, best = self.progress.learning_rate, self.progress.best_loss
        self.progress = self.progress.after_epoch(val_loss, self.config)
        self._report(train_loss, val_loss, speed, rate)
        if val_loss < best:
            save_weights(nnx.merge(self.graph, self.state.params), self.workdir / BEST_WEIGHTS)
        # Last: what a checkpoint says was done has been done, and what it does not say is done again.
        self._save(val_loss)

    def close(self) -> None:
        """Closes the run's files."""
        self.log.close()
        self.checkpoints.close()

    def _train_epoch(self) -> tuple[float, float]:
        """Runs the steps that are left of an epoch; its mean frame loss, and frames per second."""
        config, first = self.config, self.progress.step
        seed = (config.seed, self.progress.epoch) if config.data.shuffle else None
        batches = self._batches(self.train_source, seed)
        rate = jnp.float32(self.progress.learning_rate)
        losses, started = [], time.perf_counter()
        for index, batch in self._placed(batches, f"epoch {self.progress.epoch + 1}", first):
            self.state, loss = self.compiled_step(self.state, batch, rate)
            losses.append(loss)
            if (index + 1) % config.train.checkpoint_steps == 0 and index + 1 < len(batches):
                self._advance(index + 1, losses)
                self._save()
                losses = []
        self._advance(len(batches), losses)
        seconds = time.perf_counter() - started
        frames = batches.stream.frames
        return self.progress.loss_sum / frames, (frames - first * config.data.batch_frames) / seconds

    def _advance(self, step: int, losses: list[jax.Array]) -> None:
        """Counts steps as done. Their losses are fetched only now, so that the devices never wait for the host."""
        loss_sum = math.fsum([self.progress.loss_sum, *jax.device_get(losses)])
        if not math.isfinite(loss_sum):
            epoch = self.progress.epoch + 1
            raise InputError(f"the loss became {loss_sum} in epoch {epoch}; lower --config.optimizer.learning_rate")
        self.progress = dataclasses.replace(self.progress, step=step, loss_sum=loss_sum)

    def _evaluate(self, source: FeatureSource, title: str) -> float:
        """Mean frame loss of a source, in its own order."""
        batches = self._batches(source)
        losses = [self.compiled_loss(self.state.params, batch) for _, batch in self._placed(batches, title)]
        mean = math.fsum(jax.device_get(losses)) / batches.stream.frames
        if not math.isfinite(mean):
            raise InputError(f"the loss on {source.path} is {mean}; the weights hold NaN or infinity")
        return mean

    def _batches(self, source: FeatureSource, shuffle_seed: tuple[int, int] | None = None) -> FrameBatches:
        stream = frame_stream(source, shuffle_seed)
        return FrameBatches(stream, self.config.data.batch_frames, self.config.model.tau, self.mesh.size)

    def _placed(self, batches: FrameBatches, title: str, first: int = 0) -> Iterator[tuple[int, FrameBatch]]:
        """(index, batch on the devices), with a progress bar."""
        bar = tqdm.tqdm(prefetched(batches, first), desc=title, initial=first, total=len(batches), leave=False)
        for index, batch in enumerate(bar, start=first):
            yield index, jax.device_put(batch, by_chunk(self.mesh))

    def _report(self, train_loss: float, val_loss: float, speed: float, rate: float | None = None) -> None:
        metrics = {
            "epoch": self.progress.epoch,
            "train_loss": train_loss,
            "val_loss": val_loss,
            "learning_rate": self.progress.learning_rate if rate is None else rate,
            "frames_per_second": round(speed, 1),
        }
        self.log.write(metrics)
        print("  ".join(f"{name} {value:.6g}" for name, value in metrics.items()), flush=True)

    def _save(self, val_loss: float | None = None) -> None:
        steps = len(self._batches(self.train_source))
        self.checkpoints.save(self.progress.epoch * steps + self.progress.step, self.state, self.progress, val_loss)

    def _initial_network(self) -> AlignmentNetwork:
        if not self.config.init:
            network = AlignmentNetwork(self.train_source.width, rngs=nnx.Rngs(self.config.seed))
        else:
            network = load_weights(self.config.init)
        if any(self.train_source.attributes.get(n) != self.val_source.attributes.get(n) for n in SET_ATTRIBUTES):
            raise InputError(f"{self.val_source.path}: from another encoder or trimming than {self.train_source.path}")
        for source in (self.train_source, self.val_source):
            if source.width != network.width:
                raise InputError(
                    f"{source.path}: features of width {source.width}, but the network takes {network.width}"
                )
        return network


def _adopt(workdir: Path, config: Config, data: dict[str, str]) -> None:
    """Writes the settings and the data's fingerprints into the workdir; refuses one that holds another run."""
    path, record = workdir / "config.json", dataclasses.asdict(config) | {"fingerprint": data}
    if path.exists():
        try:
            same = _what_matters(json.loads(path.read_text())) == _what_matters(json.loads(json.dumps(record)))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputError(f"{path}: not a run's settings ({error}); choose another --workdir") from error
        if not same:
            raise InputError(f"{workdir}: holds a run with other settings or features; choose another --workdir")
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n")


def _what_matters(record: dict) -> dict:
    """A run's record less what a restart may change: how long it lasts, and where its features lie."""
    train = {name: value for name, value in record["train"].items() if name not in RESUMABLE}
    data = {name: value for name, value in record["data"].items() if name not in ("train", "val")}
    return record | {"train": train, "data": data}
