"""Training loop: epochs over a source, validation, checkpoints and the result."""

import contextlib
import dataclasses
import math
import time

import jax
import numpy as np
from flax import nnx

from avh_shards import UserError
from avh_shards.format import caveat
from avh_shards.paths import AnyPath
from jax_avh.config import Config, check_config
from jax_avh.data.loaders import Loader
from jax_avh.data.source import Source
from jax_avh.methods.base import TrainableMethod
from jax_avh.models.weights import BEST_WEIGHTS, parameter_table, save_weights
from jax_avh.parallel import make_mesh, put_copies
from jax_avh.training import run
from jax_avh.training.checkpoint import Checkpoints
from jax_avh.training.logging import LossMeter, MetricsLog, Profiler
from jax_avh.training.optimizer import make_optimizer
from jax_avh.training.progress import Preempted, Preemption, RunProgress
from jax_avh.training.step import Objective, TrainState, batch_losses, init_state, train_steps


def train(method: TrainableMethod, config: Config, workdir: AnyPath, profile: bool = False) -> RunProgress:
    """Trains a method's network on a folder of shards; resumes a run that was stopped.

    Args:
      method: the method that the configuration names.
      config: the run's settings.
      workdir: folder or URL for `config.json`, `metrics.jsonl`, `tensorboard/`, `checkpoints/`, `best.safetensors` and,
        at the end, `result.json`. All processes of a run must see it.
      profile: whether to trace some early steps into `profile/`.

    Returns:
      The progress at which the run ended; after SIGTERM, that from which it will resume.

    Raises:
      UserError: a setting, the features or the initial weights are invalid, the loss is not finite, or the workdir
        cannot be reached or written, is not seen by every process, belongs to another run, holds a damaged checkpoint,
        or is in use.
    """
    check_config(config)
    if profile and "://" in str(workdir):
        raise UserError(f"--profile: traces are written to local disks only, not to {workdir}; leave it out")
    lead = jax.process_index() == 0  # the process that prints and writes

    def say(*lines: str) -> None:
        if lead and lines:
            print(*lines, sep="\n", flush=True)

    with contextlib.ExitStack() as stack:
        workdir = stack.enter_context(run.claimed(workdir, config))
        preemption = stack.enter_context(Preemption(config.train.checkpoint_minutes))

        # Build everything that the run needs.
        train_source, val_source = run.open_sources(method, config)
        network = run.initial_model(method, config, train_source)
        run.check_fit(network, train_source, val_source)
        mesh = make_mesh()
        train_loader, val_loader, placement = method.make_loaders(config, mesh, network, train_source, val_source)
        fingerprints = {"train": train_source.fingerprint(), "val": val_source.fingerprint()}
        run.adopt(workdir, config, fingerprints | run.frozen(network, method.trained), lead)
        optimizer = make_optimizer(config.optimizer)
        graph, state = init_state(network, method.trained, optimizer)
        state = put_copies(mesh, state)
        objective = Objective(method, graph, mesh, config.model.boundary, config.seed)
        progress = RunProgress.before(config)
        notes = run.origin(config, train_source)

        # Restore the latest checkpoint.
        checkpoints = stack.enter_context(contextlib.closing(Checkpoints(workdir / run.CHECKPOINTS)))
        profiler = stack.enter_context(contextlib.closing(Profiler(workdir / "profile" if profile and lead else None)))
        state, progress = checkpoints.restore(state, progress)
        log = MetricsLog(workdir, progress.epoch, caveat(notes)) if lead else None
        devices = f"{mesh.size} {jax.devices()[0].platform} devices of {jax.process_count()} processes"
        say(parameter_table(network), f"{devices}, {config.train.precision}", placement)
        say(*filter(None, [caveat(notes), run.overlap_warning(train_source, val_source)]))
        if progress.finished(config):
            say(f"{workdir}: this run has already ended; nothing to train")
        elif progress.epoch >= 0:
            say(f"{workdir}: resumes after epoch {progress.epoch}, step {progress.step}")

        def report(train_loss: float, val_loss: float, rate: float, speed: float) -> None:
            losses = {"epoch": progress.epoch, "train_loss": train_loss, "val_loss": val_loss}
            metrics = losses | {"learning_rate": rate, f"{method.unit}_per_second": round(speed, 1)}
            if log:
                log.write(metrics)
            say("  ".join(f"{name} {value:.6g}" for name, value in metrics.items()))

        def save(val_loss: float | None = None) -> None:
            frames = int(train_source.lengths.sum())  # no epoch has more steps, so checkpoint numbers grow
            checkpoints.save(progress.epoch * (frames + 1) + progress.step, state, progress, val_loss)
            preemption.saved()

        def evaluate(loader: Loader, title: str) -> float:
            return _mean_loss(objective, state, loader, title, lead, preemption)

        try:
            if progress.epoch < 0:  # the losses before training
                started = time.perf_counter()
                train_loss = evaluate(train_loader, "epoch 0, train")
                speed = train_loader.epoch(None).frames.sum() / (time.perf_counter() - started)
                val_loss = evaluate(val_loader, "epoch 0, val")
                progress = dataclasses.replace(progress, epoch=0)
                report(train_loss, val_loss, progress.learning_rate, speed)
                save()

            while not progress.finished(config):
                for loader in (train_loader, val_loader):
                    loader.source.check_unchanged()
                started = time.perf_counter()
                first_step = step = progress.step
                rate = progress.learning_rate
                epoch = train_loader.epoch((config.seed, progress.epoch) if config.data.shuffle else None, first_step)
                title = f"epoch {progress.epoch + 1}"
                with LossMeter(title, epoch, method.unit, first_step, progress.loss_sum, lead) as meter:
                    for batches in epoch.batches:
                        state, losses = train_steps(
                            objective, optimizer, state, batches, np.asarray(rate, network.dtype)
                        )
                        meter.add(losses)
                        profiler.loop_started(losses)
                        before, step = step, step + len(batches)
                        last = step == len(epoch.items)
                        stop = preemption.reached()
                        due = preemption.checkpoint_due
                        if every := config.train.checkpoint_steps:
                            due |= step // every > before // every
                        if stop or due or last:
                            progress = progress.after_steps(step, meter.take())
                            _check_loss(progress, train_loader.source)
                        if stop:
                            raise Preempted
                        if due and not last:
                            save()
                train_loss = progress.loss_sum / epoch.items.sum()
                speed = epoch.frames[first_step:].sum() / (time.perf_counter() - started)

                val_loss = evaluate(val_loader, f"{title}, val")
                better = val_loss < progress.best_loss
                progress = progress.after_epoch(val_loss, config)
                report(train_loss, val_loss, rate, speed)
                if better and lead:
                    save_weights(nnx.merge(graph, state.params, state.fixed), workdir / BEST_WEIGHTS, notes)
                # Last, so that all that a checkpoint records is on disk; what it does not record is done again.
                save(val_loss)
            checkpoints.wait()
        except Preempted:
            done = "nothing"
            if progress.epoch >= 0:
                save()
                checkpoints.wait()
                done = f"epoch {progress.epoch}, step {progress.step}"
            say(f"stopped by SIGTERM, saved after {done}; the same command resumes from there")
            return progress

        # Write the result.
        if lead:
            run.write_result(workdir, progress, caveat(notes))
        if not math.isfinite(progress.best_loss):
            say("no epoch was trained, so there are no weights")
            return progress
        following = f"python -m launch.score --weights={workdir} --features=SHARDS --output=scores.h5"
        best = f"best epoch {progress.best_epoch}, val_loss {progress.best_loss:.6g}"
        say(f"{best}: {workdir / BEST_WEIGHTS}; next: {following}")
        return progress


def _mean_loss(
    objective: Objective, state: TrainState, loader: Loader, title: str, shown: bool, preemption: Preemption
) -> float:
    """Returns the mean loss of a source over its frames, clips or examples, in the source's order.

    Raises:
      UserError: the loss is not finite.
      Preempted: SIGTERM was received.
    """
    epoch = loader.epoch(None)
    with LossMeter(title, epoch, objective.method.unit, shown=shown) as meter:
        for batches in epoch.batches:
            meter.add(batch_losses(objective, state, batches))
            if preemption.reached():
                raise Preempted
        mean = meter.take() / epoch.items.sum()
    if not math.isfinite(mean):
        loader.source.check_finite()
        raise UserError(f"{loader.source.path}: the loss is {mean}, because the weights hold NaN or infinity")
    return mean


def _check_loss(progress: RunProgress, source: Source) -> None:
    """Raises a UserError if the sum of the losses is not finite."""
    if not math.isfinite(progress.loss_sum):
        source.check_finite()
        raise UserError(
            f"the loss became {progress.loss_sum} in epoch {progress.epoch + 1}; lower --config.optimizer.learning_rate"
        )
