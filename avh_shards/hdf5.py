"""HDF5 input that tolerates damaged and hostile files, and output that survives a full disk.

On damaged files, the HDF5 library has been seen to loop for ever, crash and exhaust memory. A child process
(hdf5_child.py) therefore opens each file first, with limits on CPU time and memory, and reports only where its arrays
are; this process then reads them by byte range. The child receives the file's bytes from this process, so it opens
nothing itself, needs no locks and works for every file system known to fsspec.
"""

import atexit
import collections
import contextlib
import dataclasses
import functools
import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, cast

import h5py
import numpy as np
from upath import UPath

from avh_shards.errors import UserError
from avh_shards.hdf5_child import ANSWER, DONE, READ, REQUEST
from avh_shards.paths import REQUESTS, AnyPath, FilePath, as_path, atomic_write
from avh_shards.text import one_line

CHILD = Path(__file__).with_name("hdf5_child.py")
REQUEST_BYTES = 2**25  # most bytes of a request for several spans: enough to make its latency negligible
GAP_BYTES = 2**18  # most bytes between two spans of one request: reading them takes less time than another request
BLOCK = 2**18  # bytes of a remote file that are read at a time while it is opened
ROUNDS = 16  # most times that a remote file is examined before all needed blocks are there; ours need two to six

Span = tuple[FilePath, int, int]  # bytes start:stop of a file


@dataclasses.dataclass(frozen=True)
class Extent:
    """Position, dtype and shape of an array in its file."""

    start: int  # byte
    dtype: np.dtype
    shape: tuple[int, ...]

    def span(self, first: int, last: int) -> tuple[int, int]:
        """Returns the byte range of rows `first` to `last` (exclusive): its first byte and the byte after its last."""
        row = self.dtype.itemsize * int(np.prod(self.shape[1:]))
        return self.start + first * row, self.start + last * row

    def view(self, data: np.ndarray) -> np.ndarray:
        """Returns the bytes of some rows (uint8) as an array of these rows."""
        return data.view(self.dtype).reshape(-1, *self.shape[1:])

    def within(self, file: np.ndarray) -> np.ndarray:
        """Returns the array as a view of the bytes of its whole file (uint8)."""
        first, last = self.span(0, self.shape[0])
        return self.view(file[first:last])


@dataclasses.dataclass(frozen=True)
class HDF5File:
    """The contents of a file whose arrays have not been read yet, but are known to be within the file."""

    path: FilePath
    size: int  # bytes
    attributes: Mapping[str, bool | int | float | str]  # root attributes
    extents: dict[str, Extent]  # arrays of numbers or of text of fixed length, by name ("clips/offset")
    texts: dict[str, list[str]]  # arrays of text of variable length
    blocks: "_Blocks | None" = None  # of a remote file

    def __contains__(self, name: str) -> bool:
        return name in self.extents or name in self.texts

    def array(self, name: str) -> np.ndarray:
        """Reads an array of numbers, or of text of fixed length as bytes.

        Raises:
          ValueError: the file has no such array, or the array has no dimensions.
          UserError: the file cannot be read.
        """
        extent = self.extents.get(name)
        if extent is None or not extent.shape:
            raise ValueError(f"/{name} holds text, not numbers" if name in self.texts else f"no array /{name}")
        span = extent.span(0, extent.shape[0])
        held = self.blocks.held(*span) if self.blocks else None
        data = read_bytes(self.path, *span) if held is None else np.frombuffer(held, np.uint8)
        return extent.view(data).reshape(extent.shape)

    def text(self, name: str) -> list[str]:
        """Reads a column of text.

        Raises:
          ValueError: the file has no such column, or the text is not UTF-8.
          UserError: the file cannot be read.
        """
        if name in self.texts:
            return self.texts[name]
        column = self.array(name)
        if column.dtype.kind != "S" or column.ndim != 1:
            raise ValueError(f"/{name} is not a column of text")
        return np.char.decode(column, "utf-8").tolist()


