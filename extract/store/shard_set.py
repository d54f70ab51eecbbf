"""A set of shards built from one clip list: assignment of clips, missing shards, and the summary.

Shard k of a set holds clips k*n .. (k+1)*n - 1 of the clip list, without those that failed, in list order. A run that
is resumed, split into tasks or spread over a cluster therefore produces the same shards as an uninterrupted run.

A failure may be transient ("passing"): the file did not exist yet, a mount was lost, memory was short. A restarted run
retries only those clips, and rebuilds a whole shard once one of its failed clips succeeds. The shard is replaced
atomically after its failure log, so a shard that contradicts its log was interrupted in between and is also rebuilt.
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
from avh_shards.clip import FRAME_RATE, ends_beyond, listed_path
from avh_shards.clip_list import clip_list_text
from avh_shards.errors import Failure
from avh_shards.format import SHARD_PATTERN, caveat, differences, json_attribute, read_shard_table, shard_name
from avh_shards.lists import read_text
from avh_shards.paths import AnyPath, FilePath, as_path, atomic_write, remove_leftovers
from avh_shards.text import one_line
from extract.store.shard import ShardWriter, failure_log, read_failures, write_failures

CLIP_LIST = "clips.csv"  # the set's clip list, next to its shards
SET_SETTINGS = "settings.json"  # root attributes of the shards, written by the first run in the folder
FAILURES = "failures.jsonl"
SUMMARY = "extraction.json"
SET_ATTRIBUTES = ("encoder", "weights_sha256", "width", "trimmed", "settings", "created_by")


@dataclasses.dataclass(frozen=True)
class ShardSet:
    """A folder of shards and the clip list they are built from."""

    writer: ShardWriter
    clips: Sequence[ClipMeta]
    clips_per_shard: int

    @property
    def count(self) -> int:
        """Number of shards."""
        return -(-len(self.clips) // self.clips_per_shard)

    def clips_of(self, shard: int) -> Sequence[ClipMeta]:
        """Returns the clips that belong in a shard, failed ones included."""
        return self.clips[shard * self.clips_per_shard : (shard + 1) * self.clips_per_shard]

    def missing(self) -> list[int]:
        """Returns the numbers of the missing shards; writes the clip list and the settings to the folder if new.

        Raises:
          UserError: the folder holds the settings, clip list or shards of a different run.
        """
        directory = self.writer.directory
        found = {path.name for path in directory.glob(SHARD_PATTERN)} if directory.exists() else set()
        self._leave_clip_list(bool(found))
        if (directory / SET_SETTINGS).exists():
            self._check_settings()
        if stray := sorted(found - {self.writer.path(shard).name for shard in range(self.count)}):
            raise _other_run(
                directory / stray[0], f"is beyond the last shard of this clip list, which has {self.count} shards"
            )
        missing = [shard for shard in range(self.count) if not self._is_done(shard, found)]
        _leave(directory / SET_SETTINGS, json.dumps(self.writer.root_attributes, indent=2) + "\n")
        self._check_settings()
        return missing

    def failed(self, shard: int, retry: str) -> list[ClipMeta]:
        """Returns the failed clips of an existing shard that should be retried.

        Args:
          shard: number of the shard.
          retry: failures to retry: none, passing or all.
        """
        failures = read_failures(failure_log(self.writer.path(shard))) if retry != "none" else []
        paths = {failure.path for failure in failures if failure.retried(retry)}
        return [clip for clip in self.clips_of(shard) if clip.path in paths]

    def can_gain(self, shard: int, tried: Mapping[str, Failure | None]) -> bool:
        """Returns whether a shard should be rebuilt after some of its failed clips were retried.

        If so, removes the set's summary, which is out of date; otherwise writes new reasons to the failure log.

        Args:
          shard: number of the shard.
          tried: new failure of each retried clip, by path; None if the clip succeeded.
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
            raise _other_run(path, "is missing next to shards")
        _leave(path, text)
        if (found := read_text(path)) != text:
            lines = itertools.zip_longest(found.splitlines(), text.splitlines(), fillvalue="nothing")
            number, (old, new) = next((n, pair) for n, pair in enumerate(lines, 1) if pair[0] != pair[1])
            raise _other_run(path, f"differs from this run's clip list: line {number} is {old}, not {new}")

    def _check_settings(self) -> None:
        path = self.writer.directory / SET_SETTINGS
        try:
            found = dict(json.loads(read_text(path)))
        except (ValueError, TypeError, RecursionError) as error:
            raise UserError(f"{path}: not the settings of a run ({one_line(error)}); remove it") from error
        self._check_attributes(path, found)

    def _check_attributes(self, path: FilePath, found: Mapping[str, object]) -> None:
        """Rejects the root attributes of a different run."""
        wanted = self.writer.root_attributes
        for name, found_value, value in differing_attributes({name: found.get(name) for name in wanted}, wanted):
            raise _other_run(path, f"was made with {name} = {one_line(repr(found_value))}, but this run has {value!r}")

    def _is_done(self, shard: int, found: set[str]) -> bool:
        path = self.writer.path(shard)
        if path.name not in found:
            return False
        table = read_shard_table(path)
        self._check_attributes(path, table.attributes)
        return shard_failures(path, table.clips, self.clips_of(shard)) is not None


