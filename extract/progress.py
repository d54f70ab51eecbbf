"""Progress bar and per-stage timing of a run."""

import collections
import contextlib
import time
from collections.abc import Iterable, Iterator

import tqdm

from avh_shards.clip import FRAME_RATE


class ProgressBar(tqdm.tqdm):
    """A progress bar over clips that also shows seconds of video per second and the number of failures."""

    def __init__(self, total: int, done: int = 0, title: str = "clips"):
        super().__init__(desc=title, unit=" clips", initial=done, total=total, smoothing=0.05, mininterval=1.0)
        self.started = time.perf_counter()
        self.frames = 0
        self.failed = 0

    def add(self, clips: int, frames: int, failed: int) -> None:
        """Advances the bar by clips, their frames and the number of clips that failed."""
        self.frames += frames
        self.failed += failed
        rate = self.frames / FRAME_RATE / (time.perf_counter() - self.started)
        self.set_postfix_str(f"{rate:.1f} video-s/s, {self.failed} failed", refresh=False)
        self.update(clips)


class Stopwatch:
    """Accumulator of the wall-clock seconds spent in named stages."""

    def __init__(self):
        self.seconds: dict[str, float] = collections.defaultdict(float)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Adds the block's time to a stage."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - started

    def waiting(self, name: str, items: Iterable) -> Iterator:
        """Yields the items and adds the time spent waiting for each to a stage."""
        iterator = iter(items)
        done = object()
        while True:
            with self.stage(name):
                item = next(iterator, done)
            if item is done:
                return
            yield item
