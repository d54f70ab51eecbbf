"""Zip archives that anyone may have written: PyTorch files, and .npz files of arrays."""

import contextlib
import io
import math
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

MOST_DIRECTORY = 1 << 22  # bytes of an archive's list of members, enough for some 40,000 of them


@contextlib.contextmanager
def open_archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """Opens a zip archive if its list of members is of a reasonable size: ZipFile keeps all of it in memory.

    Raises:
      FileNotFoundError: the file does not exist.
      zipfile.BadZipFile: it is not an archive, or lists too many members.
    """
    with _Opening(io.FileIO(path)) as file, zipfile.ZipFile(file) as archive:
        file.opening = False
        yield archive


def read_arrays(archive: zipfile.ZipFile, names: Sequence[str], numbers: int) -> list[np.ndarray]:
    """Reads arrays from an open .npz file; each is known to be small enough before memory is allocated for it.

    Args:
      archive: the file.
      names: of the arrays, in the order in which they are returned.
      numbers: the most that an array may hold.

    Raises:
      Exception: whatever numpy, zipfile and zlib raise at a damaged file; ValueError for an array that is too large.
    """
    return [_read_array(archive, name, numbers) for name in names]


def _read_array(archive: zipfile.ZipFile, name: str, numbers: int) -> np.ndarray:
    if f"{name}.npy" not in archive.namelist():
        raise ValueError(f"it holds no array `{name}`")
    member = archive.getinfo(f"{name}.npy")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # all that numpy writes
        raise ValueError(f"`{name}` is compressed in a way that numpy does not use")
    with archive.open(member) as file:
        old = np.lib.format.read_magic(file) == (1, 0)  # a later header differs in the width of its length
        read_header = np.lib.format.read_array_header_1_0 if old else np.lib.format.read_array_header_2_0
        shape, _, dtype = read_header(file)
    if math.prod(shape) > numbers or math.prod(shape) * dtype.itemsize > numbers * np.dtype(np.float64).itemsize:
        raise ValueError(f"`{name}` is {dtype} {list(shape)}, larger than it may be")
    with archive.open(member) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


class _Opening(io.BufferedReader):
    """A file that hands out little at once while an archive is being opened: only its list of members is ever long."""

    opening = True

    def read(self, size: int | None = -1) -> bytes:
        if self.opening and (size or 0) > MOST_DIRECTORY:
            raise zipfile.BadZipFile("it lists too many members")
        return super().read(size)
