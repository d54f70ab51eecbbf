"""HDF5 input that tolerates damaged and hostile files, and output that survives a full disk.

On damaged files, the HDF5 library has been seen to loop for ever, crash and exhaust memory. A child process therefore
opens each file first, with limits on CPU time and memory, and reports only where its arrays are; this process then
reads them by byte range. The child receives the file's bytes from this process, so it opens nothing itself, needs no
locks and works for every file system known to fsspec. It requests bytes on its standard output, receives them on its
standard input, and answers with JSON: the root attributes, the position of each array and text of variable length, or
an error message.
"""

import atexit
import contextlib
import dataclasses
import io
import json
import math
import os
import resource
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, cast

import h5py
import numpy as np

from avh_shards.errors import UserError
from avh_shards.paths import AnyPath, FilePath, as_path, atomic_write
from avh_shards.text import one_line

REQUEST = struct.Struct("<Q")  # to the child: a file's size in bytes
ANSWER = struct.Struct("<BQQ")  # (READ, first byte, number of bytes) or (DONE, bytes of JSON that follow, 0)
READ, DONE = 1, 2
SECONDS, BYTES_PER_SECOND = 3, 2**24  # CPU seconds allowed for any file, and bytes that allow one more
MEMORY_LIMIT = 2**30  # bytes
BLOCK = 2**16  # bytes per request of the child
MOST_OBJECTS = 1000  # per file; the files of this project have about twenty


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
        return extent.view(read_bytes(self.path, *extent.span(0, extent.shape[0]))).reshape(extent.shape)

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
        with path.open("rb") as file:
            size = file.seek(0, io.SEEK_END)
            found = _examine(file, size)
    except UserError:
        raise
    except Exception as error:  # each fsspec file system raises its own errors
        raise UserError(f"{path}: cannot be read: {one_line(error)}") from error
    if "error" in found:
        raise UserError(f"{path}: not a valid avh-align HDF5 file ({one_line(found['error'])})")
    extents = {
        name: Extent(start, np.dtype(dtype), tuple(shape)) for name, (start, dtype, shape) in found["extents"].items()
    }
    return HDF5File(path, size, found["attributes"], extents, found["texts"])


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


class _Examiner:
    """The child process, which serves all files of this process and is replaced if a file terminates it."""

    def __init__(self):
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        atexit.register(self.close)

    def examine(self, file: IO[bytes] | io.IOBase, size: int) -> dict:
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
    command = [sys.executable, "-c", "from avh_shards.hdf5 import serve; serve()"]
    # A separate session keeps Ctrl-C away from the child: this process handles it.
    return subprocess.Popen(  # noqa: S603
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, start_new_session=True
    )


def _exactly(file: IO[bytes] | io.IOBase, count: int) -> bytes:
    """Reads exactly `count` bytes.

    Raises:
      EOFError: the file has fewer bytes left.
    """
    data = file.read(count)
    if len(data) != count:
        raise EOFError
    return data


class _Remote(io.RawIOBase):
    """The child's view of a file, whose bytes the parent process sends."""

    def __init__(self, size: int, requests: IO[bytes], replies: IO[bytes]):
        self.size = size
        self.position = 0
        self.requests = requests
        self.replies = replies

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.size}[whence]
        return self.position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        count = max(0, min(len(view), self.size - self.position))
        self.requests.write(ANSWER.pack(READ, self.position, count))
        self.requests.flush()
        data = self.replies.read(count)
        if len(data) != count:  # the parent is gone
            sys.exit()
        view[:count] = data
        self.position += count
        return count


