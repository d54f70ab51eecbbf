"""The frame-score format: one HDF5 file that holds all that pooling, metrics and reports need."""

import dataclasses
import os
from pathlib import Path

import h5py
import numpy as np
from jaxtyping import Float, Int64

from extract.schema import (
    FRAME_RATE,
    ClipMeta,
    InputError,
    check_format,
    read_clip_table,
    reading,
    whole_file,
    write_clip_table,
)

FORMAT = "avh-scores"
VERSION = 1


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
    with whole_file(path) as temporary, h5py.File(temporary, "w") as file:
        fixed = {"format": FORMAT, "version": VERSION, "frame_rate": FRAME_RATE, "method": table.method}
        file.attrs.update(table.attributes | fixed)
        write_clip_table(file, table.clips, table.offset)
        if table.frame is not None:
            file["score"] = table.frame.astype(np.float32)
        file["clips/score"] = table.clip.astype(np.float32)


def open_scores(path: str | os.PathLike) -> ScoreTable:
    """Reads a score file.

    Raises:
      InputError: the file is missing, cut short, of another format or version, or contradicts itself.
    """
    path = Path(path)
    with reading(path) as file:
        check_format(file, path, FORMAT, VERSION)
        clips, offset = read_clip_table(file)
        frame, clip = file["score"][:] if "score" in file else None, file["clips/score"][:]
        attributes = dict(file.attrs)
    shapes = [(clip, (len(clips),))] + ([] if frame is None else [(frame, (offset[-1],))])
    if not all(scores.shape == shape and np.isfinite(scores).all() for scores, shape in shapes):
        raise InputError(f"{path}: its scores do not fit its clips, or are not finite; score the features again")
    return ScoreTable(str(attributes.get("method")), clips, offset, frame, clip, attributes)
