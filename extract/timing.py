"""Seconds by stage, for the run's summary."""

import collections
import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping


class Stopwatch:
    """Adds up the wall seconds spent in named stages."""

    def __init__(self):
        self.seconds: dict[str, float] = collections.defaultdict(float)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Counts the block's time to a stage."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - started

    def add(self, seconds: Mapping[str, float]) -> None:
        """Adds what another watch counted."""
        for name, value in seconds.items():
            self.seconds[name] += value

    def timed(self, name: str, function: Callable) -> Callable:
        """A function whose calls count to a stage."""

        def call(*arguments: object) -> object:
            with self.stage(name):
                return function(*arguments)

        return call

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
