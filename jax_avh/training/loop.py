"""The training loop: epochs over the frame stream, validation, checkpoints, an end."""

import dataclasses
import math
import time
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from avh_shards import UserError, caveat
from jax_avh.config import Config, check_config
from jax_avh.methods import METHODS, ExampleMethod
from jax_avh.models import BEST_WEIGHTS, parameter_table, save_weights
from jax_avh.parallel import make_mesh, put_copies
from jax_avh.training.checkpoint import Checkpoints
from jax_avh.training.log import MetricsLog, Profiler
from jax_avh.training.meter import Meter
from jax_avh.training.placement import Feed, place_examples, place_features
from jax_avh.training.preemption import Preempted, Preemption
from jax_avh.training.setup import check_fit, frozen, initial_network, open_sources, origin, shared_clips
from jax_avh.training.state import Progress, init_state
from jax_avh.training.trainer import ExampleTrainer, FrameTrainer
from jax_avh.training.workdir import CHECKPOINTS, adopt, claimed, open_workdir, write_result


def train(config: Config, workdir: str | Path, profile: bool = False) -> Progress:
    """Trains a method's network on a folder of shards; goes on where a stopped run was.

    Args:
      config: the run's settings.
      workdir: gets `config.json`, `metrics.jsonl`, `tensorboard/`, `checkpoints/`, `best.safetensors` and, at the end,
        `result.json`. All processes of a run must see it.
      profile: trace some early steps into `profile/`.

    Returns:
      Where the run ended: or, after SIGTERM, where it will go on.

    Raises:
      UserError: a setting, the features, the initial weights, or a workdir of another run, or of one still under way.
    """
    check_config(config)
    folder = open_workdir(workdir, config)
    with claimed(folder), Preemption() as preemption:
        run = Run(config, folder, preemption, profile)
        try:
            run.start()
            while not run.progress.finished(config):
                run.epoch()
            run.finish()
        except Preempted:
            run.stop()
        finally:
            run.close()
    return run.progress


