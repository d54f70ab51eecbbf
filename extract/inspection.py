"""What is in a set of shards, and whether it is whole."""

import contextlib
import dataclasses
from collections.abc import Iterator

import numpy as np

from extract.listing import count_clips
from extract.schema import (
    FRAME_RATE,
    OPTIONAL,
    SHARD_PATTERN,
    ClipMeta,
    InputError,
    Shard,
    caveat,
    list_shards,
    local_file,
    open_shard,
    place,
)
from extract.schema.files import Place
from extract.shard_set import CLIP_LIST, read_set
from extract.shards import failure_log, read_failures

SET_ATTRIBUTES = ("encoder", "weights_sha256", "width", "trimmed", "settings", "created_by")


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
        lines = [f"{name:<16} {self.attributes[name]}" for name in SET_ATTRIBUTES if name in self.attributes]
        lines.append(f"{'contents':<16} {', '.join(f'{name} ({dtype})' for name, dtype in self.contents.items())}")
        lines.append(f"{'frames':<16} {self.frames:,} ({self.frames / FRAME_RATE:,.1f} s)")
        lines.append(f"{'clips':<16} {len(self.clips):,} in {self.shards:,} shards, {self.failures:,} failed")
        lines += ["", count_clips(self.clips), "", *filter(None, [caveat(self.attributes)])]
        return "\n".join([*lines, *(self.damage or ["every shard is whole"])])


def inspect(path: str) -> Report:
    """Reads every array of a shard, or of a set of them, and checks it.

    Checked: each shard's format, offsets and counts, that all features are finite; of a set, that no clip is in two
    shards, that all shards were made alike, and that shards and failure logs make up the clip list.

    Args:
      path: a shard, or the folder or URL of a set.

    Raises:
      InputError: there is no shard.
    """
    report, owners = Report(), {}
    for file in list_shards(path):
        try:
            with local_file(file) as copy:
                _inspect_shard(open_shard(copy), file.name, report, owners)
        except InputError as error:
            report.damage.append(str(error))
    if not place(path).is_file():
        report.damage += _check_set(place(path), set(owners))
        report.failures = sum(len(_failures(file)) for file in list_shards(path))
    return report


def _inspect_shard(shard: Shard, name: str, report: Report, owners: dict[str, str]) -> None:
    report.shards += 1
    report.frames += len(shard.visual)
    report.clips += shard.clips
    attributes = {key: shard.attributes.get(key) for key in SET_ATTRIBUTES}
    contents = {key: str(array.dtype) for key, array in _arrays(shard)}
    report.attributes = report.attributes or attributes
    report.contents = report.contents or contents
    if (attributes, contents) != (report.attributes, report.contents):
        report.damage.append(f"{name}: was made otherwise than the shards before it")
    for clip in shard.clips:
        if (other := owners.setdefault(clip.path, name)) != name:
            report.damage.append(f"{name}: holds {clip.path!r}, which is in {other} too")
    for key in ("visual", "audio", "multimodal"):
        array = getattr(shard, key)
        for clip, start, stop in zip(shard.clips, shard.offset, shard.offset[1:], strict=False):
            if array is not None and not np.isfinite(array[start:stop]).all():
                report.damage.append(f"{name}: the {key} features of {clip.path!r} hold NaN or infinity")


def _arrays(shard: Shard) -> Iterator[tuple[str, np.ndarray]]:
    for name in ("visual", "audio", *OPTIONAL):
        if (array := getattr(shard, name)) is not None:
            yield name, getattr(array, "value", array)


def _check_set(directory: Place, stored: set[str]) -> Iterator[str]:
    """What the shards of a set lack, or have too many of, against its clip list."""
    if not (directory / CLIP_LIST).exists():
        yield f"{directory}: no {CLIP_LIST}, so nobody can tell whether clips are missing"
        return
    try:
        clips, per_shard = read_set(directory)
    except (InputError, KeyError, ValueError) as error:
        yield f"{directory}: its clip list cannot be compared ({error})"
        return
    found = {path.name for path in directory.glob(SHARD_PATTERN)}
    for shard, start in enumerate(range(0, len(clips), per_shard)):
        name = f"features-{shard:05d}.h5"
        if name not in found:
            yield f"{name}: is missing"
            continue
        failed = {failure.path for failure in _failures(directory / name)}
        for clip in clips[start : start + per_shard]:
            if (clip.path in stored) + (clip.path in failed) != 1:
                where = "both in a shard and" if clip.path in stored else "neither in a shard nor"
                yield f"{name}: {clip.path!r} of the clip list is {where} in its failure log"
    if strange := sorted(stored - {clip.path for clip in clips}):
        yield f"{len(strange)} clips are not in the clip list, the first {strange[0]!r}"


def _failures(shard: Place) -> list:
    with contextlib.suppress(InputError):  # told by the clips that are then in neither
        return read_failures(failure_log(shard))
    return []
