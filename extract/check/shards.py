"""What is in a set of shards, and whether it is whole; the set beside official npz features of the same clips."""

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
from avh_shards.clip import FRAME_RATE
from avh_shards.clip_list import inside
from avh_shards.errors import ClipError
from avh_shards.format import OPTIONAL, SHARD_PATTERN, Shard, caveat, list_shards
from avh_shards.paths import FilePath, as_path, local_file
from avh_shards.text import one_line, printable
from extract.check.clip_list import count_clips
from extract.convert.npz import read_npz
from extract.store.shard import check_features, failure_log, read_failures
from extract.store.shard_set import CLIP_LIST, SET_ATTRIBUTES, read_set

AGREEMENT = 0.999  # cosine of two feature vectors of one frame that count as the same
LENGTH_TOLERANCE = 0.02  # largest difference of their lengths, in parts of the official one


@dataclasses.dataclass
class Report:
    """What was seen in a set."""

    clips: list[ClipMeta] = dataclasses.field(default_factory=list)
    frames: int = 0
    failures: int = 0
    shards: int = 0
    attributes: dict[str, object] = dataclasses.field(default_factory=dict)
    contents: dict[str, str] = dataclasses.field(default_factory=dict)  # name -> dtype
    damage: list[str] = dataclasses.field(default_factory=list)

    def text(self) -> str:
        """The report in words, the verdict last."""
        lines = [f"{name:<16} {one_line(self.attributes[name])}" for name in SET_ATTRIBUTES if name in self.attributes]
        lines.append(f"{'contents':<16} {', '.join(f'{name} ({dtype})' for name, dtype in self.contents.items())}")
        lines.append(f"{'frames':<16} {self.frames:,} ({self.frames / FRAME_RATE:,.1f} s)")
        lines.append(f"{'clips':<16} {len(self.clips):,} in {self.shards:,} shards, {self.failures:,} failed")
        lines += _faces(self.clips)
        lines += ["", count_clips(self.clips), "", *filter(None, [caveat(self.attributes)])]
        return "\n".join([*lines, *(map(one_line, self.damage) if self.damage else ["every shard is whole"])])


def inspect(path: str) -> Report:
    """Reads every array of a shard, or of a set of them, and checks it.

    Checked: each shard's format, offsets and counts, that all features are finite; of a set, that no clip is in two
    shards, that all shards were made alike, and that shards and failure logs make up the clip list.

    Args:
      path: a shard, or the folder or URL of a set.

    Raises:
      UserError: there is no shard.
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
        report.damage += _check_set(as_path(path), {clip.path: clip.label for clip in report.clips})
    return report


def _faces(clips: Sequence[ClipMeta]) -> list[str]:
    """The line on faces, if they are known of any clip."""
    known = [clip for clip in clips if not math.isnan(clip.face_share)]
    if not known:
        return []
    lowest = min(known, key=lambda clip: clip.face_share)
    several = sum(clip.several_faces > 0 for clip in clips)
    least = f"{lowest.face_share:.0%}".replace("%", " %")
    return [f"{'faces':<16} {several:,} clips with several; fewest frames with one: {least}, of {lowest.path!r}"]


def _open(copy: Path, file: FilePath) -> Shard:
    """Opens a shard's local copy; what is wrong with it is said of the shard."""
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
        report.damage.append(f"{name}: was made otherwise than the shards before it: {what}")
    for clip in shard.clips:
        if (other := owners.setdefault(clip.path, name)) != name:
            report.damage.append(f"{name}: holds {clip.path!r}, which is in {other} too")
    for key in ("visual", "audio", "multimodal"):
        for clip, start, stop in zip(shard.clips, shard.offset, shard.offset[1:], strict=False):
            if arrays[key] is not None and not np.isfinite(arrays[key][start:stop]).all():
                report.damage.append(f"{name}: the {key} features of {clip.path!r} hold NaN or infinity")


def _check_set(directory: FilePath, stored: dict[str, int]) -> Iterator[str]:
    """What the shards of a set lack, or have too many of, against its clip list.

    Args:
      directory: of the set.
      stored: label by path of every clip in a shard.
    """
    if not (directory / CLIP_LIST).exists():
        yield f"{directory}: no {CLIP_LIST}, so nobody can tell whether clips are missing"
        return
    try:
        parts = read_set(directory)
    except UserError as error:
        yield f"{directory}: its clip list cannot be compared ({error})"
        return
    found = {path.name for path in directory.glob(SHARD_PATTERN)}
    for name, listed in parts.items():
        yield from _check_part(directory / name, listed, stored) if name in found else [f"{name}: is missing"]
    yield from (f"{name}: is beyond the last shard of the clip list" for name in sorted(found - parts.keys()))
    if strange := sorted(stored.keys() - {clip.path for listed in parts.values() for clip in listed}):
        yield f"{len(strange)} clips are not in the clip list, the first {strange[0]!r}"


def _check_part(shard: FilePath, listed: Sequence[ClipMeta], stored: dict[str, int]) -> Iterator[str]:
    """What is wrong with the clips and failures of one shard."""
    failures = []
    with contextlib.suppress(UserError):  # already told
        failures = [failure.path for failure in read_failures(failure_log(shard))]
    for clip in listed:
        if (clip.path in stored) + failures.count(clip.path) != 1:
            where = "both in a shard and" if clip.path in stored else "neither in a shard nor"
            yield f"{shard.name}: {clip.path!r} of the clip list is {where} in its failure log"
        elif stored.get(clip.path, clip.label) != clip.label:
            yield f"{shard.name}: {clip.path!r} has another label than in the clip list"
    if strange := sorted(set(failures) - {clip.path for clip in listed}):
        yield f"{shard.name}: its failure log names {strange[0]!r}, which is not of its part of the clip list"


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
      UserError: a shard is damaged, or the folder of npz files does not exist.
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
    difference = np.abs(a - b).max()
    cosine = _ratio((a * b).sum(axis=2), lengths[0] * lengths[1]).min()
    scale = np.abs(_ratio(*lengths) - 1).max()
    return ClipParity(path, ours.shape[1], theirs.shape[1], float(difference), float(cosine), float(scale))


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
