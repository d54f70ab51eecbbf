"""Files and folders, local or at a URL: paths, atomic writes, locks, local copies and hashes.

Only one run at a time writes to a folder or a file. It holds a lock on a hidden file and removes the file when it ends.
The kernel releases the lock of a process that dies, so the leftovers of a killed run block nobody.
"""

import contextlib
import errno
import fcntl
import functools
import hashlib
import json
import os
import re
import socket
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TextIO, TypeVar

from upath import UPath

from avh_shards.errors import UserError
from avh_shards.text import one_line, warn

REQUESTS = 32  # most requests for parts of files at a URL that a process waits for at the same time
HEAD = 512  # bytes at a file's start in which `check_output` looks for its kind
COPIES = 16  # files at a URL that are copied at the same time
VERSION_KEYS = ("size", "ETag", "etag", "mtime", "last_modified", "created")  # of file systems, for a file's version
DRAFT = ".part"  # suffix of temporary files
STEM = 32  # characters of a file's name kept in the name of its temporary, which must not become too long
FULL = (errno.ENOSPC, errno.EDQUOT)
UNWRITABLE = (*FULL, errno.EROFS, errno.EACCES, errno.EIO, errno.EFBIG)  # write errors of open files lack a file name
ATTEMPTS, PAUSE = 3, 0.1  # attempts to take a lock, and seconds between them: the previous run may be about to end
HOLDER = 200  # characters read from a lock file

# First bytes of files, also used as patterns: a command replaces a file only if it is of the kind that it writes.
HDF5 = b"\x89HDF\r\n\x1a\n"
ZIP = b"PK\x03\x04"
PNG = b"\x89PNG\r\n\x1a\n"
GZIP = b"\x1f\x8b"
HTML = rb"<!doctype html>"
SAFETENSORS = rb".{8}\{"  # length of the JSON header, then the header

FilePath = Path | UPath
AnyPath = str | os.PathLike | UPath
Output = TypeVar("Output", bound=AnyPath)


def as_path(path: AnyPath) -> FilePath:
    """Returns a local path with "~" expanded, or a path on a file system known to fsspec ("s3://bucket/folder").

    Raises:
      UserError: the path is empty or names the home of an unknown user; or the URL's file system is unknown, or its
        package is not installed.
    """
    if not str(path):
        raise UserError("an empty path was given; name a file or a folder")  # pathlib would use the current folder
    try:
        if "://" not in str(path):
            return Path(str(path)).expanduser()
        remote = UPath(path)
        if isinstance(options := getattr(remote.fs, "config_kwargs", None), dict):  # s3fs, by default 10 connections
            options.setdefault("max_pool_connections", REQUESTS)
        return remote
    except RuntimeError as error:
        raise UserError(f"{path}: no user of that name has a home; write ./{path} for a file of that name") from error
    except (ImportError, ValueError) as error:
        raise UserError(f"{path}: cannot be reached: {one_line(error)}") from error


def reachable(path: AnyPath) -> FilePath:
    """Returns a path as `as_path` does, after checking that its file system responds.

    Raises:
      UserError: the file system is unknown or cannot be reached: no network, no permission, ...
    """
    reached = as_path(path)
    try:
        reached.exists()
    except Exception as error:  # each fsspec file system raises its own errors
        raise UserError(f"{path}: cannot be reached: {one_line(error)}") from error
    return reached


