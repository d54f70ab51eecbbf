"""Preparation of clips in worker processes: a clip that fails, hangs or crashes its decoder affects only itself."""

import collections
import concurrent.futures
import contextlib
import dataclasses
import multiprocessing
import multiprocessing.context
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import cv2
import pebble
import threadpoolctl

from avh_shards import ClipMeta, UserError
from avh_shards.errors import ClipError, Failure, is_passing
from avh_shards.format import Variant
from avh_shards.text import one_line
from extract.faces import FacesOfShot, ReadFaces, read_faces, why_none
from extract.prepare import PreparedClip, PrepareSettings, ReadClip, cut_clip, read_clip

Result = TypeVar("Result")

MODELS = "extract.face.loaded"  # the module whose import loads the face detector and the landmark model
CLIPS_AHEAD = 4  # clips per process in preparation or waiting: bounds memory


class Prepared(NamedTuple):
    """Outcome of a clip's preparation."""

    outcomes: Mapping[Variant, Sequence[PreparedClip] | Failure]  # of each variant: the clip, or those of its faces
    seconds: dict[str, float]  # time spent, by stage
    shots: Sequence[FacesOfShot] = ()  # all shots with all faces, if faces were asked for

    @property
    def frames(self) -> int:
        """Number of frames of the longest variant; 0 if all failed."""
        prepared = (outcome for outcome in self.outcomes.values() if not isinstance(outcome, Failure))
        return max((sum(len(clip.audio) for clip in clips) for clips in prepared), default=0)

    @property
    def failed(self) -> bool:
        """Whether any variant failed."""
        return any(self.failures.values())

    @property
    def failures(self) -> dict[Variant, Failure | None]:
        """Failure of each variant; None if it succeeded."""
        return {variant: o if isinstance(o, Failure) else None for variant, o in self.outcomes.items()}


@dataclasses.dataclass(frozen=True)
class PrepareTask:
    """Preparation of every clip of a run; small, and the same on every machine."""

    media: str  # folder of the clips' files
    settings: PrepareSettings
    variants: tuple[Variant, ...]  # extracted from each clip
    timeout: float = 600.0  # seconds after which a clip counts as hung

    def __call__(self, clip: ClipMeta) -> Prepared:
        """Prepares a clip in this process.

        Raises:
          UserError: the media folder is gone or a landmark model is missing, which no clip is to blame for.
        """
        if not Path(self.media).is_dir():
            raise UserError(f"{self.media}: the media folder is gone; restart once it is back")
        return self.prepare(clip)

    def prepare(self, clip: ClipMeta) -> Prepared:
        """Prepares a clip; unlike in a run, a missing folder is the clip's failure.

        Raises:
          UserError: a landmark model is missing.
        """
        read = attempt(clip.path, read_faces if self.settings.faces else _read_whole, clip, self.media, self.settings)
        if isinstance(read, Failure):
            return self.all_failed(read)
        shots, parts = read
        if not parts:
            failed = self.all_failed(Failure(clip.path, "faces", why_none(shots)))
            return failed._replace(shots=shots)
        outcomes = {variant: _cut(clip.path, parts, variant) for variant in self.variants}
        return Prepared(outcomes, parts[0].seconds, shots)

    def all_failed(self, failure: Failure) -> Prepared:
        """Returns the outcome of a clip whose variants all failed for the same reason."""
        return Prepared(dict.fromkeys(self.variants, failure), {})


def _read_whole(clip: ClipMeta, root: str, settings: PrepareSettings) -> ReadFaces:
    return ReadFaces([], [read_clip(clip, root, settings)])


def _cut(path: str, parts: Sequence[ReadClip], variant: Variant) -> Sequence[PreparedClip] | Failure:
    """Cuts a clip, or its faces without those that are too short then; returns a failure if none is left."""
    outcomes = [attempt(path, cut_clip, part, variant) for part in parts]
    cut = [outcome for outcome in outcomes if not isinstance(outcome, Failure)]
    failures = [outcome for outcome in outcomes if isinstance(outcome, Failure)]
    if other := [failure for failure in failures if failure.stage != "clip"]:  # the stage of clips that are too short
        return other[0]
    return cut or failures[0]


