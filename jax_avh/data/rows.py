"""Rows of a shard's arrays: by ranges of bytes, of a file or a bucket; or out of host memory."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from avh_shards import ShardTable, read_bytes

Rows = Callable[[ShardTable, str, int, int], np.ndarray]  # (shard, content, first, last)


def rows_of_file(shard: ShardTable, content: str, first: int, last: int) -> Shaped[np.ndarray, "T ..."]:
    """Reads the rows first:last of features, or of the waveforms' or crops' values.

    It holds no file open, so that any number of shards will do.

    Raises:
      UserError: the file has become shorter, or its file system fails.
    """
    extent = shard.extent(content)
    return extent.view(read_bytes(shard.path, *extent.span(first, last)))


def rows_in_memory(shards: Sequence[ShardTable]) -> Rows:
    """The same function, out of host memory: local files are memory-mapped; of others, the features are read at once.

    What else these others hold is still read by ranges of bytes: training does not touch it.
    """
    arrays = {shard.path: _in_memory(shard) for shard in shards}

    def rows(shard: ShardTable, content: str, first: int, last: int) -> Shaped[np.ndarray, "T ..."]:
        held = arrays[shard.path]
        return held[content][first:last] if content in held else rows_of_file(shard, content, first, last)

    return rows


def _in_memory(shard: ShardTable) -> dict[str, np.ndarray]:
    if not isinstance(shard.path, Path):
        return {name: rows_of_file(shard, name, 0, shard.features[name].shape[0]) for name in ("visual", "audio")}
    buffer = np.memmap(shard.path, np.uint8, "r")  # one map a file: each costs a descriptor
    return {name: shard.extent(name).within(buffer) for name in (*shard.features, *shard.ragged)}
