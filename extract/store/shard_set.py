"""A set of shards made from one clip list: which clip goes where, what is still to be made, and the sum of it all.

Shard k of a set holds clips k*n .. (k+1)*n - 1 of the clip list, less those that failed, in list order. So a run that
is resumed, split into tasks or spread over a cluster gives the shards of one unbroken run.

A failure may be a passing one: the file was not there yet, a mount was lost, memory was short. A restarted run tries
those clips again, and only them; a shard is made again, as a whole, once one of its clips can be had. It is replaced in
one step, after its failure log: a shard that contradicts its log was interrupted there, and is made again, too.
"""

import collections
import contextlib
import dataclasses
import itertools
import json
import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np

from avh_shards import ClipMeta, UserError, read_clip_list
from avh_shards.clip import FRAME_RATE, ends_beyond
from avh_shards.clip_list import clip_list_text
from avh_shards.errors import Failure
from avh_shards.format import SHARD_PATTERN, caveat, differences, json_attribute, read_shard_table, shard_name
from avh_shards.lists import read_text
from avh_shards.paths import AnyPath, FilePath, as_path, atomic_write, remove_leftovers
from avh_shards.text import one_line
from extract.store.shard import ShardWriter, failure_log, read_failures, write_failures

CLIP_LIST = "clips.csv"  # the set's clip list, beside its shards
SET_SETTINGS = "settings.json"  # the root attributes of its shards: those of the first run that started there
FAILURES = "failures.jsonl"
SUMMARY = "extraction.json"
SET_ATTRIBUTES = ("encoder", "weights_sha256", "width", "trimmed", "settings", "created_by")


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
        """Returns the shards still to be made; writes the clip list and the settings next to the shards, if new.

        Raises:
          UserError: the folder holds another run, or its shards.
        """
        directory = self.writer.directory
        found = {path.name for path in directory.glob(SHARD_PATTERN)} if directory.exists() else set()
        self._leave_clip_list(bool(found))
        if (directory / SET_SETTINGS).exists():
            self._check_settings()
        if stray := sorted(found - {self.writer.path(shard).name for shard in range(self.count)}):
            raise _other_run(
                directory / stray[0], f"is beyond the last shard of this clip list, which has {self.count}"
            )
        missing = [shard for shard in range(self.count) if not self._is_done(shard, found)]
        _leave(directory / SET_SETTINGS, json.dumps(self.writer.root_attributes, indent=2) + "\n")
        self._check_settings()
        return missing

    def failed(self, shard: int, retry: str) -> list[ClipMeta]:
        """The clips that failed, of a shard that is there, and are to be tried again.

        Args:
          shard: its number.
          retry: which failures: none, passing or all.
        """
        failures = read_failures(failure_log(self.writer.path(shard))) if retry != "none" else []
        paths = {failure.path for failure in failures if failure.retried(retry)}
        return [clip for clip in self.clips_of(shard) if clip.path in paths]

    def can_gain(self, shard: int, tried: Mapping[str, Failure | None]) -> bool:
        """Whether a shard should be made again, now that some clips it lacks were tried again.

        If so, the set's summary is removed, as it is out of date; otherwise new reasons enter the failure log.

        Args:
          shard: its number.
          tried: by path of a clip, why it fails now; None if it can be had.
        """
        path = failure_log(self.writer.path(shard))
        before = read_failures(path)
        tried_again = [tried.get(failure.path, failure) for failure in before]
        now = [failure for failure in tried_again if failure is not None]
        if len(now) < len(before):
            for name in (SUMMARY, FAILURES):
                (self.writer.directory / name).unlink(missing_ok=True)
            return True
        if now != before:
            write_failures(path, now)
        return False

    def _leave_clip_list(self, shards_there: bool) -> None:
        path = self.writer.directory / CLIP_LIST
        text = clip_list_text(self.clips)
        if shards_there and not path.exists():
            raise _other_run(path, "is missing beside shards")
        _leave(path, text)
        if (found := read_text(path)) != text:
            lines = itertools.zip_longest(found.splitlines(), text.splitlines(), fillvalue="nothing")
            number, (old, new) = next((n, pair) for n, pair in enumerate(lines, 1) if pair[0] != pair[1])
            raise _other_run(path, f"is another clip list: its line {number} is {old}, not {new}")

    def _check_settings(self) -> None:
        path = self.writer.directory / SET_SETTINGS
        try:
            found = dict(json.loads(read_text(path)))
        except (ValueError, TypeError, RecursionError) as error:
            raise UserError(f"{path}: not the settings of a run ({one_line(error)}); remove it") from error
        self._check_attributes(path, found)

    def _check_attributes(self, path: FilePath, found: Mapping[str, object]) -> None:
        """Rejects root attributes of another run."""
        wanted = self.writer.root_attributes
        for name, found_value, value in differing_attributes({name: found.get(name) for name in wanted}, wanted):
            raise _other_run(path, f"was made with {name} = {one_line(repr(found_value))}, this run has {value!r}")

    def _is_done(self, shard: int, found: set[str]) -> bool:
        path = self.writer.path(shard)
        if path.name not in found:
            return False
        table = read_shard_table(path)
        self._check_attributes(path, table.attributes)
        return shard_failures(path, table.clips, self.clips_of(shard)) is not None


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
    parts = {directory / name: listed for name, listed in read_set(directory).items()}
    if not all(path.exists() for path in parts):
        return None
    stored = frames = beyond = 0
    failures: list[Failure] = []
    seconds: collections.Counter[str] = collections.Counter()
    first: dict[str, object] = {}
    for path, listed in parts.items():
        table = read_shard_table(path)
        attributes = {name: table.attributes.get(name) for name in SET_ATTRIBUTES}
        first = first or attributes
        for name, one, other in differing_attributes(first, attributes):
            raise UserError(
                f"{path}: was made with {name} = {one_line(repr(other))}, but {shard_name(0)} with "
                f"{one_line(repr(one))}; remove the shards of one of the two runs and run the other again"
            )
        failed = shard_failures(path, table.clips, listed)
        if failed is None:
            return None
        failures += failed
        stored += len(table.clips)
        frames += int(table.offset[-1])
        beyond += sum(map(ends_beyond, table.clips, np.diff(table.offset).tolist()))
        seconds.update(json_attribute(path, table.attributes, "seconds"))
    write_failures(directory / FAILURES, failures)
    summary = ExtractionSummary(
        clips=sum(map(len, parts.values())),
        stored=stored,
        failed=len(failures),
        passing=sum(failure.passing for failure in failures),
        frames=frames,
        segments_beyond_end=beyond,
        video_seconds=frames / FRAME_RATE,
        shards=len(parts),
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


def read_set(directory: FilePath) -> dict[str, list[ClipMeta]]:
    """The clip list of a set: name of each shard -> the clips that belong in it.

    Raises:
      UserError: there is no clip list, or no shard.
    """
    clips = read_clip_list(directory / CLIP_LIST)
    paths = sorted(directory.glob(SHARD_PATTERN), key=str)
    if not paths:
        raise UserError(f"{directory}: no feature shards ({SHARD_PATTERN}) there yet; run the tasks that make them")
    for path in paths:
        with contextlib.suppress(UserError):  # a damaged shard; the next one says the same
            count = json_attribute(path, read_shard_table(path).attributes, "settings").get("clips_per_shard")
            if type(count) is int and count > 0:
                starts = range(0, len(clips), count)
                return {shard_name(shard): clips[start : start + count] for shard, start in enumerate(starts)}
    raise UserError(f"{directory}: no shard says how many clips a shard holds; extract them again")


def shard_failures(path: FilePath, stored: Sequence[ClipMeta], listed: Sequence[ClipMeta]) -> list[Failure] | None:
    """The failures of a shard; None if they and its clips do not make up its part of the list: it was interrupted.

    Raises:
      UserError: the shard holds other clips than its part of the list.
    """
    if not {clip.path for clip in stored} <= {clip.path for clip in listed}:
        raise _other_run(path, "holds other clips than its part of the clip list")
    failures = read_failures(failure_log(path))
    failed = {failure.path for failure in failures}
    whole = [clip.path for clip in stored] == [clip.path for clip in listed if clip.path not in failed]
    return failures if whole and len(stored) + len(failures) == len(listed) else None


def differing_attributes(one: Mapping[str, object], other: Mapping[str, object]) -> list[tuple[str, object, object]]:
    """Returns what differs between two runs' attributes, sorted: names and both values; of `settings`, each setting."""
    settings = _parsed_settings(one), _parsed_settings(other)
    if None not in settings:
        one, other = ({**known, "settings": each} for known, each in zip((one, other), settings, strict=True))
    found = differences(one, other)
    return [(name.removeprefix("settings."), *found[name]) for name in sorted(found)]


def _parsed_settings(attributes: Mapping[str, object]) -> dict | None:
    with contextlib.suppress(TypeError, ValueError, RecursionError):  # not JSON
        settings = json.loads(cast(str, attributes.get("settings")))
        return settings if isinstance(settings, dict) else None
    return None


def _leave(path: FilePath, text: str) -> None:
    """Writes a file unless there is one: of several runs that start at once, the first one's stays."""
    if path.exists():
        return
    if not isinstance(path, Path):
        with atomic_write(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
        return
    draft = path.with_name(f".features-{path.name}.{uuid.uuid4().hex[:8]}.part")  # cleared away with the shards' own
    with atomic_write(draft) as temporary:
        temporary.write_text(text, encoding="utf-8")
    try:
        os.link(draft, path)
    except FileExistsError:
        pass
    except OSError:  # a file system without hard links
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _other_run(path: FilePath, what: str) -> UserError:
    return UserError(f"{path}: {what}; choose an empty output folder")


def task_lock(directory: FilePath, index: int = 0, count: int = 1) -> FilePath:
    """The file whose lock a task holds while it writes to a set: tasks write side by side, but none runs twice."""
    return directory / f".task-{index}-of-{count}.lock"
