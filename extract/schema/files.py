"""Files and folders, local or at a URL: places, whole files only, local copies."""

import contextlib
import os
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from upath import UPath


class InputError(ValueError):
    """The user's mistake, in one sentence: which file or flag, what is wrong, what to do."""


Place = Path | UPath
AnyPath = str | os.PathLike | UPath


def place(path: AnyPath) -> Place:
    """A local path, "~" being the user's home, or one on any file system that fsspec knows ("s3://bucket/folder").

    Raises:
      InputError: the URL's file system is unknown, or its package is not installed.
    """
    if "://" not in str(path):
        return Path(path).expanduser()
    try:
        remote = UPath(path)
        remote.fs  # noqa: B018 (imports the file system's package)
        return remote
    except (ImportError, ValueError) as error:
        raise InputError(f"{path}: cannot be reached: {error}") from error


def reachable(path: AnyPath) -> Place:
    """The place, once its file system has answered.

    Raises:
      InputError: there is no such file system, no network, no permission, ...
    """
    found = place(path)
    try:
        found.exists()
    except Exception as error:  # each file system's package has its own
        raise InputError(f"{path}: cannot be reached: {' '.join(str(error).split())}") from error
    return found


def check_output(path: AnyPath) -> None:
    """Refuses, before any work is done and without a trace, a place where no file can be.

    Raises:
      InputError: the path is a folder or a device, or its folder cannot be made or written to.
    """
    path = place(path)
    if path.exists() and not path.is_file():
        raise InputError(f"{path}: is a folder or a device; name a file to write")
    if isinstance(path, Path):
        there = next(folder for folder in path.absolute().parents if folder.exists())
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            raise InputError(f"{path}: cannot be written: {there} is no folder that takes files; name another")


def refuse_inputs(outputs: Iterable[AnyPath], inputs: Iterable[AnyPath]) -> None:
    """Refuses to write over what a command reads, however its path is spelt; URLs are compared as text.

    Raises:
      InputError: naming the first output that is an input.
    """
    read = {_spelling(path) for path in inputs}
    for path in outputs:
        if _spelling(path) in read:
            raise InputError(f"{path}: is an input of this command; name another file to write")


def check_outputs(outputs: Sequence[AnyPath], inputs: Iterable[AnyPath]) -> None:
    """Refuses, before any work is done, outputs that are inputs or that cannot be written.

    Raises:
      InputError: naming the first of them.
    """
    refuse_inputs(outputs, inputs)
    for path in outputs:
        check_output(path)


@contextlib.contextmanager
def whole_file(path: AnyPath) -> Iterator[Path]:
    """Yields a temporary local path; the file written there gets the name `path` only when the block ends well.

    Several processes may write the same file: the last one to end wins, and every reader sees a whole file.
    """
    path = place(path)
    check_output(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}") from error
    if not isinstance(path, Path):
        with tempfile.TemporaryDirectory() as folder:
            temporary = Path(folder) / path.name
            yield temporary
            path.fs.put_file(str(temporary), path.path)
        return
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def local_file(path: AnyPath) -> Iterator[Path]:
    """The file itself if it is local, else a copy for the time of the block.

    Raises:
      InputError: there is no such file.
    """
    path = place(path)
    if isinstance(path, Path):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        try:
            path.fs.get_file(path.path, str(copy))
        except FileNotFoundError:
            raise InputError(f"{path}: no such file") from None
        yield copy


def _spelling(path: AnyPath) -> str:
    """The one spelling of a local path, links followed; a URL as it is."""
    return os.path.realpath(path) if isinstance(place(path), Path) else str(path)