def check_output(path: AnyPath, kind: bytes = b"") -> None:
    """Rejects an output path that cannot be written or must not be overwritten, before any work and side effect.

    Args:
      path: path of the file to write.
      kind: regular expression for the first bytes of such files; an empty file may always be replaced.

    Raises:
      UserError: the path is a folder or a device, or is too long; its folder cannot be created or written to; or a file
        of another kind exists there.
    """
    path = as_path(path)
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{path}: is a folder or a device; name a file to write")
        if isinstance(path, Path):
            there = next(folder for folder in path.absolute().parents if folder.exists())
            if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
                raise UserError(f"{path}: cannot be written: {there} is not a writable folder; name another")
            if any(len(os.fsencode(part)) > os.pathconf(there, "PC_NAME_MAX") for part in path.parts):
                raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        if kind and path.exists():
            with path.open("rb") as file:
                head = file.read(HEAD)
            if head and not re.match(kind, head, re.DOTALL | re.IGNORECASE):
                raise UserError(f"{path}: exists, and this command did not write it; name another file")
    except OSError as error:
        raise unwritable(path, error) from error


def refuse_inputs(outputs: Iterable[AnyPath], inputs: Iterable[AnyPath]) -> None:
    """Rejects outputs that would overwrite an input, however its path is spelt or linked.

    URLs are compared as text.

    Raises:
      UserError: an output is an input; the message names the first.
    """
    read = {_identity(path) for path in inputs}
    for path in outputs:
        if _identity(path) in read:
            raise UserError(f"{path}: is an input of this command; name another file to write")


def check_outputs(outputs: Mapping[Output, bytes], inputs: Iterable[AnyPath] = ()) -> None:
    """Rejects outputs that are inputs, cannot be written or would replace something else, before any work is done.

    Args:
      outputs: files to write, each with the pattern of its first bytes (`kind` of `check_output`).
      inputs: files that the command reads.

    Raises:
      UserError: an output is unsuitable; the message names the first.
    """
    refuse_inputs(outputs, inputs)
    for path, kind in outputs.items():
        check_output(path, kind)


def unwritable(path: AnyPath, error: OSError) -> UserError:
    """Returns the UserError for a file or folder that cannot be written, with the reason and a remedy."""
    reason = one_line(error.strerror or error)
    advice = "free some space, or name another place" if error.errno in FULL else "name another place"
    return UserError(f"{path}: cannot be written: {reason[:1].lower()}{reason[1:]}; {advice}")


@contextlib.contextmanager
def atomic_write(path: AnyPath) -> Iterator[Path]:
    """Yields a temporary local path, whose file is renamed or uploaded to `path` only if the block succeeds.

    Several processes may write the same file: the last one to finish wins, and every reader sees a complete file.

    Raises:
      UserError: the file cannot be written: no space, no permission, ...
    """
    with atomic_writes([path]) as (temporary,):
        yield temporary


@contextlib.contextmanager
def atomic_writes(paths: Sequence[AnyPath], stale: Iterable[FilePath] = ()) -> Iterator[list[Path]]:
    """Yields temporary local paths for files that belong together, which are renamed if the block succeeds.

    All new files are complete before the old ones are removed, and all old ones are removed before the first new one
    appears, so a process killed at any moment leaves old or new files, never a mixture. The first path is removed first
    and appears last: if that file exists, so do all others.

    Args:
      paths: paths of the files; a single file replaces its predecessor in one step.
      stale: other files of the old set, which are removed without replacement.

    Raises:
      UserError: a file cannot be written: no space, no permission, ...
    """
    for path in paths:
        check_output(path)
    targets = [real_path(as_path(path)) for path in paths]
    with contextlib.ExitStack() as stack:
        drafts: list[Path] = []
        try:
            drafts += [stack.enter_context(_draft(path)) for path in targets]
            yield drafts
            for draft in drafts:
                with draft.open("rb") as file:
                    os.fsync(file.fileno())
            if len(targets) > 1:
                for path in (*targets, *stale):
                    path.unlink(missing_ok=True)
            for draft, path in reversed([*zip(drafts, targets, strict=True)]):
                if isinstance(path, Path):
                    draft.replace(path)
                else:
                    _upload(draft, path)
        except OSError as error:
            if not _of_writing(error, targets):
                raise
            raise unwritable(paths[0] if len(paths) == 1 else as_path(paths[0]).parent, error) from error


