"""Logs of a run: metrics per epoch in `metrics.jsonl` and for TensorBoard, progress bars, profiler traces."""

import collections
import io
import json
import os
import socket
import time
from typing import Any

import jax
import numpy as np
import tqdm
from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.summary.writer.record_writer import RecordWriter

from avh_shards import UserError
from avh_shards.paths import FilePath, append, atomic_write
from jax_avh.data.loaders import Epoch
from jax_avh.training.run import EVENTS, METRICS_FILE

EVENTS_PB2: Any = event_pb2  # Any, because protocol buffers create their classes at import
SUMMARY_PB2: Any = summary_pb2
EVENT_FILE = "brain.Event:2"  # format version of TensorBoard's files
WARM_UP, TRACED = 2, 8  # compiled loops of steps before a trace, and within it
LOOPS_AHEAD = 2  # loops handed to the devices before the losses of an earlier one are fetched


class MetricsLog:
    """Writer of metrics; it first drops lines after the restored epoch, which a killed run may have left.

    TensorBoard's own writer is not used: errors in its thread, such as a full disk, end in a traceback.
    """

    def __init__(self, workdir: FilePath, last_epoch: int, caveat: str = ""):
        """Opens the files of a run.

        Args:
          workdir: the run's folder.
          last_epoch: the restored epoch; -1 = none.
          caveat: the sentence that accompanies every number of the run; its first word groups TensorBoard's charts.

        Raises:
          UserError: the files cannot be written, or contain something other than metrics.
        """
        self._caveat = caveat
        self.path = workdir / METRICS_FILE
        kept = [line for line in read_metrics(self.path) if line["epoch"] <= last_epoch]
        with atomic_write(self.path) as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{time.time_ns()}"
        self._events = workdir / EVENTS / name
        self._add_event(file_version=EVENT_FILE)
        restart = EVENTS_PB2.SessionLog(status=EVENTS_PB2.SessionLog.START)  # makes TensorBoard drop later events
        self._add_event(step=last_epoch + 1, session_log=restart)

    def write(self, metrics: dict[str, int | float]) -> None:
        """Appends the metrics of an epoch; they are on disk when this returns.

        Raises:
          UserError: they cannot be written: no space, ...
        """
        line = metrics | ({"caveat": self._caveat} if self._caveat else {})
        append(self.path, json.dumps(line).encode() + b"\n")
        group = f"{self._caveat.split()[0]}/" if self._caveat else ""
        named = {f"{group}{name}": value for name, value in metrics.items() if name != "epoch"}
        values = [SUMMARY_PB2.Summary.Value(tag=name, simple_value=value) for name, value in named.items()]
        self._add_event(step=int(metrics["epoch"]), summary=SUMMARY_PB2.Summary(value=values))

    def _add_event(self, **content: object) -> None:
        record = io.BytesIO()
        RecordWriter(record).write(EVENTS_PB2.Event(wall_time=time.time(), **content).SerializeToString())
        append(self._events, record.getvalue())


class Profiler:
    """Tracer of a few compiled loops by jax.profiler, after the first ones have compiled; without a folder, idle."""

    def __init__(self, directory: FilePath | None):
        self._directory = directory
        self._seen = 0
        self._tracing = False

    def loop_started(self, losses: jax.Array) -> None:
        """Counts a loop of steps handed to the devices, and starts or ends the trace accordingly."""
        self._seen += 1
        if self._directory and self._seen == WARM_UP:
            jax.block_until_ready(losses)
            jax.profiler.start_trace(str(self._directory))
            self._tracing = True
        if self._seen == WARM_UP + TRACED:
            jax.block_until_ready(losses)
            self.close()

    def close(self) -> None:
        """Ends the trace if one is running."""
        if self._tracing:
            jax.profiler.stop_trace()
        self._tracing = False


class LossMeter:
    """Sum of the losses of an epoch, with a progress bar.

    Losses are fetched a few loops late, so that neither the devices nor the host wait for long. The bar shows the
    speed, the remaining time and the latest loss, by the steps whose losses have arrived.
    """

    def __init__(
        self, title: str, epoch: Epoch, unit: str, first_step: int = 0, loss_sum: float = 0.0, shown: bool = True
    ):
        self._epoch = epoch
        self._done = first_step
        self._pending: collections.deque[jax.Array] = collections.deque()
        self._sum = loss_sum
        hidden: dict[str, Any] = {} if shown else {"disable": True}  # if shown, the variable TQDM_DISABLE decides
        self._bar = tqdm.tqdm(
            desc=title,
            total=int(epoch.frames.sum()),
            initial=int(epoch.frames[:first_step].sum()),
            unit=f" {unit}",
            unit_scale=True,
            leave=False,
            **hidden,
        )

    def __enter__(self) -> "LossMeter":
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def add(self, losses: jax.Array) -> None:
        """Adds the losses of consecutive steps, which the devices may not have computed yet."""
        self._pending.append(losses)
        while len(self._pending) > LOOPS_AHEAD:
            self._fetch()

    def take(self) -> float:
        """Waits for all steps, and returns the sum of the losses of the epoch's steps so far."""
        while self._pending:
            self._fetch()
        return self._sum

    def _fetch(self) -> None:
        losses = np.asarray(self._pending.popleft(), np.float64)
        for loss in losses.tolist():  # one by one, so that the sum is the same wherever the run was saved or resumed
            self._sum += loss
        before, self._done = self._done, self._done + len(losses)
        latest = losses[-1] / self._epoch.items[self._done - 1]
        steps = len(self._epoch.items)
        self._bar.set_postfix_str(f"step {self._done}/{steps}, loss {latest:.4f}", refresh=False)
        self._bar.update(int(self._epoch.frames[before : self._done].sum()))


def read_metrics(path: FilePath) -> list[dict[str, int | float]]:
    """Reads the complete lines of a metrics file, up to the first that was cut off; a missing file has none.

    Raises:
      UserError: the file contains something other than metrics.
    """
    lines = []
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            lines.append(json.loads(line))
        except (ValueError, RecursionError):  # cut off when the run was killed; the rest is dropped
            break
    if not all(isinstance(line, dict) and isinstance(line.get("epoch"), int) for line in lines):
        raise UserError(f"{path}: not the metrics of a run; choose another --workdir")
    return lines
