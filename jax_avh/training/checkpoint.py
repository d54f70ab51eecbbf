"""Orbax checkpoints of a run: the latest, to resume from, and the best."""

import contextlib
import dataclasses
import logging
import math
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from avh_shards import UserError
from avh_shards.paths import FULL, UNWRITABLE, unwritable
from avh_shards.text import one_line
from jax_avh.training.progress import RunProgress
from jax_avh.training.step import TrainState

policies = ocp.training.preservation_policies
SYSTEM_ERROR = re.compile(r"\[os_error_code='(\d+)'\]")  # in the ValueErrors that TensorStore raises
HALF = "*.orbax-checkpoint-tmp"  # folders of incomplete checkpoints
METADATA_BYTES = 2**20  # reserved for a checkpoint's files other than arrays, which usually take a tenth of it
MOST_TOLD = 300  # characters of a library's error that a message quotes


class Checkpoints:
    """Checkpoints of a run in one folder, numbered by training step."""

    def __init__(self, directory: Path):
        """Opens the folder, or creates it.

        Raises:
          UserError: the folder cannot be written, or holds a damaged checkpoint.
        """
        self._directory = directory.absolute()
        self._saving: Any = None  # response of the save in progress
        logging.getLogger("absl").addFilter(_not_raised_again)
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # silences the reads that Orbax abandons when one fails
        best = policies.BestN(
            get_metric_fn=lambda metrics: metrics["val_loss"],
            reverse=True,
            n=1,
            keep_checkpoints_without_metrics=False,
        )
        with self._told("a checkpoint in it cannot be read"):
            keep: Any = policies.AnyPreservationPolicy([policies.LatestN(1), best])
            self._checkpointer = ocp.training.Checkpointer(
                str(self._directory),
                preservation_policy=keep,
                cleanup_tmp_directories=True,
            )
            for checkpoint in self._checkpointer.checkpoints:
                metrics: Any = checkpoint.metrics
                if metrics is not None and not math.isfinite(metrics["val_loss"]):
                    raise ValueError(f"the metrics of {checkpoint.step} are not finite")

    def save(self, step: int, state: TrainState, progress: RunProgress, val_loss: float | None = None) -> None:
        """Saves the run at a step in the background, unless that checkpoint exists.

        Waits for the previous checkpoint first, and returns as soon as the arrays may change: Orbax copies them to the
        host, or on a CPU holds views of them, which keeps JAX from reusing their memory for the next step. A checkpoint
        is written whole or not at all.

        Args:
          step: number of the checkpoint; it must grow from one to the next.
          state: arrays of the run.
          progress: progress of the run.
          val_loss: validation loss by which the best checkpoint is kept; None = within an epoch.

        Raises:
          UserError: this checkpoint or the previous one cannot be written: no space, no permission, ...
        """
        self.wait()
        if (latest := self._checkpointer.latest) and latest.step == step:
            return
        metrics: Any = None if val_loss is None else {"val_loss": val_loss}
        # Checked first, because on a full disk Orbax's threads fail one after the other. A quota only shows in writing.
        needed = sum(array.nbytes for array in jax.tree.leaves(state)) + METADATA_BYTES
        disk = shutil.disk_usage(self._directory)
        if disk.total and disk.free < needed:  # some network file systems report zeros
            raise UserError(
                f"{self._directory}: cannot be written: a checkpoint takes {needed / 1e6:.1f} MB, but "
                f"{disk.free / 1e6:.1f} MB are free; free some space, and the same command resumes"
            )
        with self._told():
            stored = _stored(state, progress)
            self._saving = self._checkpointer.save_async(step, stored, metrics=metrics, force=True)

    def wait(self) -> None:
        """Waits until the checkpoint in progress is on disk.

        Raises:
          UserError: it cannot be written.
        """
        saving, self._saving = self._saving, None
        if saving:
            with self._told():
                saving.result()

    def restore(self, state: TrainState, progress: RunProgress) -> tuple[TrainState, RunProgress]:
        """Restores the latest checkpoint, placed on the devices as `state` is; without one, returns the arguments.

        Raises:
          UserError: the checkpoint cannot be read or belongs to a different network.
        """
        if self._checkpointer.latest is None:
            return state, progress
        with self._told("the latest checkpoint cannot be restored"):
            stored = self._checkpointer.load(None, _stored(state, progress))
        return _restored(stored, state)

    def close(self) -> None:
        """Closes the folder, and removes what a failed save left there."""
        try:
            with self._told():  # closing raises the error of a failed save again
                self._checkpointer.close()
        finally:
            if jax.process_index() == 0:
                for half in self._directory.glob(HALF):
                    shutil.rmtree(half, ignore_errors=True)

    @contextlib.contextmanager
    def _told(self, damage: str = "") -> Iterator[None]:
        """Turns any failure to read, and the system's failures to write, into a UserError.

        Args:
          damage: the message for errors in reading, except those of a full disk; "" = writing, where errors that are
            not the system's pass unchanged.
        """
        try:
            yield
        except Exception as error:  # JSON, asyncio, TensorStore and Orbax all raise their own
            found = _system_error(error)
            if found and (not damage or found.errno in FULL):
                raise unwritable(self._directory, found) from error
            if not damage:
                raise
            reason = one_line(error)[:MOST_TOLD]
            raise UserError(f"{self._directory}: {damage} ({reason}); remove this folder to start over") from error


def _not_raised_again(record: logging.LogRecord) -> bool:
    """Filters out the tracebacks of Orbax's threads, because the main thread raises the same errors."""
    return not (record.exc_info and "orbax" in record.pathname)


def _system_error(error: BaseException | None) -> OSError | None:
    """Returns the system's error, such as a full disk, in the chain of an error's causes; None if it has none."""
    while error is not None:
        code = SYSTEM_ERROR.search(str(error))
        number = int(code[1]) if code else getattr(error, "errno", None)
        if number in UNWRITABLE:
            return OSError(number, os.strerror(number))
        error = error.__cause__ or error.__context__
    return None


# The stored form is that of the first versions, so that their checkpoints resume: only the part of the optimiser that
# holds arrays, under the name "adam", then the only optimiser.
def _stored(state: TrainState, progress: RunProgress) -> dict[str, Any]:
    parts = [part for part in state.optimizer if jax.tree.leaves(part)]
    assert len(parts) == 1, "one part of an optimiser holds its arrays"
    arrays = {"params": state.params, "fixed": state.fixed, "adam": parts[0]}
    return {"state": arrays, "progress": dataclasses.asdict(progress)}


def _restored(stored: dict[str, Any], like: TrainState) -> tuple[TrainState, RunProgress]:
    arrays = stored["state"]
    optimizer = tuple(arrays["adam"] if jax.tree.leaves(part) else part for part in like.optimizer)
    return TrainState(arrays["params"], arrays["fixed"], optimizer), RunProgress(**stored["progress"])