def attempt(path: str, work: Callable[..., Result], *arguments: object) -> Result | Failure:
    """Runs a step of a clip's preparation and turns exceptions into a failure of the clip.

    Args:
      path: path of the clip.
      work: step of the preparation.
      *arguments: arguments of the step.

    Returns:
      The result of the step, or the failure.

    Raises:
      UserError: the clip is not at fault, for example because a landmark model is missing.
    """
    try:
        return work(*arguments)
    except ClipError as error:
        return Failure(path, error.stage, error.reason, is_passing(error))
    except UserError:  # not the clip's fault, such as a missing landmark model
        raise
    except Exception as error:
        return Failure(path, "prepare", f"unexpected {type(error).__name__}: {one_line(error)}", is_passing(error))


class _Worker(multiprocessing.context.ForkServerProcess):
    """Process that does not import the main module, as others would: a command's loads torch, 290 MB in each."""

    @staticmethod
    def _Popen(process_obj: Any) -> Any:  # noqa: N802
        main = sys.modules["__main__"]
        sys.modules["__main__"] = types.ModuleType("__main__")  # of no file
        try:
            return multiprocessing.context.ForkServerProcess._Popen(process_obj)
        finally:
            sys.modules["__main__"] = main


class _ForkServer(multiprocessing.context.ForkServerContext):
    Process = _Worker


def open_pool(task: PrepareTask, processes: int) -> pebble.ProcessPool:
    """Opens a pool of processes that prepare clips.

    Args:
      task: preparation of each clip.
      processes: number of processes.
    """
    # Forking this process would copy torch's threads in an unknown state. A fork server that has only loaded the
    # libraries, and the models if the task needs them, starts all workers and their replacements, which share that
    # memory. pebble's annotation of the context is too narrow.
    server = _ForkServer()
    server.set_forkserver_preload([__name__, *([MODELS] if task.settings.finds_faces else [])])
    return pebble.ProcessPool(processes, initializer=_start_worker, context=cast(Any, server))


@contextlib.contextmanager
def running_pool(task: PrepareTask, processes: int) -> Iterator[pebble.ProcessPool]:
    """Opens a pool for a block, as `open_pool` does; an error or Ctrl-C does not wait for the clips in preparation."""
    with open_pool(task, processes) as pool:
        try:
            yield pool
        except BaseException:
            pool.stop()
            raise


def prepare_all(
    pool: pebble.ProcessPool, clips: Iterable[ClipMeta], task: PrepareTask, processes: int
) -> Iterator[Prepared]:
    """Prepares clips in a pool, at most CLIPS_AHEAD clips per process in advance.

    Args:
      pool: the worker processes.
      clips: clips to prepare.
      task: preparation of each clip; its timeout applies per clip.
      processes: number of processes in the pool.

    Yields:
      The outcome of each clip, in the order of `clips`. A crash or timeout is a failure of the clip.

    Raises:
      UserError: from `task`, if no clip is at fault.
    """
    waiting = collections.deque()
    for clip in clips:
        waiting.append((clip, pool.schedule(task, (clip,), timeout=task.timeout)))
        if len(waiting) > CLIPS_AHEAD * processes:
            yield _outcome(pool, task, *waiting.popleft())
    while waiting:
        yield _outcome(pool, task, *waiting.popleft())


def _start_worker() -> None:
    # The worker processes already use all cores.
    cv2.setNumThreads(1)
    threadpoolctl.threadpool_limits(1)


def _outcome(
    pool: pebble.ProcessPool, task: PrepareTask, clip: ClipMeta, future: pebble.ProcessFuture, retries: int = 1
) -> Prepared:
    """Returns a clip's outcome; retries a clip whose process died, since the machine may have been short of memory."""
    try:
        return future.result()
    except concurrent.futures.TimeoutError:
        return task.all_failed(Failure(clip.path, "prepare", f"preparation took longer than {task.timeout:g} s", True))
    except pebble.ProcessExpired as error:
        if retries:
            again = pool.schedule(task, (clip,), timeout=task.timeout)
            return _outcome(pool, task, clip, again, retries - 1)
        reason = f"its decoder crashed (exit status {error.exitcode})"
        return task.all_failed(Failure(clip.path, "prepare", reason, passing=True))