def _contents(file: h5py.File, size: int) -> dict:
    """Describes a file of `size` bytes; runs in the child.

    Returns:
      `attributes` of the root; `extents`: [start, dtype, shape] by name; `texts`: lists by name.

    Raises:
      ValueError: the file holds something that this project does not write; damage also raises h5py's own errors.
    """
    found: dict = {"attributes": _attributes(file), "extents": {}, "texts": {}}
    waiting: list[tuple[str, h5py.Group]] = [("", file)]
    seen = 0
    while waiting:
        prefix, group = waiting.pop()
        for name in group:
            seen += 1
            if seen > MOST_OBJECTS:
                raise ValueError(f"it holds more than {MOST_OBJECTS} objects")
            if not isinstance(group.get(name, getlink=True), h5py.HardLink | h5py.SoftLink):
                raise ValueError(f"/{prefix}{name} is a link into another file")
            item = group[name]
            if isinstance(item, h5py.Group):
                waiting.append((f"{prefix}{name}/", item))
            elif isinstance(item, h5py.Dataset):
                _describe(f"{prefix}{name}", item, size, found)
    return found


def _attributes(file: h5py.File) -> dict:
    values = {}
    for name in file.attrs:
        stored = file.attrs.get_id(name)
        text = h5py.check_string_dtype(stored.dtype)
        if stored.shape != () or (text is None and stored.dtype.kind not in "biuf"):
            raise ValueError(f"its attribute {name!r} is not a single number or text")
        value = file.attrs[name]
        if isinstance(value, h5py.Empty):
            raise ValueError(f"its attribute {name!r} is empty")
        values[name] = value.decode() if isinstance(value, bytes) else value if text else value.item()
    return values


def _describe(name: str, item: h5py.Dataset, size: int, found: dict) -> None:
    """Adds a dataset to `found`; raises a ValueError if its bytes are not contiguous in the file."""
    if item.external or item.is_virtual:
        raise ValueError(f"/{name} is stored in other files")
    if item.shape is None:
        raise ValueError(f"/{name} is empty")
    text = h5py.check_string_dtype(item.dtype)
    if item.dtype.kind not in "biufS" and (text is None or len(item.shape) != 1):
        raise ValueError(f"/{name} holds neither numbers nor text")
    start = item.id.get_offset()
    length = math.prod(item.shape)
    if start is None and length:
        raise ValueError(f"/{name} is stored in chunks, or compressed")
    stored = length * item.id.get_type().get_size()
    if (start or 0) + stored > size:
        raise ValueError(f"/{name} promises {stored} bytes, but the file is shorter")
    if item.dtype.kind == "O":
        found["texts"][name] = cast(np.ndarray, item.asstr()[:]).tolist()
    else:
        found["extents"][name] = [start or 0, item.dtype.str, item.shape]


def _limit(kind: int, most: int) -> None:
    """Limits a resource of this process, or keeps its hard limit if that is lower."""
    _, hard = resource.getrlimit(kind)
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(kind, (most, most))


def serve() -> None:
    """Runs the child process: answers requests until standard input ends."""
    replies = sys.stdin.buffer
    requests = sys.stdout.buffer
    _limit(resource.RLIMIT_DATA, MEMORY_LIMIT)
    _limit(resource.RLIMIT_CORE, 0)
    while len(request := replies.read(REQUEST.size)) == REQUEST.size:
        (size,) = REQUEST.unpack(request)
        # ITIMER_PROF counts CPU time, not waiting, and its signal ends the process in whatever loop it is.
        signal.setitimer(signal.ITIMER_PROF, SECONDS + size / BYTES_PER_SECOND)
        try:
            # A request costs two switches of processes, and the metadata of a file is mostly in a few blocks.
            remote = io.BufferedReader(_Remote(size, requests, replies), BLOCK)
            with h5py.File(remote, "r") as file:
                found = _contents(file, size)
            answer = json.dumps(found)
        except Exception as error:  # h5py raises many types
            answer = json.dumps({"error": str(error.args[0] if isinstance(error, KeyError) else error)})
        signal.setitimer(signal.ITIMER_PROF, 0)
        data = answer.encode()
        requests.write(ANSWER.pack(DONE, len(data), 0) + data)
        requests.flush()


_examine = _Examiner().examine
