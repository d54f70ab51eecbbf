"""Fuzzing with many damaged inputs, each in a process that may hang, crash or run out of memory without harm.

Each input is generated from its number, which reproduces a failure. An attempt passes if the reader returns or raises a
UserError of one line; anything else (another exception, a crash, a hang) is a failure.
"""

import collections
import concurrent.futures
import multiprocessing
import resource
from collections.abc import Callable

import pebble

from avh_shards import UserError

SECONDS = 60  # per attempt; more is a hang even on a busy machine
MEMORY = 2**30  # bytes that an attempt may allocate beyond what its process holds at the start


def campaign(attempt: Callable[[int], None], tries: int, processes: int = 1) -> collections.Counter:
    """Attempts inputs 0, 1, ..., tries - 1.

    Args:
      attempt: generates the input of a number and reads it; a module-level function, which processes can import.
      tries: number of inputs.
      processes: number of parallel processes.

    Returns:
      The numbers of inputs that were "read" and "refused".

    Raises:
      AssertionError: some attempts failed; the message names their numbers and errors.
    """
    outcomes: collections.Counter = collections.Counter()
    failures: list[str] = []
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([attempt.__module__])
    with pebble.ProcessPool(processes, context=context) as pool:
        results = pool.map(_Attempt(attempt), range(tries), timeout=SECONDS).result()
        for number in range(tries):
            try:
                outcomes[next(results)] += 1
            except concurrent.futures.TimeoutError:
                failures.append(f"{number}: hangs")
            except pebble.ProcessExpired as error:
                failures.append(f"{number}: crashes with exit status {error.exitcode}")
            except Exception as error:  # any other exception, of which a user would see the traceback
                failures.append(f"{number}: {type(error).__name__}: {error}")
    assert not failures, f"{len(failures)} of {tries}:\n" + "\n".join(failures[:20])
    return outcomes


class _Attempt:
    """An attempt with limited memory, which returns its outcome."""

    def __init__(self, attempt: Callable[[int], None]):
        self.attempt = attempt

    def __call__(self, number: int) -> str:
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        with open("/proc/self/statm") as file:  # noqa: PTH123 (a kernel file)
            held = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, hard))
        try:
            self.attempt(number)
        except UserError as error:
            if "\n" in str(error):
                raise ValueError(f"a message of several lines: {error!r}") from error
            return "refused"
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        return "read"