@dataclasses.dataclass(frozen=True)
class ExtractionSummary:
    """Contents of `extraction.json`, in order."""

    clips: int  # in the clip list
    stored: int  # clips in the shards
    failed: int  # clips in the failure log
    passing: int  # failures that may not recur when the clips are retried
    frames: int
    segments_beyond_end: int  # clips with fake segments beyond their end
    video_seconds: float
    shards: int
    trimmed: bool | str | None  # "unknown" for imported features
    encoder: str
    caveat: str
    seconds: dict[str, float]  # time that all runs and tasks spent on the shards, by stage
    tracks: int  # entries of the shards: several for a clip of which each face is stored by itself


def merge(directory: AnyPath) -> ExtractionSummary | None:
    """Summarises a set once all its shards exist.

    Merges the failure logs into `failures.jsonl`, writes `extraction.json`, and removes temporary files of killed runs.

    Args:
      directory: folder or URL of the set.

    Returns:
      The summary, or None while a shard is missing or has to be rebuilt.

    Raises:
      UserError: the set is damaged, or its shards have different settings.
    """
    directory = as_path(directory)
    if not any(directory.glob(SHARD_PATTERN)):
        return None
    parts = {directory / name: listed for name, listed in read_set(directory).items()}
    if not all(path.exists() for path in parts):
        return None
    stored = tracks = frames = beyond = 0
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
                f"{one_line(repr(one))}; remove the shards of one of the two runs and repeat the other"
            )
        failed = shard_failures(path, table.clips, listed)
        if failed is None:
            return None
        failures += failed
        stored += len(listed) - len(failed)
        tracks += len(table.clips)
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
        tracks=tracks,
    )
    with atomic_write(directory / SUMMARY) as temporary:
        temporary.write_text(json.dumps(dataclasses.asdict(summary), indent=2) + "\n")
    if isinstance(directory, Path):
        remove_leftovers(directory, ".features-")
    return summary


def format_summary(summary: ExtractionSummary | None) -> str:
    """Returns a summary as text; None means that other tasks have not finished."""
    if summary is None:
        return "this task's shards are complete; the last task to finish writes the summary (or run with --merge)"
    trimmed = ", trimmed" if summary.trimmed is True else ""
    faces = f"{summary.tracks} tracks of faces, " if summary.tracks > summary.stored else ""
    text = f"{summary.clips} clips: {summary.stored} in {summary.shards} shards "
    text += f"({faces}{summary.frames} frames{trimmed}), "
    text += f"{summary.failed} failed"
    if summary.failed:
        text += f" (see {FAILURES})"
    if summary.passing:
        text += f"; {summary.passing} of them may be transient; run the same command again to retry them"
    lines = [text]
    if not summary.stored:
        lines.append(f"0 of {summary.clips} clips succeeded")
    if beyond := summary.segments_beyond_end:
        lines.append(f"{beyond} clips have fake segments beyond their end; give them in seconds of the whole clip")
    if summary.caveat:
        lines.append(summary.caveat)
    return "\n".join(lines)


def read_set(directory: FilePath) -> dict[str, list[ClipMeta]]:
    """Reads the clip list of a set.

    Returns:
      The name of each shard -> the clips that belong in it.

    Raises:
      UserError: the clip list is missing, or the set has no readable shard.
    """
    clips = read_clip_list(directory / CLIP_LIST)
    paths = sorted(directory.glob(SHARD_PATTERN), key=str)
    if not paths:
        raise UserError(f"{directory}: no feature shards ({SHARD_PATTERN}) yet; run the extraction tasks first")
    for path in paths:
        with contextlib.suppress(UserError):  # a damaged shard; the next one has the same settings
            count = json_attribute(path, read_shard_table(path).attributes, "settings").get("clips_per_shard")
            if type(count) is int and count > 0:
                starts = range(0, len(clips), count)
                return {shard_name(shard): clips[start : start + count] for shard, start in enumerate(starts)}
    raise UserError(f"{directory}: no shard records the number of clips per shard; extract them again")


def shard_failures(path: FilePath, stored: Sequence[ClipMeta], listed: Sequence[ClipMeta]) -> list[Failure] | None:
    """Reads the failures of a shard.

    Args:
      path: the shard's file.
      stored: clips in the shard.
      listed: clips of the list that belong in the shard.

    Returns:
      The failures, or None if stored and failed clips do not add up to `listed`: writing was interrupted.

    Raises:
      UserError: the shard holds clips that are not in `listed`, or its failure log is missing or damaged.
    """
    paths = dict.fromkeys(clip.path for clip in listed)
    found = dict.fromkeys(listed_path(clip.path, paths) for clip in stored)
    if not found.keys() <= paths.keys():
        raise _other_run(path, "holds clips that are not in its part of the clip list")
    failures = read_failures(failure_log(path))
    failed = {failure.path for failure in failures}
    whole = [*found] == [path for path in paths if path not in failed]
    return failures if whole and len(found) + len(failures) == len(listed) else None


def differing_attributes(one: Mapping[str, object], other: Mapping[str, object]) -> list[tuple[str, object, object]]:
    """Returns the differences between two runs' attributes as sorted (name, value, other value).

    The entries of `settings` are compared one by one.
    """
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
    """Writes a file unless it exists: when several runs start at the same time, the first one's file is kept."""
    if path.exists():
        return
    if not isinstance(path, Path):
        with atomic_write(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
        return
    draft = path.with_name(f".features-{path.name}.{uuid.uuid4().hex[:8]}.part")  # removed with the shards' leftovers
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
    """Returns the file that a task locks while it writes to a set: tasks run in parallel, but none runs twice."""
    return directory / f".task-{index}-of-{count}.lock"
