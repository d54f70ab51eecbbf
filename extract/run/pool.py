"""Clips prepared in processes of their own: a clip that fails, hangs or crashes its decoder costs that clip alone."""

import collections
import concurrent.futures
import contextlib
import dataclasses
import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import cv2
import pebble
import threadpoolctl

from avh_shards import ClipMeta, UserError
from avh_shards.errors import ClipError, Failure, is_passing
from avh_shards.format import Variant
from avh_shards.text import one_line
from extract.prepare import PreparedClip, PrepareSettings, cut_clip, read_clip

Result = TypeVar("Result")

CLIPS_AHEAD = 4  # clips in preparation or waiting, for each process: bounds memory


class Prepared(NamedTuple):
    """What became of a clip."""

    outcomes: dict[Variant, PreparedClip | Failure]  # for each variant that was asked for
    seconds: dict[str, float]  # spent, by stage

    @property
    def frames(self) -> int:
        """Frames of the longest variant, 0 if there is none."""
        return max((len(o.audio) for o in self.outcomes.values() if isinstance(o, PreparedClip)), default=0)

    @property
    def failed(self) -> bool:
        """Whether a variant is missing."""
        return any(self.failures.values())

    @property
    def failures(self) -> dict[Variant, Failure | None]:
        """Why each variant is missing; None if it is not."""
        return {variant: o if isinstance(o, Failure) else None for variant, o in self.outcomes.items()}


@dataclasses.dataclass(frozen=True)
class PrepareTask:
    """How every clip of a run is prepared; small, and the same on every machine."""

    media: str  # folder of the clips' files
    settings: PrepareSettings
    variants: tuple[Variant, ...]  # that are made of each clip
    timeout: float = 600.0  # seconds after which a clip counts as hung

    def __call__(self, clip: ClipMeta) -> Prepared:
        """Prepares a clip, in this process.

        Raises:
          UserError: the folder of media is gone, which is no clip's fault.
        """
        if not Path(self.media).is_dir():
            raise UserError(f"{self.media}: the folder of media is gone; start again once it is back")
        read = attempt(clip.path, read_clip, clip, self.media, self.settings)
        if isinstance(read, Failure):
            return self.all_failed(read)
        outcomes = {variant: attempt(clip.path, cut_clip, read, variant) for variant in self.variants}
        return Prepared(outcomes, read.seconds)

    def all_failed(self, failure: Failure) -> Prepared:
        """The same failure for every variant."""
        return Prepared(dict.fromkeys(self.variants, failure), {})


def attempt(path: str, work: Callable[..., Result], *arguments: object) -> Result | Failure:
    """Returns work(...); whatever a clip's file makes a library raise becomes the clip's failure.

    Args:
      path: of the clip.
      work: a step of its preparation.
      *arguments: of the step.
    """
    try:
        return work(*arguments)
    except ClipError as error:
        return Failure(path, error.stage, error.reason, is_passing(error))
    except UserError:  # not this clip's fault: a missing landmark model, say
        raise
    except Exception as error:
        return Failure(path, "prepare", f"unexpected {type(error).__name__}: {one_line(error)}", is_passing(error))


def open_pool(processes: int) -> pebble.ProcessPool:
    """Processes that prepare clips."""
    # A fork of this process would copy torch's threads in an unknown state; a server that has loaded the libraries, and
    # no more, forks all of them, and those that follow one that died. pebble's annotation of the context is too narrow.
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload([__name__])
    return pebble.ProcessPool(processes, initializer=_start_worker, context=cast(Any, server))


@contextlib.contextmanager
def running_pool(processes: int) -> Iterator[pebble.ProcessPool]:
    """The same for the time of a block; an error or Ctrl-C does not wait for the clips in preparation."""
    with open_pool(processes) as pool:
        try:
            yield pool
        except BaseException:
            pool.stop()
            raise


def prepare_all(
    pool: pebble.ProcessPool, clips: Iterable[ClipMeta], task: PrepareTask, processes: int
) -> Iterator[Prepared]:
    """What becomes of each clip, in the clips' order, a bounded number of clips ahead of its use."""
    waiting = collections.deque()
    for clip in clips:
        waiting.append((clip, pool.schedule(task, (clip,), timeout=task.timeout)))
        if len(waiting) > CLIPS_AHEAD * processes:
            yield _outcome(pool, task, *waiting.popleft())
    while waiting:
        yield _outcome(pool, task, *waiting.popleft())


def _start_worker() -> None:
    # The processes themselves fill the cores.
    cv2.setNumThreads(1)
    threadpoolctl.threadpool_limits(1)


def _outcome(
    pool: pebble.ProcessPool, task: PrepareTask, clip: ClipMeta, future: pebble.ProcessFuture, retries: int = 1
) -> Prepared:
    """What became of a clip; one whose process died gets another try, for the machine may be short of memory."""
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
