"""Seconds by stage, for the run's summary."""

import collections
import contextlib
import time
from collections.abc import Iterable, Iterator


class Stopwatch:
    """Adds up the wall seconds spent in named stages."""

    def __init__(self):
        self.started = time.perf_counter()
        self.seconds: dict[str, float] = collections.defaultdict(float)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Counts the block's time to a stage."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - started

    def waiting(self, name: str, items: Iterable) -> Iterator:
        """Passes items on and counts the time until each is there to a stage."""
        iterator = iter(items)
        done = object()
        while True:
            with self.stage(name):
                item = next(iterator, done)
            if item is done:
                return
            yield item

    def summary(self) -> dict[str, float]:
        """Seconds by stage, and in total since the watch was made."""
        return dict(self.seconds) | {"total": time.perf_counter() - self.started}
