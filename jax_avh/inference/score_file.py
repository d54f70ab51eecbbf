"""The frame-score format: one HDF5 file that holds all that pooling, metrics and reports need."""

import dataclasses
import math
import os

import numpy as np
from jaxtyping import Float, Int64

from avh_shards import ClipMeta
from avh_shards.clip import FRAME_RATE, read_clip_table, write_clip_table
from avh_shards.format import check_format, describing
from avh_shards.hdf5 import HDF5File, open_hdf5, writing_hdf5
from jax_avh.inference.pooling import POOLINGS

SCORE_FORMAT = "avh-scores"
SCORE_VERSION = 1
SHOWN_ATTRIBUTES = ("method", "dataset", "weights", "deviation")  # attributes that tables and pages show


@dataclasses.dataclass(frozen=True)
class ScoreTable:
    """Scores of N clips, F frames in all, by one method; higher = more fake."""

    method: str
    clips: tuple[ClipMeta, ...]
    offset: Int64[np.ndarray, "borders"]  # clip n is scores offset[n]:offset[n+1]
    frame: Float[np.ndarray, " F"] | None  # float32; None = a method without frame scores
    clip: Float[np.ndarray, " N"]  # float32, the method's own clip score
    attributes: dict[str, object]  # weights, features, encoder, ...


def write_scores(table: ScoreTable, path: str | os.PathLike) -> None:
    """Writes a score file, whole or not at all."""
    with writing_hdf5(path) as file:
        fixed = {"format": SCORE_FORMAT, "version": SCORE_VERSION, "frame_rate": FRAME_RATE, "method": table.method}
        file.attrs.update(table.attributes | fixed)
        write_clip_table(file, table.clips, table.offset)
        if table.frame is not None:
            file["score"] = table.frame.astype(np.float32)
        file["clips/score"] = table.clip.astype(np.float32)


def open_scores(path: str | os.PathLike) -> ScoreTable:
    """Reads a score file.

    Raises:
      UserError: the file is missing, cut short, of another format or version, or contradicts itself.
    """
    file = open_hdf5(path)
    check_format(file, SCORE_FORMAT, SCORE_VERSION)
    with describing(path):
        clips, offset = read_clip_table(file)
        clip = _read_column(file, "clips/score", len(clips))
        frame = _read_column(file, "score", int(offset[-1])) if "score" in file else None
        attributes: dict[str, object] = {**file.attributes}
        _check_attributes(attributes)
        return ScoreTable(str(attributes["method"]), clips, offset, frame, clip, attributes)


def _read_column(file: HDF5File, name: str, count: int) -> Float[np.ndarray, " count"]:
    """Reads scores, float32; raises a ValueError or TypeError if the array holds anything else."""
    scores = file.array(name).astype(np.float32, casting="safe")
    if scores.shape != (count,) or not np.isfinite(scores).all():
        raise ValueError(f"/{name} does not fit its clips, or is not finite; score the features again")
    return scores


def _check_attributes(attributes: dict[str, object]) -> None:
    """Raises a ValueError if an attribute is not what evaluation takes it for."""
    if wrong := [name for name in SHOWN_ATTRIBUTES if not str(attributes.get(name, "")).isprintable()]:
        raise ValueError(f"its attribute {wrong[0]} holds control characters")
    if (pooling := attributes.get("pooling")) not in (None, *POOLINGS):
        raise ValueError(f"its pooling {pooling!r} is none of {', '.join(POOLINGS)}")
    threshold = attributes.get("threshold", 0.0)
    if not isinstance(threshold, int | float) or not math.isfinite(threshold):
        raise ValueError(f"its threshold {threshold!r} is no finite number")