class Run:
    """A training run: its data, its compiled steps, its state, and its files."""

    def __init__(self, config: Config, workdir: Path, preemption: Preemption, profile: bool = False):
        self.config, self.workdir, self.preemption = config, workdir, preemption
        self.lead = jax.process_index() == 0  # the process that prints and writes
        train_source, val_source = open_sources(config)
        network, self.mesh = initial_network(config, train_source), make_mesh()
        check_fit(config, network, self.mesh.size, train_source, val_source)
        sources, method = (train_source, val_source), METHODS[config.method.name]
        if isinstance(method, ExampleMethod):
            feeds, trainer, self.unit = place_examples(config, self.mesh, network, *sources), ExampleTrainer, "examples"
        else:
            feeds, trainer, self.unit = place_features(config, self.mesh, *sources), FrameTrainer, "frames"
        self.train_feed, self.val_feed, self.placement = feeds
        known = {"train": train_source.fingerprint(), "val": val_source.fingerprint()}
        adopt(workdir, config, known | frozen(network, method.trained), self.lead)
        graph, state = init_state(network, method.trained)
        self.notes = origin(config, train_source)
        self.trainer, self.dtype = trainer.of(config, graph, self.mesh), network.dtype
        self.state = put_copies(self.mesh, state)
        self.progress = Progress.before(config)
        self.checkpoints = Checkpoints(workdir / CHECKPOINTS)
        self.log: MetricsLog | None = None
        self.profiler = Profiler(workdir / "profile" if profile and self.lead else None)

    def start(self) -> None:
        """Restores a stopped run, or measures the losses before training (epoch 0)."""
        self.state, self.progress = self.checkpoints.restore(self.state, self.progress)
        if self.lead:
            self.log = MetricsLog(self.workdir, self.progress.epoch, caveat(self.notes))
        devices = f"{self.mesh.size} {jax.devices()[0].platform} devices of {jax.process_count()} processes"
        self._say(parameter_table(self._network()), f"{devices}, {self.config.train.precision}", self.placement)
        if note := caveat(self.notes):
            self._say(note)
        if count := shared_clips(self.train_feed.source, self.val_feed.source):
            self._say(
                f"warning: {count} of the {len(self.val_feed.source.clips)} validation clips are training clips, too; "
                "the validation loss will not show overfitting: give --config.data.val other clips"
            )
        if self.progress.finished(self.config):
            self._say(f"{self.workdir}: this run has ended already; there is nothing to train")
        elif self.progress.epoch >= 0:
            self._say(f"{self.workdir}: resumes after epoch {self.progress.epoch}, step {self.progress.step}")
        if self.progress.epoch >= 0:
            return
        started = time.perf_counter()
        train_loss = self._evaluate(self.train_feed, "epoch 0, train")
        speed = self.train_feed.one_pass(None).plan.border[-1] / (time.perf_counter() - started)
        val_loss = self._evaluate(self.val_feed, "epoch 0, val")
        self.progress = dataclasses.replace(self.progress, epoch=0)
        self._report(train_loss, val_loss, speed)
        self._save()

    def epoch(self) -> None:
        """Trains one epoch (or the rest of one), validates, logs, and saves."""
        for feed in (self.train_feed, self.val_feed):
            feed.source.check_unchanged()
        train_loss, speed = self._train_epoch()
        val_loss = self._evaluate(self.val_feed, f"epoch {self.progress.epoch + 1}, val")
        rate, best = self.progress.learning_rate, self.progress.best_loss
        self.progress = self.progress.after_epoch(val_loss, self.config)
        self._report(train_loss, val_loss, speed, rate)
        if val_loss < best and self.lead:
            save_weights(self._network(), self.workdir / BEST_WEIGHTS, self.notes)
        # Last: what a checkpoint says was done has been done, and what it does not say is done again.
        self._save(val_loss)

    def finish(self) -> None:
        """Writes what the run came to, and says where it is and what to do next."""
        if self.lead:
            write_result(self.workdir, self.progress, caveat(self.notes))
        if not math.isfinite(self.progress.best_loss):
            self._say("no epoch was trained, so there are no weights")
            return
        best = f"best epoch {self.progress.epoch - self.progress.stale_epochs}, val_loss {self.progress.best_loss:.6g}"
        following = f"python -m launch.score --weights={self.workdir} --features=SHARDS --output=scores.h5"
        self._say(f"{best}: {self.workdir / BEST_WEIGHTS}; next: {following}")

    def stop(self) -> None:
        """Saves a run that must stop before its end."""
        if self.progress.epoch >= 0:
            self._save()
        done = f"epoch {self.progress.epoch}, step {self.progress.step}" if self.progress.epoch >= 0 else "nothing"
        self._say(f"stopped by SIGTERM, saved after {done}; the same command goes on from there")

    def close(self) -> None:
        """Closes the run's files."""
        self.profiler.close()
        self.checkpoints.close()

    def _train_epoch(self) -> tuple[float, float]:
        """Runs the steps that are left of an epoch; its mean loss, and frames or examples per second."""
        first, every = self.progress.step, self.config.train.checkpoint_steps
        seed = (self.config.seed, self.progress.epoch) if self.config.data.shuffle else None
        rate, started = np.asarray(self.progress.learning_rate, self.dtype), time.perf_counter()
        steps, before = self.train_feed.one_pass(seed), first
        plan = steps.plan
        with Meter(f"epoch {self.progress.epoch + 1}", plan, self.unit, first, self.lead) as meter:
            for done, segment in steps.segments(first):
                self.state, losses = self.trainer.train(self.state, segment, rate)
                meter.add(losses)
                self.profiler.segment(losses)
                due, stop = done // every > before // every, self.preemption.reached()
                before, last = done, done == len(plan.items)
                if stop or due or last:
                    self._advance(done, meter.take())
                if stop:
                    raise Preempted
                if due and not last:
                    self._save()
        count = int(plan.border[-1] - plan.border[first])
        return self.progress.loss_sum / plan.items.sum(), count / (time.perf_counter() - started)

    def _advance(self, step: int, loss_sum: float) -> None:
        """Counts steps as done, with the sum of their losses."""
        total = self.progress.loss_sum + loss_sum
        if not math.isfinite(total):
            self.train_feed.source.check_finite()
            epoch = self.progress.epoch + 1
            raise UserError(f"the loss became {total} in epoch {epoch}; lower --config.optimizer.learning_rate")
        self.progress = dataclasses.replace(self.progress, step=step, loss_sum=total)

    def _evaluate(self, feed: Feed, title: str) -> float:
        """Mean loss of a source, of its frames or its clips, in its own order."""
        steps = feed.one_pass(None)
        with Meter(title, steps.plan, self.unit, shown=self.lead) as meter:
            for _, segment in steps.segments():
                meter.add(self.trainer.losses(self.state, segment))
                if self.preemption.reached():
                    raise Preempted
            mean = meter.take() / steps.plan.items.sum()
        if not math.isfinite(mean):
            feed.source.check_finite()
            raise UserError(f"the loss on {feed.source.path} is {mean}; the weights hold NaN or infinity")
        return mean

    def _network(self) -> nnx.Module:
        return nnx.merge(self.trainer.graph, self.state.params, self.state.fixed)

    def _report(self, train_loss: float, val_loss: float, speed: float, rate: float | None = None) -> None:
        metrics = {
            "epoch": self.progress.epoch,
            "train_loss": train_loss,
            "val_loss": val_loss,
            "learning_rate": self.progress.learning_rate if rate is None else rate,
            f"{self.unit}_per_second": round(speed, 1),
        }
        if self.log:
            self.log.write(metrics)
        self._say("  ".join(f"{name} {value:.6g}" for name, value in metrics.items()))

    def _say(self, *lines: str) -> None:
        if self.lead:
            print(*lines, sep="\n", flush=True)

    def _save(self, val_loss: float | None = None) -> None:
        frames = int(self.train_feed.source.lengths.sum())  # an epoch has fewer steps, however it is cut
        number = self.progress.epoch * (frames + 1) + self.progress.step
        self.checkpoints.save(number, self.state, self.progress, val_loss)