def open_hdf5(path: AnyPath) -> HDF5File:
    """Reads the attributes and the array positions of an HDF5 file, local or at a URL.

    Raises:
      UserError: the file is missing, damaged or shorter than its arrays, refers to other files, or holds arrays or
        attributes of kinds that this project does not write.
    """
    path = as_path(path)
    try:
        if not path.is_file():  # reading a pipe would never end
            raise UserError(f"{path}: {'not a file' if path.exists() else 'no such file'}")
        if isinstance(path, Path):
            blocks = None
            with path.open("rb") as file:
                size = file.seek(0, io.SEEK_END)
                found = _examine(file, size)
        else:
            size = cast(int, path.fs.size(path.path))
            blocks = _Blocks(path, size)
            found = _examine_remote(path, blocks)
    except UserError:
        raise
    except Exception as error:  # each fsspec file system raises its own errors
        raise UserError(f"{path}: cannot be read: {one_line(error)}") from error
    if "error" in found:
        raise UserError(f"{path}: not a valid avh-align HDF5 file ({one_line(found['error'])})")
    extents = {
        name: Extent(start, np.dtype(dtype), tuple(shape)) for name, (start, dtype, shape) in found["extents"].items()
    }
    return HDF5File(path, size, found["attributes"], extents, found["texts"], blocks)


def read_bytes(path: FilePath, start: int, stop: int) -> np.ndarray:
    """Reads bytes `start` to `stop` (exclusive) of a file as uint8, without keeping the file open.

    Raises:
      UserError: the file has become shorter, or its file system fails.
    """
    try:
        if isinstance(path, Path):
            data = np.fromfile(path, np.uint8, stop - start, offset=start)
        else:
            content = path.fs.cat_file(path.path, start=start, end=stop) if stop > start else b""
            data = np.frombuffer(cast(bytes, content), np.uint8)
    except Exception as error:  # each fsspec file system raises its own errors
        raise UserError(f"{path}: cannot be read: {one_line(error)}") from error
    if len(data) != stop - start:
        raise UserError(f"{path}: has become shorter since it was opened; create it again")
    return data


def read_spans(spans: Sequence[Span]) -> Iterator[np.ndarray]:
    """Yields the bytes of spans of files that are all local or all remote, as uint8, as `read_bytes` does.

    From remote files, successive spans that touch, or nearly so, are read by one request, and many requests are
    waited for at the same time. A local span is read when it is due.

    Raises:
      UserError: a file has become shorter, or its file system fails.
    """
    if not spans or isinstance(spans[0][0], Path):
        yield from (read_bytes(*span) for span in spans)
        return
    requests = collections.deque(_joined(spans))
    waiting: collections.deque[tuple[list[Span], Future[np.ndarray]]] = collections.deque()
    try:
        while requests or waiting:
            while requests and len(waiting) < REQUESTS:
                joined = requests.popleft()
                path, start, _ = joined[0]
                waiting.append((joined, _readers().submit(read_bytes, path, start, joined[-1][2])))
            joined, reading = waiting.popleft()
            data = reading.result()
            first = joined[0][1]
            yield from (data[start - first : stop - first] for _, start, stop in joined)
    finally:
        for _, reading in waiting:
            reading.cancel()


@functools.cache
def _readers() -> ThreadPoolExecutor:
    """Returns the threads that read remote files; all readers of this process share them, which bounds the requests."""
    return ThreadPoolExecutor(REQUESTS, "read")


def _joined(spans: Sequence[Span]) -> Iterator[list[Span]]:
    """Yields the successive spans that one request reads."""
    joined: list[Span] = []
    for path, start, stop in spans:
        if joined:
            before, first, _ = joined[0]
            gap = start - joined[-1][2]
            if path != before or not 0 <= gap <= GAP_BYTES or stop - first > REQUEST_BYTES:
                yield joined
                joined = []
        joined.append((path, start, stop))
    yield joined


@contextlib.contextmanager
def writing_hdf5(path: AnyPath) -> Iterator[h5py.File]:
    """Yields an open HDF5 file that is renamed or uploaded to `path` only if the block succeeds.

    Raises:
      UserError: the disk is full, or the file cannot be written for another reason.
    """
    with atomic_write(path) as temporary:
        target = _Target(temporary, "w+")
        try:
            with target, h5py.File(target, "w") as file:
                yield file
        except Exception:  # after a failed write, the library may fail to read the data back
            if target.error is None:
                raise
        if target.error is not None:
            raise target.error


def write_text(file: h5py.File, name: str, values: Sequence[str]) -> None:
    """Writes a column of fixed-length text, whose bytes are contiguous; text of variable length would use a heap."""
    encoded = [value.encode() for value in values]
    dtype = h5py.string_dtype("utf-8", max(1, *map(len, encoded)) if encoded else 1)
    file.create_dataset(name, data=np.array(encoded, dtype=dtype))


