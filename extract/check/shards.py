"""Integrity check of a shard set, and comparison with official npz features of the same clips."""

import contextlib
import dataclasses
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from avh_shards import ClipMeta, UserError, open_shard
from avh_shards.clip import FRAME_RATE, listed_path
from avh_shards.clip_list import inside
from avh_shards.errors import ClipError
from avh_shards.format import OPTIONAL, SHARD_PATTERN, Shard, caveat, list_shards
from avh_shards.paths import FilePath, as_path, local_file
from avh_shards.text import one_line, printable
from extract.check.clip_list import count_clips
from extract.convert.npz import read_npz
from extract.store.shard import check_features, failure_log, read_failures
from extract.store.shard_set import CLIP_LIST, SET_ATTRIBUTES, read_set

AGREEMENT = 0.999  # least cosine between feature vectors of a frame that count as equal
LENGTH_TOLERANCE = 0.02  # largest difference between their lengths, relative to the official one


@dataclasses.dataclass
class Report:
    """Findings about a shard set."""

    clips: list[ClipMeta] = dataclasses.field(default_factory=list)
    frames: int = 0
    failures: int = 0
    shards: int = 0
    attributes: dict[str, object] = dataclasses.field(default_factory=dict)
    contents: dict[str, str] = dataclasses.field(default_factory=dict)  # name -> dtype
    damage: list[str] = dataclasses.field(default_factory=list)

    def text(self) -> str:
        """Returns the report as text, with the verdict last."""
        lines = [f"{name:<16} {one_line(self.attributes[name])}" for name in SET_ATTRIBUTES if name in self.attributes]
        lines.append(f"{'contents':<16} {', '.join(f'{name} ({dtype})' for name, dtype in self.contents.items())}")
        lines.append(f"{'frames':<16} {self.frames:,} ({self.frames / FRAME_RATE:,.1f} s)")
        lines.append(f"{'clips':<16} {len(self.clips):,} in {self.shards:,} shards, {self.failures:,} failed")
        lines += _faces(self.clips)
        lines += ["", count_clips(self.clips), "", *filter(None, [caveat(self.attributes)])]
        return "\n".join([*lines, *(map(one_line, self.damage) if self.damage else ["all shards are complete"])])


def inspect(path: str) -> Report:
    """Reads and checks every array of a shard or of a whole set.

    Checks each shard's format, offsets and counts, and that all features are finite. For a set, also checks that no
    clip is in two shards, that all shards have the same settings, and that shards and failure logs cover the clip list.

    Args:
      path: a shard, or the folder or URL of a set.

    Returns:
      The contents of the set, and a sentence for each damage found.

    Raises:
      UserError: no shard exists.
    """
    report = Report()
    owners: dict[str, str] = {}
    for file in list_shards(path):
        try:
            with local_file(file) as copy:
                _inspect_shard(_open(copy, file), file.name, report, owners)
            report.failures += len(read_failures(failure_log(file)))
        except UserError as error:
            report.damage.append(str(error))
    if not as_path(path).is_file():
        report.damage += _check_set(as_path(path), report.clips)
    return report


def _faces(clips: Sequence[ClipMeta]) -> list[str]:
    """Returns the report's line about faces, if any clip records them."""
    known = [clip for clip in clips if not math.isnan(clip.face_share)]
    if not known:
        return []
    lowest = min(known, key=lambda clip: clip.face_share)
    several = sum(clip.several_faces > 0 for clip in clips)
    least = f"{lowest.face_share:.0%}".replace("%", " %")
    return [f"{'faces':<16} {several:,} clips with several; fewest frames with one: {least}, in {lowest.path!r}"]


def _open(copy: Path, file: FilePath) -> Shard:
    """Opens the local copy of a shard; errors name the shard instead of the copy."""
    try:
        return open_shard(copy)
    except UserError as error:
        raise UserError(str(error).replace(str(copy), str(file))) from error


def _inspect_shard(shard: Shard, name: str, report: Report, owners: dict[str, str]) -> None:
    report.shards += 1
    report.frames += len(shard.visual)
    report.clips += shard.clips
    attributes = {key: shard.attributes.get(key) for key in SET_ATTRIBUTES}
    arrays = {key: getattr(shard, key) for key in ("visual", "audio", *OPTIONAL)}
    contents = {key: str(getattr(a, "value", a).dtype) for key, a in arrays.items() if a is not None}
    report.attributes = report.attributes or attributes
    report.contents = report.contents or contents
    found = {**attributes, "contents": contents}
    first = {**report.attributes, "contents": report.contents}
    if differing := [key for key in found if found[key] != first[key]]:
        what = f"{differing[0]} is {found[differing[0]]}, not {first[differing[0]]}"
        report.damage.append(f"{name}: differs from the shards before it: {what}")
    for clip in shard.clips:
        if (other := owners.setdefault(clip.path, name)) != name:
            report.damage.append(f"{name}: holds {clip.path!r}, which is in {other} too")
    for key in ("visual", "audio", "multimodal"):
        for clip, start, stop in zip(shard.clips, shard.offset, shard.offset[1:], strict=False):
            if arrays[key] is not None and not np.isfinite(arrays[key][start:stop]).all():
                report.damage.append(f"{name}: the {key} features of {clip.path!r} hold NaN or infinity")


