"""Score files, and the pooling of frame scores into clip scores. This module does not need JAX.

A score file is one HDF5 file with all that pooling, metrics and reports need. Poolings are pure functions, under the
names that tables and flags use.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Float, Float64, Int64

from avh_shards import ClipMeta, UserError
from avh_shards.clip import FRAME_RATE, offsets, read_clip_table, video_of, write_clip_table
from avh_shards.format import check_format, describing
from avh_shards.hdf5 import HDF5File, open_hdf5, writing_hdf5
from avh_shards.paths import AnyPath

SCORE_FORMAT = "avh-scores"
SCORE_VERSION = 1
SHOWN_ATTRIBUTES = ("method", "dataset", "weights", "deviation")  # attributes that tables and pages show
TOP_SHARE = 10  # topk averages one frame in ten
POOLED_FRAMES = 1 << 22  # frames pooled at a time, which bounds the memory; each clip is pooled in one piece
PERCENTILE = 97.0  # FACTOR takes the 3rd percentile of truth scores (Reiss et al. 2023); fakeness is the mirror image


# --- pooling ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class PackedScores:
    """Concatenated frame scores of N clips, with lazily computed values that several poolings share."""

    frame: Float64[np.ndarray, " F"]  # higher = more fake
    offset: Int64[np.ndarray, "borders"]  # clip n is frame[offset[n]:offset[n+1]], at least one frame

    def __post_init__(self):
        assert (self.lengths > 0).all(), "a clip without frames has no score"

    @property
    def starts(self) -> Int64[np.ndarray, " N"]:
        """First frame of each clip."""
        return self.offset[:-1]

    @functools.cached_property
    def lengths(self) -> Int64[np.ndarray, " N"]:
        """Number of frames of each clip."""
        return np.diff(self.offset)

    @functools.cached_property
    def peak(self) -> Float64[np.ndarray, " N"]:
        """Highest score of each clip."""
        return np.maximum.reduceat(self.frame, self.starts)

    @functools.cached_property
    def exponential(self) -> Float64[np.ndarray, " F"]:
        """exp(score - peak of the clip), which is at most 1 and so never overflows."""
        return np.exp(self.frame - np.repeat(self.peak, self.lengths))

    @functools.cached_property
    def exponential_sum(self) -> Float64[np.ndarray, " N"]:
        """Sum of `exponential` over each clip, which is at least 1."""
        return self.sum(self.exponential)

    @functools.cached_property
    def ranked(self) -> Float64[np.ndarray, " F"]:
        """Frame scores, sorted in rising order within each clip."""
        ranked = self.frame.copy()
        for start, stop in itertools.pairwise(self.offset.tolist()):
            ranked[start:stop].sort()  # a single sort by clip and score takes ten times as long
        return ranked

    def sum(self, values: Float64[np.ndarray, " F"]) -> Float64[np.ndarray, " N"]:
        """Returns the sum over the frames of each clip."""
        return np.add.reduceat(values, self.starts)


Rule = Callable[[PackedScores], Float64[np.ndarray, " N"]]
Pooling = Callable[..., Float64[np.ndarray, " N"] | np.float64]


def mean(scores: PackedScores) -> Float64[np.ndarray, " N"]:
    """Returns the mean over the frames, which suits clips that are fake throughout."""
    return scores.sum(scores.frame) / scores.lengths


def maximum(scores: PackedScores) -> Float64[np.ndarray, " N"]:
    """Returns the highest frame score."""
    return scores.peak


def logsumexp(scores: PackedScores) -> Float64[np.ndarray, " N"]:
    """Returns the log-sum-exp, a soft maximum that AVH-Align uses; it grows with the logarithm of the length."""
    return scores.peak + np.log(scores.exponential_sum)


def logmeanexp(scores: PackedScores) -> Float64[np.ndarray, " N"]:
    """Returns the log of the mean exponential, a soft maximum that does not grow with the length."""
    return logsumexp(scores) - np.log(scores.lengths)


def topk(scores: PackedScores) -> Float64[np.ndarray, " N"]:
    """Returns the mean of the highest tenth of the frames (rounded down, at least one): suits partly fake clips."""
    count = np.maximum(scores.lengths // TOP_SHARE, 1)
    borders = np.column_stack([scores.starts, scores.offset[1:] - count])  # each clip: lower, highest frames
    return np.add.reduceat(scores.ranked, borders.ravel())[1::2] / count


def percentile(scores: PackedScores) -> Float64[np.ndarray, " N"]:
    """Returns the 97th percentile, linear between frames: close to the maximum, but robust to a few outliers."""
    place = PERCENTILE / 100 * (scores.lengths - 1)
    below = place.astype(np.int64)
    above = np.minimum(below + 1, scores.lengths - 1)
    low, high = (scores.ranked[scores.starts + frame] for frame in (below, above))
    return low + (place - below) * (high - low)


def softmax(scores: PackedScores) -> Float64[np.ndarray, " N"]:
    """Returns the softmax-weighted mean: the plain mean if scores are equal, near the maximum if one dominates."""
    return scores.sum(scores.exponential * scores.frame) / scores.exponential_sum


RULES: dict[str, Rule] = {
    "logsumexp": logsumexp,
    "mean": mean,
    "max": maximum,
    "logmeanexp": logmeanexp,
    "topk": topk,
    "percentile": percentile,
    "softmax": softmax,
}


def worst_second(frame: Float[np.ndarray, " T"]) -> tuple[float, float]:
    """Returns start and end, in seconds, of the 25 frames with the highest mean score (all frames if fewer)."""
    window = min(FRAME_RATE, len(frame))
    sums = np.convolve(frame, np.ones(window), mode="valid")
    start = int(sums.argmax())
    return start / FRAME_RATE, (start + window) / FRAME_RATE


def pool_all(
    frame: Float[np.ndarray, " F"],
    offset: Int64[np.ndarray, "borders"] | None = None,
    names: Iterable[str] = tuple(RULES),
) -> dict[str, Float64[np.ndarray, " N"] | np.float64]:
    """Pools the same scores in several ways; what poolings share is computed only once.

    Args:
      frame: frame scores of all clips, concatenated, finite.
      offset: clip n is frame[offset[n]:offset[n+1]], at least one frame; None = all frames are one clip.
      names: names of poolings in RULES.

    Returns:
      Clip scores, float64 [N], by name of the pooling; single numbers if `offset` is None.
    """
    names = list(names)
    borders = np.array([0, len(frame)]) if offset is None else offset
    cuts = np.unique(np.searchsorted(borders, np.arange(POOLED_FRAMES, len(frame), POOLED_FRAMES)))
    cuts = [0, *cuts[cuts < len(borders) - 1].tolist(), len(borders) - 1]
    parts = []
    for first, last in itertools.pairwise(cuts):
        part = frame[borders[first] : borders[last]].astype(np.float64)
        scores = PackedScores(part, borders[first : last + 1] - borders[first])
        parts.append([RULES[name](scores) for name in names])
    pooled = {name: np.concatenate(clips) for name, clips in zip(names, zip(*parts, strict=True), strict=True)}
    return {name: clips[0] if offset is None else clips for name, clips in pooled.items()}


def pool(
    name: str, frame: Float[np.ndarray, " F"], offset: Int64[np.ndarray, "borders"] | None = None
) -> Float64[np.ndarray, " N"] | np.float64:
    """Pools scores in one way: returns the clip scores that `pool_all` returns under this name; arguments as there."""
    return pool_all(frame, offset, [name])[name]


POOLINGS: dict[str, Pooling] = {name: functools.partial(pool, name) for name in RULES}
"""Poolings by name: `POOLINGS[name](frame, offset)` returns float64 [N], or a number without `offset`: `pool_all`."""


def nine_digits(score: Float[np.ndarray, " N"]) -> list[float]:
    """Returns single-precision scores for JSON: as few digits as suffice to read the same ones again."""
    return [float(f"{value:.9g}") for value in score.tolist()]


# --- score files -----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class ScoreTable:
    """Scores of N clips with F frames in total, by one method; higher = more fake."""

    method: str
    clips: tuple[ClipMeta, ...]
    offset: Int64[np.ndarray, "borders"]  # clip n is scores offset[n]:offset[n+1]
    frame: Float[np.ndarray, " F"] | None  # float32; None = a method without frame scores
    clip: Float[np.ndarray, " N"]  # float32; the method's own clip scores
    attributes: dict[str, object]  # weights, features, encoder, ...

    def chosen(self, rows: Int64[np.ndarray, " M"]) -> "ScoreTable":
        """Returns the table of some of the clips."""
        frame = None
        if self.frame is not None:
            frame = np.concatenate([self.frame[self.offset[row] : self.offset[row + 1]] for row in rows])
        clips = tuple(self.clips[row] for row in rows)
        border = offsets(np.diff(self.offset)[rows])
        return ScoreTable(self.method, clips, border, frame, self.clip[rows], self.attributes)

    def by_video(self, subject: str) -> "ScoreTable":
        """Returns the table of whole videos, where clips are faces: the frames of all faces of a video, pooled again.

        Args:
          subject: names the table in messages.

        Raises:
          UserError: there are no clips, or no frame scores.
        """
        if not self.clips:
            raise UserError(f"{subject}: holds no clips; score features of faces")
        if self.frame is None or "pooling" not in self.attributes:
            reason = "has no frame scores, of which those of a video's faces are pooled"
            raise UserError(f"{subject}: {reason}; use a method that scores frames")
        rows: dict[str, list[int]] = {}
        for row, clip in enumerate(self.clips):
            rows.setdefault(video_of(clip.path), []).append(row)
        faces = self.chosen(np.concatenate([*rows.values()]))
        assert faces.frame is not None
        border = faces.offset[offsets([len(found) for found in rows.values()])]
        score = np.asarray(pool(str(self.attributes["pooling"]), faces.frame, border), np.float32)
        known = {path: self.clips[found[0]] for path, found in rows.items()}
        clips = tuple(ClipMeta(path, c.label, c.category, c.split, c.identity) for path, c in known.items())
        return ScoreTable(self.method, clips, border, faces.frame, score, self.attributes)


def write_scores(table: ScoreTable, path: AnyPath) -> None:
    """Writes a score file, whole or not at all.

    Args:
      table: the scores.
      path: the file, local or a URL.

    Raises:
      UserError: the file cannot be written: no space, no permission, ...
    """
    write_parts([table], table.method, table.clips, table.offset, table.attributes, path)


def write_parts(
    parts: Iterable[ScoreTable],
    method: str,
    clips: Sequence[ClipMeta],
    offset: Int64[np.ndarray, "borders"],
    attributes: Mapping[str, object],
    path: AnyPath,
) -> None:
    """Writes a score file as `write_scores` does, from tables of consecutive clips, which need not fit into memory.

    Args:
      parts: the scores; together they have all clips, in order.
      method: name of the method.
      clips: the clips.
      offset: borders of the clips.
      attributes: attributes of the file.
      path: the file, local or a URL.

    Raises:
      UserError: the file cannot be written: no space, no permission, ...
    """
    with writing_hdf5(path) as file:
        fixed = {"format": SCORE_FORMAT, "version": SCORE_VERSION, "frame_rate": FRAME_RATE, "method": method}
        file.attrs.update({**attributes, **fixed})
        write_clip_table(file, clips, offset)
        clip = np.empty(len(clips), np.float32)
        first = 0
        for part in parts:
            last = first + len(part.clip)
            clip[first:last] = part.clip
            if part.frame is not None:
                score = file.require_dataset("score", (int(offset[-1]),), np.float32)
                score[offset[first] : offset[last]] = part.frame
            first = last
        assert first == len(clips)
        file["clips/score"] = clip


def open_scores(path: AnyPath) -> ScoreTable:
    """Reads a score file.

    Args:
      path: the file, local or a URL.

    Raises:
      UserError: the file is missing, truncated or inconsistent, or has a different format or version.
    """
    file = _open(path)
    with describing(path):
        clips, offset = read_clip_table(file)
        clip = _read_column(file, "clips/score", len(clips))
        frame = _read_column(file, "score", int(offset[-1])) if "score" in file else None
        attributes: dict[str, object] = {**file.attributes}
        _check_attributes(attributes)
        return ScoreTable(str(attributes["method"]), clips, offset, frame, clip, attributes)


def score_attributes(path: AnyPath) -> Mapping[str, object]:
    """Reads the attributes of a score file; arguments and errors as for `open_scores`."""
    return _open(path).attributes


def _open(path: AnyPath) -> HDF5File:
    file = open_hdf5(path)
    check_format(file, SCORE_FORMAT, SCORE_VERSION)
    return file


def _read_column(file: HDF5File, name: str, count: int) -> Float[np.ndarray, " count"]:
    """Reads scores as float32; raises a ValueError or TypeError if the array holds anything else."""
    scores = file.array(name).astype(np.float32, casting="safe", copy=False)
    if scores.shape != (count,) or not np.isfinite(scores).all():
        raise ValueError(f"/{name} does not fit its clips, or is not finite; score the features again")
    return scores


def _check_attributes(attributes: dict[str, object]) -> None:
    """Raises a ValueError if an attribute is not what evaluation expects."""
    if wrong := [name for name in SHOWN_ATTRIBUTES if not str(attributes.get(name, "")).isprintable()]:
        raise ValueError(f"its attribute {wrong[0]} holds control characters")
    if (pooling := attributes.get("pooling")) not in (None, *POOLINGS):
        raise ValueError(f"its pooling {pooling!r} is not one of {', '.join(POOLINGS)}")
    threshold = attributes.get("threshold", 0.0)
    if not isinstance(threshold, int | float) or not math.isfinite(threshold):
        raise ValueError(f"its threshold {threshold!r} is not a finite number")
