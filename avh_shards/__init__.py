"""Shard format and file handling that the PyTorch side and the JAX side share.

Builds on numpy, h5py, fsspec, universal_pathlib, jaxtyping and safetensors, and needs neither torch nor jax.
"""

from avh_shards.clip import ClipMeta
from avh_shards.clip_list import read_clip_list
from avh_shards.errors import UserError
from avh_shards.format import open_shard
from avh_shards.silence import leading_silence

__all__ = [
    "ClipMeta",
    "UserError",
    "leading_silence",
    "open_shard",
    "read_clip_list",
]