def append(path: FilePath, data: bytes) -> None:
    """Appends bytes to a file, all or none; they are on disk when this returns.

    Raises:
      UserError: the file cannot be written: no space, no permission, ...
    """
    if not isinstance(path, Path):  # objects of a store are replaced whole
        with atomic_write(path) as temporary:
            temporary.write_bytes((path.read_bytes() if path.exists() else b"") + data)
        return
    try:
        path.parent.mkdir(exist_ok=True)
        with path.open("ab", buffering=0) as file:  # a buffer would be written again on closing
            size, rest = file.tell(), memoryview(data)
            try:
                while rest:
                    rest = rest[file.write(rest) :]
                os.fsync(file.fileno())
            except OSError:
                os.truncate(path, size)
                raise
    except OSError as error:
        raise unwritable(path, error) from error


@contextlib.contextmanager
def locked(path: AnyPath, lock: AnyPath | None = None) -> Iterator[None]:
    """Keeps other runs from writing to a folder or a file during the block.

    Missing folders are created, and removed again if the block leaves them empty. URLs are not locked; on a file system
    without locks the block runs unlocked, with a warning on standard error.

    Args:
      path: a folder or a file.
      lock: file to lock; by default `.lock` in the folder `path`.

    Raises:
      UserError: another run holds the lock, or the lock file cannot be created.
    """
    path = as_path(path)
    lock = path / ".lock" if lock is None else as_path(lock)
    if not isinstance(lock, Path):
        yield
        return
    missing = [folder for folder in lock.parents if not folder.exists()]
    try:
        with _take_lock(path, lock):
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)
    finally:
        for folder in missing:
            with contextlib.suppress(OSError):  # not empty: it holds the results
                folder.rmdir()


def file_lock(path: AnyPath) -> AnyPath:
    """Returns the hidden lock file next to a single output file; every spelling of its path has the same one."""
    path = real_path(as_path(path))
    digest = hashlib.sha256(path.name.encode(errors="surrogateescape")).hexdigest()[:8]
    return path.with_name(f".{path.name[:STEM]}.{digest}.lock")


def remove_leftovers(folder: Path, start: str) -> None:
    """Removes temporaries of killed processes whose names begin with `start`; those in use are locked and stay."""
    for left in folder.iterdir():
        if left.name.startswith(start) and left.name.endswith(DRAFT):
            with contextlib.suppress(OSError), left.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # on NFS, an exclusive lock needs a writable file
                left.unlink()


@contextlib.contextmanager
def local_file(path: AnyPath) -> Iterator[Path]:
    """Yields the path itself if it is local, else a local copy that exists during the block.

    Raises:
      UserError: the remote file does not exist.
    """
    path = as_path(path)
    if isinstance(path, Path):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        try:
            path.fs.get_file(path.path, str(copy))
        except FileNotFoundError:
            raise UserError(f"{path}: no such file") from None
        yield copy


def cached_files(paths: Sequence[UPath], folder: AnyPath) -> list[Path]:
    """Returns whole local copies of files at URLs, and makes those that a folder lacks.

    A copy is used again if the file's size and version are still the same. Processes that share the folder copy each
    file once: one copies, the others wait.

    Args:
      paths: the files.
      folder: a local folder, created if absent. Nothing is removed from it.

    Raises:
      UserError: the folder is not local or cannot be written, or a file cannot be read.
    """
    folder = as_path(folder)
    if not isinstance(folder, Path):
        raise UserError(f"{folder}: copies of files are kept in a local folder; name one")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise unwritable(folder, error) from error
    try:
        with contextlib.suppress(OSError):  # a file system without locks, where several processes may copy a file
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        with ThreadPoolExecutor(COPIES) as threads:
            return list(threads.map(functools.partial(_cached_file, folder), paths))
    finally:
        os.close(descriptor)


