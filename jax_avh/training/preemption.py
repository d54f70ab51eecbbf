"""SIGTERM: the machine is wanted back. A run saves its state and ends cleanly."""

import signal
import threading

import jax
import numpy as np
from jax.experimental import multihost_utils

TOGETHER = 8  # looks after which processes tell each other: often enough to stop in time, and hardly any cost


class Preempted(Exception):  # noqa: N818 (no error)
    """A run stops before its end, to resume later."""


class Preemption:
    """Notices SIGTERM while the block lasts; several processes agree on the step at which they stop."""

    def __enter__(self) -> "Preemption":
        self._noticed = False
        self._looks = 0
        self._before = None
        if threading.current_thread() is threading.main_thread():  # Python refuses handlers to all others
            self._before = signal.signal(signal.SIGTERM, self._notice)
        return self

    def __exit__(self, *error: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def reached(self) -> bool:
        """Returns whether it is time to stop; every process must look equally often."""
        self._looks += 1
        if jax.process_count() == 1:
            return self._noticed
        if self._looks % TOGETHER:
            return False
        return bool(multihost_utils.process_allgather(np.array(self._noticed)).any())

    def _notice(self, signum: int, frame: object) -> None:
        self._noticed = True
