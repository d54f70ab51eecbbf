"""Summing a set of shards up once all are there: the merged failure log, and `extraction.json`."""

import collections
import dataclasses
import json
from pathlib import Path
from typing import cast

import numpy as np

from avh_shards import UserError
from avh_shards.clip import FRAME_RATE, ends_beyond
from avh_shards.errors import Failure
from avh_shards.format import SHARD_PATTERN, caveat, json_attribute, read_shard_table, shard_name
from avh_shards.paths import AnyPath, as_path, atomic_write, remove_leftovers
from avh_shards.text import one_line
from extract.store.shard import write_failures
from extract.store.shard_set import FAILURES, SET_ATTRIBUTES, SUMMARY, differing_attributes, read_set, shard_failures


@dataclasses.dataclass(frozen=True)
class ExtractionSummary:
    """What `extraction.json` holds, in its order."""

    clips: int  # in the clip list
    stored: int  # clips in the shards
    failed: int  # clips in the failure log
    passing: int  # of those, failures that may be gone when the clips are tried again
    frames: int
    segments_beyond_end: int  # clips with fake segments beyond their end
    video_seconds: float
    shards: int
    trimmed: bool | str | None  # "unknown" for imported features
    encoder: str
    caveat: str
    seconds: dict[str, float]  # that all runs and tasks spent on the shards, by stage


def merge(directory: AnyPath) -> ExtractionSummary | None:
    """Sums a set up once all its shards are there.

    Merges the failure logs into `failures.jsonl`, writes `extraction.json`, and clears away what killed runs left.

    Returns:
      The summary; None while a shard is missing, or still to be made again.

    Raises:
      UserError: the folder holds no set, a damaged one, or shards of different settings.
    """
    directory = as_path(directory)
    if not any(directory.glob(SHARD_PATTERN)):
        return None
    clips, per_shard = read_set(directory)
    parts = [clips[start : start + per_shard] for start in range(0, len(clips), per_shard)]
    paths = [directory / shard_name(shard) for shard in range(len(parts))]
    if not all(path.exists() for path in paths):
        return None
    stored = frames = beyond = 0
    failures: list[Failure] = []
    seconds: collections.Counter[str] = collections.Counter()
    first: dict[str, object] = {}
    for path, part in zip(paths, parts, strict=True):
        table = read_shard_table(path)
        attributes = {name: table.attributes.get(name) for name in SET_ATTRIBUTES}
        first = first or attributes
        for name, one, other in differing_attributes(first, attributes):
            raise UserError(
                f"{path}: was made with {name} = {one_line(repr(other))}, but {paths[0].name} with "
                f"{one_line(repr(one))}; remove the shards of one of the two runs and run the other again"
            )
        failed = shard_failures(path, table.clips, part)
        if failed is None:
            return None
        failures += failed
        stored += len(table.clips)
        frames += int(table.offset[-1])
        beyond += sum(map(ends_beyond, table.clips, np.diff(table.offset).tolist()))
        seconds.update(json_attribute(path, table.attributes, "seconds"))
    write_failures(directory / FAILURES, failures)
    summary = ExtractionSummary(
        clips=len(clips),
        stored=stored,
        failed=len(failures),
        passing=sum(failure.passing for failure in failures),
        frames=frames,
        segments_beyond_end=beyond,
        video_seconds=frames / FRAME_RATE,
        shards=len(paths),
        trimmed=cast(bool | str | None, first["trimmed"]),
        encoder=cast(str, first["encoder"]),
        caveat=caveat(first),
        seconds={stage: round(value, 3) for stage, value in seconds.items()},
    )
    with atomic_write(directory / SUMMARY) as temporary:
        temporary.write_text(json.dumps(dataclasses.asdict(summary), indent=2) + "\n")
    if isinstance(directory, Path):
        remove_leftovers(directory, ".features-")
    return summary


def format_summary(summary: ExtractionSummary | None) -> str:
    """Returns a summary in a sentence or two; None: other tasks still have shards to make."""
    if summary is None:
        return "this task's shards are there; the task that ends last sums up (or --merge does)"
    trimmed = ", trimmed" if summary.trimmed is True else ""
    text = f"{summary.clips} clips: {summary.stored} in {summary.shards} shards ({summary.frames} frames{trimmed}), "
    text += f"{summary.failed} failed"
    if summary.failed:
        text += f" (see {FAILURES})"
    if summary.passing:
        text += f"; {summary.passing} of them may pass: the same command tries them again"
    lines = [text]
    if not summary.stored:
        lines.append(f"0 of {summary.clips} clips succeeded")
    if beyond := summary.segments_beyond_end:
        lines.append(f"{beyond} clips have fake segments beyond their end; give them in seconds of the whole clip")
    if summary.caveat:
        lines.append(summary.caveat)
    return "\n".join(lines)
