"""Metadata files and folders, read entry by entry, with one sentence for whatever is wrong with them."""

import json
import os
import re
import reprlib
from collections.abc import Iterator
from pathlib import Path

from avh_shards import UserError, read_text, warn

DIGITS = re.compile("([0-9]+)")
REMEDY = "put the released file there"


def read_json(path: Path) -> object:
    """What a JSON file holds.

    Raises:
      UserError: the file is missing or is not JSON, or an object in it has two values under one name.
    """
    text = read_text(path, REMEDY)
    try:
        return json.loads(text, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a readable JSON file ({error}); {REMEDY}") from None


def read_json_list(path: Path) -> Iterator[tuple[str, object]]:
    """The entries of a JSON file that holds one list, each with its place in words.

    Raises:
      UserError: the file is missing, or is not a JSON list.
    """
    entries = read_json(path)
    if not isinstance(entries, list):
        raise UserError(f"{path}: holds no list of clips; put the released file there")
    for number, entry in enumerate(entries, 1):
        yield f"{path}, clip {number}", entry


def list_files(folder: Path, suffixes: tuple[str, ...]) -> list[str]:
    """The files below a folder with one of these (lower-case) suffixes in either case.

    Hidden files and folders and linked folders are left out.

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
    """A JSON object; Python would keep the last of several values under one name."""
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"an object names {reprlib.repr(twice)} twice")
    return values


def _natural(path: str) -> tuple[list[str | int], str]:
    """Sort key with numbers as numbers; the path itself decides between 1 and 01."""
    return [int(part) if n % 2 else part for n, part in enumerate(DIGITS.split(path))], path


def _refuse(error: OSError) -> None:
    """An error of a listing, which os.walk would otherwise skip, as the user's."""
    raise UserError(f"{error.filename}: cannot be listed ({error.strerror}); name a folder that can be") from None
