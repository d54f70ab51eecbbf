"""A set of shards made from one clip list: which clip goes where, what is still to be made, and the sum of it all.

Shard k of a set holds clips k*n .. (k+1)*n - 1 of the clip list, less those that failed, in list order. So a run that
is resumed, split into tasks or spread over a cluster gives the shards of one unbroken run.
"""

import collections
import contextlib
import dataclasses
import itertools
import json
from collections.abc import Iterator, Sequence

import numpy as np

from extract.clips import clip_list_text, read_clip_list
from extract.schema import (
    FRAME_RATE,
    SHARD_PATTERN,
    ClipMeta,
    InputError,
    caveat,
    ends_beyond,
    json_attribute,
    place,
    read_shard_table,
    read_text,
    shard_name,
    whole_file,
)
from extract.schema.files import AnyPath, Place
from extract.shards import ShardWriter, failure_log, read_failures, write_failures

CLIP_LIST = "clips.csv"  # the set's clip list, beside its shards
FAILURES = "failures.jsonl"
SUMMARY = "extraction.json"


@dataclasses.dataclass(frozen=True)
class ShardSet:
    """A folder of shards, and the clip list they are made from."""

    writer: ShardWriter
    clips: Sequence[ClipMeta]
    clips_per_shard: int

    @property
    def count(self) -> int:
        """Number of shards."""
        return -(-len(self.clips) // self.clips_per_shard)

    def clips_of(self, shard: int) -> Sequence[ClipMeta]:
        """The clips that belong in a shard, by the rule above."""
        return self.clips[shard * self.clips_per_shard : (shard + 1) * self.clips_per_shard]

    def missing(self) -> list[int]:
        """Shards still to be made. Leaves the clip list beside the shards.

        Raises:
          InputError: the folder holds shards of another run.
        """
        directory = self.writer.directory
        found = {path.name for path in directory.glob(SHARD_PATTERN)} if directory.exists() else set()
        self._leave_clip_list(bool(found))
        if stray := sorted(found - {self.writer.path(shard).name for shard in range(self.count)}):
            raise _other_run(
                directory / stray[0], f"is beyond the last shard of this clip list, which has {self.count}"
            )
        return [shard for shard in range(self.count) if not self._is_done(shard, found)]

    def _leave_clip_list(self, shards_there: bool) -> None:
        path, text = self.writer.directory / CLIP_LIST, clip_list_text(self.clips)
        if path.exists():
            if (found := read_text(path)) != text:
                lines = itertools.zip_longest(found.splitlines(), text.splitlines(), fillvalue="nothing")
                number, (old, new) = next((n, pair) for n, pair in enumerate(lines, 1) if pair[0] != pair[1])
                raise _other_run(path, f"is another clip list: its line {number} is {old}, not {new}")
        elif shards_there:
            raise _other_run(path, "is missing beside shards")
        else:
            with whole_file(path) as temporary:
                temporary.write_text(text, encoding="utf-8")

    def _is_done(self, shard: int, found: set[str]) -> bool:
        path = self.writer.path(shard)
        if path.name not in found:
            return False
        table = read_shard_table(path)
        for name, value in self.writer.root_attributes.items():
            if (found_value := table.attributes.get(name)) != value:
                raise _other_run(path, f"was made with {name} = {found_value!r}, this run has {value!r}")
        _check_complete(path, table.clips, self.clips_of(shard))
        return True


def merge(directory: AnyPath) -> dict[str, object] | None:
    """Sums a set up once all its shards are there.

    Merges the failure logs into `failures.jsonl`, writes `extraction.json`, and clears away what killed runs left.

    Returns:
      What `extraction.json` says: counts, and the seconds that all runs and tasks spent on the shards, by stage. None
      while a shard is missing.

    Raises:
      InputError: the folder holds no set, or a damaged one.
    """
    directory = place(directory)
    if not any(directory.glob(SHARD_PATTERN)):
        return None
    clips, per_shard = read_set(directory)
    parts = [clips[start : start + per_shard] for start in range(0, len(clips), per_shard)]
    paths = [directory / shard_name(shard) for shard in range(len(parts))]
    if not all(path.exists() for path in paths):
        return None
    totals, failures, seconds = collections.Counter(), [], collections.Counter()
    for path, part in zip(paths, parts, strict=True):
        table = read_shard_table(path)
        failures += _check_complete(path, table.clips, part)
        beyond = map(ends_beyond, table.clips, np.diff(table.offset).tolist())
        totals.update(stored=len(table.clips), frames=int(table.offset[-1]), beyond=sum(beyond))
        seconds.update(json_attribute(path, table.attributes, "seconds"))
    write_failures(directory / FAILURES, failures)
    summary = {
        "clips": len(clips),
        "stored": totals["stored"],
        "failed": len(failures),
        "frames": totals["frames"],
        "segments_beyond_end": totals["beyond"],
        "video_seconds": totals["frames"] / FRAME_RATE,
        "shards": len(paths),
        "trimmed": table.attributes["trimmed"],
        "encoder": table.attributes["encoder"],
        "caveat": caveat(table.attributes),
        "seconds": {stage: round(value, 3) for stage, value in seconds.items()},
    }
    with whole_file(directory / SUMMARY) as temporary:
        temporary.write_text(json.dumps(summary, indent=2) + "\n")
    for left in directory.glob(".features-*.part"):
        left.unlink(missing_ok=True)  # another task may sum up too
    return summary


def read_set(directory: Place) -> tuple[list[ClipMeta], int]:
    """The clip list of a set, and its number of clips a shard.

    Raises:
      InputError: there is no clip list, or no shard.
    """
    clips = read_clip_list(directory / CLIP_LIST)
    paths = sorted(directory.glob(SHARD_PATTERN), key=str)
    if not paths:
        raise InputError(f"{directory}: no feature shards ({SHARD_PATTERN}) there yet; run the tasks that make them")
    for path in paths:
        with contextlib.suppress(InputError):  # a damaged shard; the next one says the same
            return clips, _clips_per_shard(read_shard_table(path).attributes)
    raise InputError(f"{directory}: no shard says how many clips a shard holds; extract them again")


def _clips_per_shard(attributes: dict[str, object]) -> int:
    try:
        count = json.loads(attributes["settings"])["clips_per_shard"]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"settings that are not ours ({error})") from error
    if type(count) is not int or count < 1:
        raise InputError(f"clips_per_shard is {count!r}")
    return count


