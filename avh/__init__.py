"""The Python API: features, training, scores and metrics, for notebooks and programs.

Names are imported on first use: `import avh` is immediate, and the names of one side work where only that side is
installed.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from apps.detect import score_video
    from avh_shards import UserError, open_shard
    from extract.avhubert.encoder import Encoder, encode_video
    from jax_avh.configs import make_config
    from jax_avh.evaluation import POOLINGS, evaluate
    from jax_avh.inference import load_detector, score_shards
    from jax_avh.methods import METHODS
    from jax_avh.reference import read_reference
    from jax_avh.training import train

__all__ = [
    "METHODS",
    "POOLINGS",
    "Encoder",
    "UserError",
    "encode_video",
    "evaluate",
    "load_detector",
    "make_config",
    "open_shard",
    "read_reference",
    "score_shards",
    "score_video",
    "train",
]
MODULES = {  # name -> module that defines it
    "METHODS": "jax_avh.methods",
    "POOLINGS": "jax_avh.evaluation",
    "Encoder": "extract.avhubert.encoder",
    "UserError": "avh_shards",
    "encode_video": "extract.avhubert.encoder",
    "evaluate": "jax_avh.evaluation",
    "load_detector": "jax_avh.inference",
    "make_config": "jax_avh.configs",
    "open_shard": "avh_shards",
    "read_reference": "jax_avh.reference",
    "score_shards": "jax_avh.inference",
    "score_video": "apps.detect",
    "train": "jax_avh.training",
}


def __getattr__(name: str) -> Any:
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(MODULES[name]), name)


def __dir__() -> list[str]:
    return __all__
