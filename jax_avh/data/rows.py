"""Rows of a shard's features: by ranges of bytes, of a file or a bucket; or out of host memory."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from extract.schema import InputError, ShardTable


def rows_of_file(shard: ShardTable, modality: str, first: int, last: int) -> Float[np.ndarray, "T D"]:
    """Reads the rows first:last; holds no file open, so that any number of shards will do.

    Raises:
      InputError: the file has become shorter, or its file system fails.
    """
    extent = shard.features[modality]
    start, stop = extent.span(first, last)
    data = _bytes(shard.path, start, stop)
    if len(data) != stop - start:
        raise InputError(f"{shard.path}: has become shorter since it was opened")
    return extent.view(data)


def rows_in_memory(shards: Sequence[ShardTable]) -> Callable[[ShardTable, str, int, int], np.ndarray]:
    """The same function, out of host memory: local files are memory-mapped, others read once as a whole."""
    arrays = {shard.path: _in_memory(shard) for shard in shards}
    return lambda shard, modality, first, last: arrays[shard.path][modality][first:last]


def _in_memory(shard: ShardTable) -> dict[str, np.ndarray]:
    wanted = {name: shard.features[name] for name in ("visual", "audio")}
    if not isinstance(shard.path, Path):
        return {name: rows_of_file(shard, name, 0, extent.shape[0]) for name, extent in wanted.items()}
    buffer = np.memmap(shard.path, np.uint8, "r")  # one map a file: each costs a descriptor
    return {name: extent.within(buffer) for name, extent in wanted.items()}


def _bytes(path: object, start: int, stop: int) -> np.ndarray:
    if isinstance(path, Path):
        return np.fromfile(path, np.uint8, stop - start, offset=start)
    try:
        return np.frombuffer(path.fs.cat_file(path.path, start=start, end=stop), np.uint8)
    except Exception as error:  # each file system's package has its own
        raise InputError(f"{path}: cannot be read: {' '.join(str(error).split())}") from error