def _check_set(directory: FilePath, clips: Sequence[ClipMeta]) -> Iterator[str]:
    """Yields the differences between the shards of a set and its clip list.

    Args:
      directory: folder of the set.
      clips: every clip in a shard.
    """
    if not (directory / CLIP_LIST).exists():
        yield f"{directory}: no {CLIP_LIST}, so missing clips cannot be detected"
        return
    try:
        parts = read_set(directory)
    except UserError as error:
        yield f"{directory}: its clip list cannot be compared ({error})"
        return
    paths = {clip.path for listed in parts.values() for clip in listed}
    stored = {listed_path(clip.path, paths): clip.label for clip in clips}
    found = {path.name for path in directory.glob(SHARD_PATTERN)}
    for name, listed in parts.items():
        yield from _check_part(directory / name, listed, stored) if name in found else [f"{name}: is missing"]
    yield from (f"{name}: is beyond the last shard of the clip list" for name in sorted(found - parts.keys()))
    if strange := sorted(stored.keys() - paths):
        yield f"{len(strange)} clips are not in the clip list, the first {strange[0]!r}"


def _check_part(shard: FilePath, listed: Sequence[ClipMeta], stored: dict[str, int]) -> Iterator[str]:
    """Yields the differences between one shard with its failure log and its part of the clip list."""
    failures = []
    with contextlib.suppress(UserError):  # already reported
        failures = [failure.path for failure in read_failures(failure_log(shard))]
    for clip in listed:
        if (clip.path in stored) + failures.count(clip.path) != 1:
            where = "both in a shard and" if clip.path in stored else "neither in a shard nor"
            yield f"{shard.name}: {clip.path!r} of the clip list is {where} in its failure log"
        elif stored.get(clip.path, clip.label) != clip.label:
            yield f"{shard.name}: {clip.path!r} has a different label in the clip list"
    if strange := sorted(set(failures) - {clip.path for clip in listed}):
        yield f"{shard.name}: its failure log names {strange[0]!r}, which is not in its part of the clip list"


class ClipParity(NamedTuple):
    """Comparison of a clip's features in a set with those in the official file."""

    path: str
    frames: int
    official_frames: int
    difference: float = np.nan  # largest absolute difference over both modalities and the common frames
    cosine: float = np.nan  # least cosine between the two feature vectors of a frame
    scale: float = np.nan  # largest difference between their lengths, relative to the official one
    error: str = ""

    @property
    def agrees(self) -> bool:
        """Whether both have the same features up to rounding."""
        same_frames = self.frames == self.official_frames
        return not self.error and same_frames and self.cosine >= AGREEMENT and self.scale <= LENGTH_TOLERANCE


def compare(path: str, features: str | os.PathLike) -> list[ClipParity]:
    """Compares each clip of a set with its official npz file (`a/b.npz` for `a/b.mp4`).

    Args:
      path: a shard, or the folder or URL of a set.
      features: folder of the npz files.

    Raises:
      UserError: a shard is missing or damaged, or the folder of npz files does not exist.
    """
    if not Path(features).is_dir():
        raise UserError(f"{features}: no such folder; name the folder of the npz features")
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
    difference = np.abs(a - b).max()
    cosine = _ratio((a * b).sum(axis=2), lengths[0] * lengths[1]).min()
    scale = np.abs(_ratio(*lengths) - 1).max()
    return ClipParity(path, ours.shape[1], theirs.shape[1], float(difference), float(cosine), float(scale))


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Returns part / whole, and 1 where both are 0, because two zero vectors are equal."""
    zero = whole == 0
    return np.where(zero, part == 0, part / np.where(zero, 1, whole))


def format_comparison(compared: list[ClipParity]) -> str:
    """Returns a table with one line per clip, and the verdict."""
    lines = [f"{'clip':<40} {'frames':>7} {'official':>8} {'difference':>11} {'cosine':>9}"]
    for c in compared:
        numbers = one_line(c.error) or f"{c.frames:>7} {c.official_frames:>8} {c.difference:>11.2e} {c.cosine:>9.6f}"
        lines.append(f"{printable(c.path):<40} {numbers}")
    agreeing = sum(c.agrees for c in compared)
    rule = f"same frames; on every one cosine >= {AGREEMENT}, lengths within {LENGTH_TOLERANCE:.0%}"
    return "\n".join([*lines, f"{agreeing} of {len(compared)} clips agree ({rule})"])
