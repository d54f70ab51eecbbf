"""Locks: one run at a time writes to a folder or to a file.

A lock is held on a hidden file, which the run removes when it ends. The kernel releases the lock of a process that
dies, so what a killed run leaves behind keeps nobody out.
"""

import contextlib
import fcntl
import functools
import hashlib
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from avh_shards.errors import UserError
from avh_shards.paths import STEM, AnyPath, FilePath, as_path, real_path, unwritable
from avh_shards.text import one_line

ATTEMPTS, PAUSE = 3, 0.1  # of taking a lock, and seconds between them: the run before may be about to end
HOLDER = 200  # characters that are read of a lock's file


@contextlib.contextmanager
def locked(path: AnyPath, lock: AnyPath | None = None) -> Iterator[None]:
    """Keeps other runs from writing to a place while the block lasts.

    Folders that are missing are made, and removed again if the block leaves them empty. URLs are not locked; on a file
    system without locks the block runs without, and a line on stderr says so.

    Args:
      path: a folder or a file.
      lock: file to hold the lock on; by default `.lock` in the folder `path`.

    Raises:
      UserError: another run holds the lock, or there can be no file.
    """
    path = as_path(path)
    lock = path / ".lock" if lock is None else as_path(lock)
    if not isinstance(lock, Path):
        yield
        return
    missing = [folder for folder in lock.parents if not folder.exists()]
    try:
        with _take(path, lock):
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)
    finally:
        for folder in missing:
            with contextlib.suppress(OSError):  # not empty: what this run was for
                folder.rmdir()


def file_lock(path: AnyPath) -> AnyPath:
    """The file whose lock guards a single output file, however its path is spelt: hidden, next to it."""
    path = real_path(as_path(path))
    digest = hashlib.sha256(path.name.encode(errors="surrogateescape")).hexdigest()[:8]
    return path.with_name(f".{path.name[:STEM]}.{digest}.lock")


def _take(path: FilePath, lock: Path) -> TextIO:
    """The lock's file, open and, where that is possible, locked."""
    try:
        for attempt in range(ATTEMPTS):
            time.sleep(PAUSE if attempt else 0)
            lock.parent.mkdir(parents=True, exist_ok=True)
            file = lock.open("a+", encoding="utf-8", errors="replace")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                holder = one_line(file.read(HOLDER)) or "an unknown process"
            except OSError as error:  # ENOLCK, ENOTSUP, ENOSYS, ...: file systems differ
                _warn(error.strerror)
                return file
            else:
                # The run before may have removed the file between our opening and our locking it.
                with contextlib.suppress(FileNotFoundError):
                    if os.path.samestat(os.fstat(file.fileno()), lock.stat()):
                        file.truncate(0)
                        with contextlib.suppress(OSError):  # on a full disk the lock is nameless
                            os.write(file.fileno(), f"process {os.getpid()} on {socket.gethostname()}\n".encode())
                        return file
                holder = "a run that has just ended"
            file.close()
    except OSError as error:
        raise unwritable(path, error) from error
    raise UserError(f"{path}: another run is writing there ({holder}); wait for it to end, or choose another output")


@functools.cache
def _warn(reason: str) -> None:
    """Warns once in a process."""
    print(f"warning: no file locks there ({reason}): start no second run with the same output", file=sys.stderr)
