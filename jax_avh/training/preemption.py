"""SIGTERM: the machine is wanted back. A run saves its state and ends in peace."""

import signal
import threading

import jax
from jax.experimental import multihost_utils


class Preempted(Exception):  # noqa: N818 (no error)
    """A run stops before its end, to go on later."""


class Preemption:
    """Notices SIGTERM while the block lasts; several processes agree on the step at which they stop."""

    def __enter__(self) -> "Preemption":
        self._noticed, self._asked, self._before = False, 0, None
        # With several processes, jax.distributed listens; one that is called off the main thread may not.
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._notice)
        return self

    def __exit__(self, *error: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def reached(self) -> bool:
        """Whether it is time to stop; every process must ask equally often."""
        self._asked += 1
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(self._asked)
        return self._noticed

    def _notice(self, signum: int, frame: object) -> None:
        self._noticed = True
