"""The shard format and its files: all that the PyTorch side and the JAX side share.

It needs numpy, h5py and fsspec alone.
"""

from extract.schema.clip import (
    FAKE,
    FRAME_RATE,
    REAL,
    SAMPLE_RATE,
    SAMPLES_PER_FRAME,
    TEXT_COLUMNS,
    UNKNOWN,
    ClipMeta,
    offsets,
    read_clip_table,
    write_clip_table,
)
from extract.schema.files import InputError, check_output, local_file, place, reachable, whole_file
from extract.schema.shard import (
    FORMAT,
    OPTIONAL,
    RAGGED,
    RANDOM_WEIGHTS,
    SHARD_PATTERN,
    VERSION,
    Ragged,
    Shard,
    caveat,
    check_format,
    list_shards,
    open_shard,
    read_shard_table,
    reading,
)

__all__ = [
    "FAKE",
    "FORMAT",
    "FRAME_RATE",
    "OPTIONAL",
    "RAGGED",
    "RANDOM_WEIGHTS",
    "REAL",
    "SAMPLES_PER_FRAME",
    "SAMPLE_RATE",
    "SHARD_PATTERN",
    "TEXT_COLUMNS",
    "UNKNOWN",
    "VERSION",
    "ClipMeta",
    "InputError",
    "Ragged",
    "Shard",
    "caveat",
    "check_format",
    "check_output",
    "list_shards",
    "local_file",
    "offsets",
    "open_shard",
    "place",
    "reachable",
    "read_clip_table",
    "read_shard_table",
    "reading",
    "whole_file",
    "write_clip_table",
]