class _Target(io.FileIO):
    """A file that records its first failed write and lets HDF5 continue: the library would crash on an error."""

    error: OSError | None = None

    def write(self, data: Any) -> int:  # h5py passes its own memory view
        rest = memoryview(data).cast("B")
        try:
            while len(rest) and self.error is None:
                rest = rest[super().write(rest) :]
        except OSError as error:
            self.error = error
        return len(memoryview(data).cast("B"))


class _Blocks:
    """The blocks of a remote file that have been read. Others read as zeros, and are noted as missing."""

    def __init__(self, path: UPath, size: int):
        self._path = path
        self.size = size
        self._blocks: dict[int, bytes] = {}
        self._position = 0
        self.missing = {0, max(size - 1, 0) // BLOCK}  # where most metadata is

    def seek(self, position: int) -> None:
        """Moves to a byte."""
        self._position = position

    def read(self, count: int) -> bytes:
        """Reads bytes, with zeros for those of missing blocks."""
        start = self._position
        self._position = min(start + count, self.size)
        numbers = range(start // BLOCK, -(-self._position // BLOCK))
        self.missing |= {number for number in numbers if number not in self._blocks}
        data = b"".join(self._blocks.get(number, bytes(BLOCK)) for number in numbers)
        first = numbers.start * BLOCK
        return data[start - first : self._position - first]

    def held(self, start: int, stop: int) -> bytes | None:
        """Returns the bytes start:stop if they have been read."""
        if any(number not in self._blocks for number in range(start // BLOCK, -(-stop // BLOCK))):
            return None
        self.seek(start)
        return self.read(stop - start)

    def fetch(self) -> None:
        """Reads the missing blocks."""
        wanted = sorted(self.missing)
        spans = [(self._path, n * BLOCK, min((n + 1) * BLOCK, self.size)) for n in wanted]
        self._blocks |= zip(wanted, map(np.ndarray.tobytes, read_spans(spans)), strict=True)
        self.missing.clear()


class _Examiner:
    """The child process, which serves all files of this process and is replaced if a file terminates it."""

    def __init__(self):
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        atexit.register(self.close)

    def examine(self, file: IO[bytes] | io.IOBase | _Blocks, size: int) -> dict:
        """Returns the contents of a file, as `_contents` describes them, or {"error": message}."""
        with self._lock:
            process = self._process = self._process or _start()
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                process.stdin.write(REQUEST.pack(size))
                process.stdin.flush()
                while (answer := ANSWER.unpack(_exactly(process.stdout, ANSWER.size)))[0] == READ:
                    file.seek(answer[1])
                    process.stdin.write(_exactly(file, answer[2]))
                    process.stdin.flush()
                assert answer[0] == DONE
                return json.loads(_exactly(process.stdout, answer[1]))
            except (EOFError, BrokenPipeError):
                self.close()
                return {"error": "the HDF5 library crashes or does not terminate on it"}
            except BaseException:  # Ctrl-C, a failing file system: the child would wait for bytes that never come
                self.close()
                raise

    def close(self) -> None:
        """Terminates the child."""
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(BrokenPipeError), process:  # closes its pipes and waits for it
                process.kill()


def _start() -> subprocess.Popen[bytes]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-P", str(CHILD)]  # -P: its neighbours are not imported by name
    # A separate session keeps Ctrl-C away from the child: this process handles it.
    return subprocess.Popen(  # noqa: S603
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, start_new_session=True
    )


def _exactly(file: IO[bytes] | io.IOBase | _Blocks, count: int) -> bytes:
    """Reads exactly `count` bytes.

    Raises:
      EOFError: the file has fewer bytes left.
    """
    data = file.read(count)
    if len(data) != count:
        raise EOFError
    return data


_examine = _Examiner().examine


def _examine_remote(path: UPath, blocks: _Blocks) -> dict:
    """Returns what `_examine` returns, but reads the file while no other file waits for the child.

    The child examines the blocks that are there, and again once those that it missed have been read.
    """
    for _ in range(ROUNDS):
        blocks.fetch()
        found = _examine(blocks, blocks.size)
        if not blocks.missing:
            return found
    with path.open("rb", block_size=BLOCK) as file:
        return _examine(file, blocks.size)