def format_summary(summary: dict[str, object] | None) -> str:
    """What `extraction.json` says, in a sentence or two; None: other tasks still have shards to make."""
    if summary is None:
        return "this task's shards are there; the task that ends last sums up (or --merge does)"
    trimmed = ", trimmed" if summary["trimmed"] is True else ""
    text = "{clips} clips: {stored} in {shards} shards ({frames} frames{0}), {failed} failed".format(trimmed, **summary)
    text += " (see failures.jsonl)" if summary["failed"] else ""
    beyond = summary["segments_beyond_end"]
    note = beyond and f"{beyond} clips have fake segments beyond their end; give them in seconds of the whole clip"
    return "\n".join([text, *filter(None, [note, summary["caveat"]])])


def _check_complete(path: Place, stored: Sequence[ClipMeta], listed: Sequence[ClipMeta]) -> list:
    """The failures of a shard, once it is seen that they and its clips make up its part of the list."""
    failures = read_failures(failure_log(path))
    failed = {failure.path for failure in failures}
    if [clip.path for clip in stored] != [clip.path for clip in listed if clip.path not in failed] or len(stored) + len(
        failures
    ) != len(listed):
        raise _other_run(path, "and its failure log hold other clips than its part of the clip list")
    return failures


def _other_run(path: Place, what: str) -> InputError:
    return InputError(f"{path} {what}; choose an empty output folder")


def tasks_shards(missing: Sequence[int], index: int, count: int) -> Iterator[int]:
    """The shards of one of several tasks: shard k is made by task k mod count."""
    return (shard for shard in missing if shard % count == index)
