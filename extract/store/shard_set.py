"""A set of shards made from one clip list: which clip goes where, and what is still to be made.

Shard k of a set holds clips k*n .. (k+1)*n - 1 of the clip list, less those that failed, in list order. So a run that
is resumed, split into tasks or spread over a cluster gives the shards of one unbroken run.

A failure may be a passing one: the file was not there yet, a mount was lost, memory was short. A restarted run tries
those clips again, and only them; a shard is made again, as a whole, once one of its clips can be had. It is replaced in
one step, after its failure log: a shard that contradicts its log was interrupted there, and is made again, too.
"""

import contextlib
import dataclasses
import itertools
import json
import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

from avh_shards import ClipMeta, UserError, read_clip_list
from avh_shards.clip_list import clip_list_text
from avh_shards.errors import Failure
from avh_shards.format import SHARD_PATTERN, differences, read_shard_table
from avh_shards.lists import read_text
from avh_shards.paths import FilePath, atomic_write
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


def read_set(directory: FilePath) -> tuple[list[ClipMeta], int]:
    """The clip list of a set, and its number of clips a shard.

    Raises:
      UserError: there is no clip list, or no shard.
    """
    clips = read_clip_list(directory / CLIP_LIST)
    paths = sorted(directory.glob(SHARD_PATTERN), key=str)
    if not paths:
        raise UserError(f"{directory}: no feature shards ({SHARD_PATTERN}) there yet; run the tasks that make them")
    for path in paths:
        with contextlib.suppress(UserError):  # a damaged shard; the next one says the same
            return clips, _clips_per_shard(read_shard_table(path).attributes)
    raise UserError(f"{directory}: no shard says how many clips a shard holds; extract them again")


def _clips_per_shard(attributes: Mapping[str, object]) -> int:
    try:
        count = json.loads(cast(str, attributes["settings"]))["clips_per_shard"]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"settings that are not ours ({error})") from error
    if type(count) is not int or count < 1:
        raise UserError(f"clips_per_shard is {count!r}")
    return count


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
