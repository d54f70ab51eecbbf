"""Orbax checkpoints of a run: the latest, to resume from, and the best."""

import contextlib
import dataclasses
import logging
import math
import os
import re
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from avh_shards import UserError
from avh_shards.paths import FULL, UNWRITABLE, FilePath, atomic_write, local_file, unwritable
from avh_shards.text import one_line
from jax_avh.training.progress import RunProgress
from jax_avh.training.step import TrainState

policies = ocp.training.preservation_policies
SYSTEM_ERROR = re.compile(r"\[os_error_code='(\d+)'\]")  # in the ValueErrors that TensorStore raises
ARCHIVE = "checkpoints.tar"  # all checkpoints, in a folder at a URL
HALF = "*.orbax-checkpoint-tmp"  # folders of incomplete checkpoints
METADATA_BYTES = 2**20  # reserved for a checkpoint's files other than arrays, which usually take a tenth of it
MOST_TOLD = 300  # characters of a library's error that a message quotes


class Checkpoints:
    """Checkpoints of a run in one folder, numbered by training step.

    Orbax writes to few object stores. So for a folder at a URL, each process keeps a copy on its own disk, which the
    lead uploads after every save as one file, whole or not at all. This works because every process holds all arrays.
    """

    def __init__(self, directory: FilePath):
        """Opens the folder, or creates it.

        Raises:
          UserError: the folder cannot be written, or holds a damaged checkpoint.
        """
        self._directory = directory
        self._archive = None if isinstance(directory, Path) else directory / ARCHIVE
        self._uploader = ThreadPoolExecutor(1)
        self._saving: Any = None  # future of the save in progress
        logging.getLogger("absl").addFilter(_worth_reading)
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # silences the reads that Orbax abandons when one fails
        best = policies.BestN(
            get_metric_fn=lambda metrics: metrics["val_loss"],
            reverse=True,
            n=1,
            keep_checkpoints_without_metrics=False,
        )
        keep: Any = policies.AnyPreservationPolicy([policies.LatestN(1), best])
        context = ocp.Context()
        with contextlib.ExitStack() as stack, self._told("a checkpoint in it cannot be read"):
            if isinstance(directory, Path):
                self._local = directory.absolute()
            else:
                context.multiprocessing.primary_host = None  # every process writes
                self._local = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                self._download()
            self._checkpointer = ocp.training.Checkpointer(
                str(self._local),
                context=context,
                preservation_policy=keep,
                cleanup_tmp_directories=True,
            )
            for checkpoint in self._checkpointer.checkpoints:
                metrics: Any = checkpoint.metrics
                if metrics is not None and not math.isfinite(metrics["val_loss"]):
                    raise ValueError(f"the metrics of {checkpoint.step} are not finite")
            self._copy = stack.pop_all()

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
        disk = shutil.disk_usage(self._local)
        if disk.total and disk.free < needed:  # some network file systems report zeros
            raise UserError(
                f"{self._local}: cannot be written: a checkpoint takes {needed / 1e6:.1f} MB, but "
                f"{disk.free / 1e6:.1f} MB are free; free some space, and the same command resumes"
            )
        with self._told():
            stored = self._placed(_stored(state, progress))
            self._saving = self._checkpointer.save_async(step, stored, metrics=metrics, force=True)
            if self._archive and jax.process_index() == 0:
                self._saving = self._uploader.submit(self._upload, self._saving)

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
          UserError: the checkpoint cannot be read, belongs to a different network, or is not seen by every process.
        """
        latest = self._checkpointer.latest
        number = -1 if latest is None else latest.step % 2**31  # JAX has no larger integers by default
        if np.ptp(multihost_utils.process_allgather(np.array(number, np.int32))):
            raise UserError(
                f"{self._directory}: the processes see different checkpoints in it; give a workdir that they share"
            )
        if latest is None:
            return state, progress
        with self._told("the latest checkpoint cannot be restored"):
            stored = self._checkpointer.load(None, self._placed(_stored(state, progress)))
        restored, progress = _restored(stored, state)
        if self._archive:
            restored = jax.tree.map(
                lambda like, array: jax.make_array_from_callback(like.shape, like.sharding, array.__getitem__),
                state,
                restored,
            )
        return restored, progress

    def close(self) -> None:
        """Closes the folder, and removes what a failed save left there."""
        try:
            self.wait()
            with self._told():  # closing raises the error of a failed save again
                self._checkpointer.close()
        finally:
            if jax.process_index() == 0:
                for half in self._local.glob(HALF):
                    shutil.rmtree(half, ignore_errors=True)
            self._uploader.shutdown()
            self._copy.close()

    def _download(self) -> None:
        """Fills the copy on the own disk with the checkpoints at the URL."""
        assert self._archive is not None
        if self._archive.exists():
            with local_file(self._archive) as file, tarfile.open(file) as archive:
                archive.extractall(self._local, filter="data")

    def _upload(self, saving: Any) -> None:
        """Waits for a save, and uploads all checkpoints that it leaves."""
        assert self._archive is not None
        saving.result()
        with atomic_write(self._archive) as temporary, tarfile.open(temporary, "w") as archive:
            archive.add(self._local, arcname=".")

    def _placed(self, stored: dict[str, Any]) -> dict[str, Any]:
        """Returns what to store, with arrays of the host if every process writes them."""
        return {**stored, "state": jax.tree.map(np.asarray, stored["state"])} if self._archive else stored

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


def _worth_reading(record: logging.LogRecord) -> bool:
    """Filters out tracebacks of Orbax's threads, which the main thread raises again, and a remark on every save."""
    return "orbax" not in record.pathname or not (record.exc_info or "`primary_host=None`" in str(record.msg))


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
