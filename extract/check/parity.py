"""A set of shards beside official npz features of the same clips."""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from avh_shards import UserError, open_shard
from avh_shards.clip_list import inside
from avh_shards.errors import ClipError
from avh_shards.format import list_shards
from avh_shards.paths import local_file
from avh_shards.text import one_line, printable
from extract.convert.npz import read_npz
from extract.store.shard import check_features

AGREEMENT = 0.999  # cosine of two feature vectors of one frame that count as the same
LENGTH_TOLERANCE = 0.02  # largest difference of their lengths, in parts of the official one


class ClipParity(NamedTuple):
    """A clip's features here and in the official files."""

    path: str
    frames: int
    official_frames: int
    difference: float = np.nan  # largest, over both modalities and the frames that both have
    cosine: float = np.nan  # least, of two feature vectors of one frame
    scale: float = np.nan  # largest difference of their lengths, in parts of the official one
    error: str = ""

    @property
    def agrees(self) -> bool:
        """Whether both are the same features, up to rounding."""
        same_frames = self.frames == self.official_frames
        return not self.error and same_frames and self.cosine >= AGREEMENT and self.scale <= LENGTH_TOLERANCE


def compare(path: str, features: str | os.PathLike) -> list[ClipParity]:
    """Compares each clip of a set with its official npz file (`a/b.mp4` is `a/b.npz`).

    Raises:
      UserError: a shard is damaged, or there is no folder of npz files.
    """
    if not Path(features).is_dir():
        raise UserError(f"{features}: no such folder of npz features")
    compared = []
    for file in list_shards(path):
        with local_file(file) as copy:
            shard = open_shard(copy)
            for clip, start, stop in zip(shard.clips, shard.offset, shard.offset[1:], strict=False):
                ours = np.stack([shard.visual[start:stop], shard.audio[start:stop]]).astype(np.float64)
                compared.append(_compare_clip(clip.path, ours, features))
    return compared


def _compare_clip(path: str, ours: Float[np.ndarray, "2 T D"], features: str | os.PathLike) -> ClipParity:
    try:
        official, _ = read_npz(inside(features, path, ".npz"), ours.shape[2])
        reason = check_features(official, ours.shape[2], "float64")
    except ClipError as error:
        reason = str(error)
    if reason:
        return ClipParity(path, ours.shape[1], 0, error=reason)
    theirs = np.stack([official.visual, official.audio]).astype(np.float64)
    length = min(ours.shape[1], theirs.shape[1])
    a, b = ours[:, :length], theirs[:, :length]
    lengths = np.linalg.norm(a, axis=2), np.linalg.norm(b, axis=2)
    cosine = _ratio((a * b).sum(axis=2), lengths[0] * lengths[1])
    scale = np.abs(_ratio(*lengths) - 1)
    return ClipParity(
        path,
        ours.shape[1],
        theirs.shape[1],
        difference=float(np.abs(a - b).max()),
        cosine=float(cosine.min()),
        scale=float(scale.max()),
    )


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Part / whole; where both are 0, 1: two zero vectors are the same."""
    zero = whole == 0
    return np.where(zero, part == 0, part / np.where(zero, 1, whole))


def format_comparison(compared: list[ClipParity]) -> str:
    """A line a clip, and the verdict."""
    lines = [f"{'clip':<40} {'frames':>7} {'official':>8} {'difference':>11} {'cosine':>9}"]
    for c in compared:
        numbers = one_line(c.error) or f"{c.frames:>7} {c.official_frames:>8} {c.difference:>11.2e} {c.cosine:>9.6f}"
        lines.append(f"{printable(c.path):<40} {numbers}")
    agreeing = sum(c.agrees for c in compared)
    rule = f"same frames; on every one cosine >= {AGREEMENT}, lengths within {LENGTH_TOLERANCE:.0%}"
    return "\n".join([*lines, f"{agreeing} of {len(compared)} clips agree ({rule})"])
