"""Weights and features -> scores.

`score_shards` and `load_detector` are imported when they are first asked for: reading score files and pooling needs no
jax.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jax_avh.inference.detector import load_detector
    from jax_avh.inference.score import score_shards

__all__ = ["load_detector", "score_shards"]


def __getattr__(name: str) -> object:
    if name == "load_detector":
        from jax_avh.inference.detector import load_detector

        return load_detector
    if name == "score_shards":
        from jax_avh.inference.score import score_shards

        return score_shards
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