def _cached_file(folder: Path, path: UPath) -> Path:
    try:
        info = path.fs.info(path.path)
        version = [str(path), *(str(info.get(key)) for key in VERSION_KEYS)]
        copy = folder / f"{hashlib.sha256(json.dumps(version).encode()).hexdigest()[:16]}-{path.name}"
        if not copy.exists() or copy.stat().st_size != info["size"]:
            with atomic_write(copy) as temporary:
                path.fs.get_file(path.path, str(temporary))
                if temporary.stat().st_size != info["size"]:
                    raise UserError(f"{path}: changed while it was copied; start again")
    except UserError:
        raise
    except Exception as error:  # each fsspec file system raises its own errors
        raise UserError(f"{path}: cannot be read: {one_line(error)}") from error
    return copy


def file_sha256(path: Path) -> str:
    """Returns the SHA-256 of a local file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def _draft(path: FilePath) -> Iterator[Path]:
    """Yields a temporary path in a file's folder, locked during the block.

    A killed process leaves its temporary behind, but not the lock: the next process to write the file removes it.
    """
    if not isinstance(path, Path):
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder) / path.name
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    stem = f".{path.name[:STEM]}."
    remove_leftovers(path.parent, stem)
    while True:
        temporary = path.with_name(f"{stem}{uuid.uuid4().hex[:8]}{DRAFT}")
        with temporary.open("xb") as file:
            with contextlib.suppress(OSError):  # a file system without locks, where leftovers stay
                fcntl.flock(file, fcntl.LOCK_EX)
            if not temporary.exists():  # another process took it for a leftover before it was locked
                continue
            try:
                yield temporary
            finally:
                temporary.unlink(missing_ok=True)
            return


def _upload(draft: Path, path: UPath) -> None:
    try:
        path.fs.put_file(str(draft), path.path)
    except OSError:
        raise
    except Exception as error:  # each fsspec file system raises its own errors
        reason = one_line(error)
        raise UserError(f"{path}: cannot be written: {reason}; once it can, the same command resumes") from error


def _of_writing(error: OSError, targets: Sequence[FilePath]) -> bool:
    """Returns whether an error comes from writing the targets, and not from reading their contents elsewhere."""
    if error.filename is None:
        return error.errno in UNWRITABLE
    name = os.fsdecode(error.filename)
    return name.endswith(DRAFT) or any(Path(name) in (path, *path.parents) for path in targets)


def real_path(path: FilePath) -> FilePath:
    """Resolves the links of a local path: replacing a link would leave the file itself unchanged."""
    return Path(os.path.realpath(path)) if isinstance(path, Path) else path


def _identity(path: AnyPath) -> object:
    """Returns a value that is equal for all paths of one local file; for a URL, its text."""
    if "://" in str(path):
        return str(path)
    local = os.path.expanduser(str(path))  # noqa: PTH111 (pathlib's raises an error where nobody has that home)
    try:
        status = os.stat(local)  # noqa: PTH116
        return status.st_dev, status.st_ino
    except OSError:
        return os.path.realpath(local)


def _take_lock(path: FilePath, lock: Path) -> TextIO:
    """Returns the lock file, open and, if the file system supports it, locked."""
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
                _warn_of_no_locks(error.strerror)
                return file
            else:
                # The previous run may have removed the file after we opened it and before we locked it.
                with contextlib.suppress(FileNotFoundError):
                    if os.path.samestat(os.fstat(file.fileno()), lock.stat()):
                        file.truncate(0)
                        with contextlib.suppress(OSError):  # on a full disk the lock does not name its holder
                            os.write(file.fileno(), f"process {os.getpid()} on {socket.gethostname()}\n".encode())
                        return file
                holder = "a run that has just ended"
            file.close()
    except OSError as error:
        raise unwritable(path, error) from error
    raise UserError(f"{path}: another run is writing there ({holder}); wait for it to end, or choose another output")


@functools.cache
def _warn_of_no_locks(reason: str) -> None:
    """Warns once per process that outputs are not locked."""
    warn(f"no file locks on this file system ({reason}); do not start a second run with the same output")
