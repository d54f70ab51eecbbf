"""HDF5 input that tolerates damaged and hostile files, and output that survives a full disk.

On damaged files, the HDF5 library has been seen to loop for ever, crash and exhaust memory. A child process
(hdf5_child.py) therefore opens each file first, with limits on CPU time and memory, and reports only where its arrays
are; this process then reads them by byte range. The child receives the file's bytes from this process, so it opens
nothing itself, needs no locks and works for every file system known to fsspec.
"""

import atexit
import contextlib
import dataclasses
import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, cast

import h5py
import numpy as np

from avh_shards.errors import UserError
from avh_shards.hdf5_child import ANSWER, DONE, READ, REQUEST
from avh_shards.paths import AnyPath, FilePath, as_path, atomic_write
from avh_shards.text import one_line

CHILD = Path(__file__).with_name("hdf5_child.py")


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
    command = [sys.executable, "-P", str(CHILD)]  # -P: its neighbours are not imported by name
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


_examine = _Examiner().examine
