"""Shared code of the data sets: categories, splits, metadata, folders, and conversion of entries to clips."""

import json
import os
import re
import reprlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import TypeVar

from avh_shards import ClipMeta, UserError
from avh_shards.clip_list import check_path, check_segments
from avh_shards.lists import read_text
from avh_shards.text import warn

T = TypeVar("T")
Entry = TypeVar("Entry")
DIGITS = re.compile("([0-9]+)")
REMEDY = "put the released file there"
FIELD_TYPES = {str: "printable text", int: "a whole number", bool: "true or false", list: "a list"}


def category(fake_video: bool, fake_audio: bool) -> str:
    """Returns the name of a category in FakeAVCeleb's vocabulary, which all data sets share."""
    return f"{'Fake' if fake_video else 'Real'}Video-{'Fake' if fake_audio else 'Real'}Audio"


LETTERS = {  # FakeAVCeleb's column `category`
    "A": category(False, False),
    "B": category(False, True),
    "C": category(True, False),
    "D": category(True, True),
}


def collect(source: Path, entries: Iterable[tuple[str, Entry]], to_clip: Callable[[Entry], ClipMeta]) -> list[ClipMeta]:
    """Converts metadata entries to clips without duplicate paths.

    Args:
      source: origin of the entries, for messages.
      entries: (location for messages, entry).
      to_clip: converts an entry to a clip; raises ValueError if the entry is invalid.

    Returns:
      The clips in the entries' order; of several entries with the same path, the first.

    Raises:
      UserError: an entry is invalid or contradicts an earlier one with the same path, or no entry is given.
    """
    clips: dict[str, ClipMeta] = {}
    for where, entry in entries:
        try:
            clip = to_clip(entry)
        except ValueError as error:
            raise UserError(f"{where}: {error}") from None
        first = clips.setdefault(clip.path, clip)
        if (first.label, first.category, first.segments) != (clip.label, clip.category, clip.segments):
            raise UserError(f"{where}: contradicts an earlier entry of {clip.path!r}; remove the wrong one")
    if not clips:
        raise UserError(f"{source}: holds no clips; name the folder of the released data set")
    return list(clips.values())


def check_splits(where: str, splits: Sequence[str], known: Sequence[str]) -> None:
    """Rejects unknown splits.

    Args:
      where: data set or file, for the message.
      splits: requested splits.
      known: available splits.

    Raises:
      UserError: a split is unknown; the message names it and the available ones.
    """
    if unknown := [split for split in splits if split not in known]:
        there = f"choose from {', '.join(known)}" if known else "it has no splits, so name none"
        raise UserError(f"{where}: has no split {unknown[0]!r}; {there}")


def of_splits(where: str, clips: Sequence[ClipMeta], splits: Sequence[str]) -> list[ClipMeta]:
    """Returns the clips of the named splits, or all clips if none is named.

    Args:
      where: source of the clips, for the message.
      clips: the clips.
      splits: names of splits.

    Raises:
      UserError: a split has no clips.
    """
    check_splits(where, splits, sorted({clip.split for clip in clips} - {""}))
    return [clip for clip in clips if not splits or clip.split in splits]


def clip_path(*parts: str) -> str:
    """Joins the parts of a clip's path and normalises it ("./a.mp4" becomes "a.mp4").

    Raises:
      ValueError: a part is empty, absolute or unprintable, or leaves its folder by `..`.
    """
    return str(PurePosixPath(*map(check_path, parts)))


def field(entry: object, name: str, kind: type[T]) -> T:
    """Returns a field of an entry, checking that it has exactly this type (a bool is not an int) and is printable.

    Raises:
      ValueError: the entry is not an object, the field is missing, or it has a different type or unprintable text.
    """
    if not isinstance(entry, dict) or name not in entry:
        raise ValueError(f"has no field {name!r}; compare it with the released file")
    value = entry[name]
    if type(value) is not kind or (isinstance(value, str) and not value.isprintable()):
        raise ValueError(f"{name} is {reprlib.repr(value)}, not {FIELD_TYPES[kind]}; compare it with the released file")
    return value


def choice(entry: object, name: str, known: dict[str, T]) -> T:
    """Maps the text in a field of an entry to its value in `known`.

    Raises:
      ValueError: the field is missing or is not one of the known texts.
    """
    if (text := field(entry, name, str)) not in known:
        raise ValueError(f"{name} {reprlib.repr(text)} is not one of {', '.join(known)}; correct it")
    return known[text]


def segments(entry: object, name: str) -> tuple[tuple[float, float], ...]:
    """Returns the fake segments in a field of an entry, in seconds.

    Raises:
      ValueError: the field is not [[start, end], ...] with 0 <= start <= end.
    """
    return check_segments(name, field(entry, name, list))


def read_json(path: Path) -> object:
    """Reads a JSON file.

    Raises:
      UserError: the file is missing or not JSON, or an object in it has a duplicate name.
    """
    text = read_text(path, REMEDY)
    try:
        return json.loads(text, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a readable JSON file ({error}); {REMEDY}") from None


def read_json_list(path: Path) -> Iterator[tuple[str, object]]:
    """Yields the entries of a JSON list, each with its location for messages.

    Raises:
      UserError: the file is missing or not a JSON list.
    """
    entries = read_json(path)
    if not isinstance(entries, list):
        raise UserError(f"{path}: holds no list of clips; put the released file there")
    for number, entry in enumerate(entries, 1):
        yield f"{path}, clip {number}", entry


def list_files(folder: Path, suffixes: tuple[str, ...]) -> list[str]:
    """Lists the files below a folder that have one of the suffixes, ignoring case.

    Hidden files, hidden folders and linked folders are left out; a warning names the first linked folder.

    Args:
      folder: folder to search.
      suffixes: lower-case suffixes.

    Returns:
      Paths relative to the folder, sorted with numbers as numbers (2.mp4 before 10.mp4).

    Raises:
      UserError: the folder, or one below it, cannot be listed.
    """
    found, linked = [], []
    for parent, folders, names in os.walk(folder, onerror=_refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        linked += [path for name in folders if (path := Path(parent, name)).is_symlink()]
        place = Path(parent).relative_to(folder).as_posix()
        found += [f"{place}/{name}" for name in names if name.lower().endswith(suffixes) and not name.startswith(".")]
    if linked:
        warn(f"{folder}: {len(linked)} linked folders are left out, the first is {linked[0]}; name them one by one")
    return sorted((path.removeprefix("./") for path in found), key=_natural)


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Builds a JSON object and rejects duplicate names, of which Python would keep the last."""
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"an object names {reprlib.repr(twice)} twice")
    return values


def _natural(path: str) -> tuple[list[str | int], str]:
    """Returns a sort key with numbers as numbers; the path itself decides between 1 and 01."""
    return [int(part) if n % 2 else part for n, part in enumerate(DIGITS.split(path))], path


def _refuse(error: OSError) -> None:
    """Raises a listing error, which os.walk would otherwise ignore, as a UserError."""
    raise UserError(f"{error.filename}: cannot be listed ({error.strerror}); name a readable folder") from None
