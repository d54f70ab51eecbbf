"""Child process of hdf5.py: opens HDF5 files for it, under limits on CPU time and memory, and describes their contents.

It runs as a script, not as a module of its package, so that it loads little but h5py: every command that reads a shard
waits for it. It requests the file's bytes on its standard output, receives them on its standard input, and answers with
JSON: the root attributes, the position of each array and text of variable length, or an error message.
"""

import io
import json
import math
import resource
import signal
import struct
import sys
from typing import IO, Any, cast

import h5py
import numpy as np

REQUEST = struct.Struct("<Q")  # to the child: a file's size in bytes
ANSWER = struct.Struct("<BQQ")  # (READ, first byte, number of bytes) or (DONE, bytes of JSON that follow, 0)
READ, DONE = 1, 2
SECONDS, BYTES_PER_SECOND = 3, 2**24  # CPU seconds allowed for any file, and bytes that allow one more
MEMORY_LIMIT = 2**30  # bytes
BLOCK = 2**16  # bytes per request of the child
MOST_OBJECTS = 1000  # per file; the files of this project have about twenty


class _Remote(io.RawIOBase):
    """A file whose bytes the parent process sends."""

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
    """Describes a file of `size` bytes.

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
    """Answers requests until standard input ends."""
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


if __name__ == "__main__":
    serve()
