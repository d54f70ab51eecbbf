"""Fuzzing: many damaged inputs, each tried in a process that may hang, crash or run out of memory without harm.

An input is made from its number, so a failure is repeated by its number. A try passes if the reader returns, or says
in an UserError (one sentence) what is wrong; anything else (another exception, a crash, a hang) is a failure.
"""

import collections
import concurrent.futures
import multiprocessing
import resource
from collections.abc import Callable

import pebble

from avh_shards import UserError

SECONDS = 60  # that one try may take: a hang, even on a busy machine
MEMORY = 2**30  # bytes that a try may add to what its process holds when it starts


def campaign(attempt: Callable[[int], None], tries: int, processes: int = 1) -> collections.Counter:
    """Tries inputs 0, 1, ..., tries - 1.

    Args:
      attempt: makes the input of a number and reads it; a module-level function, so that processes can import it.
      tries: how many.
      processes: that try side by side.

    Returns:
      How many were "read" and how many "refused".

    Raises:
      AssertionError: some failed; it names their numbers and what happened.
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
            except Exception as error:  # whatever a library raised: a user would have seen a traceback
                failures.append(f"{number}: {type(error).__name__}: {error}")
    assert not failures, f"{len(failures)} of {tries}:\n" + "\n".join(failures[:20])
    return outcomes


class _Attempt:
    """An attempt under a limit of memory; what it came to."""

    def __init__(self, attempt: Callable[[int], None]):
        self.attempt = attempt

    def __call__(self, number: int) -> str:
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        with open("/proc/self/statm") as file:  # noqa: PTH123 (a device of the kernel)
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
