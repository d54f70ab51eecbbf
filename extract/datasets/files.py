"""Metadata files and folders, read entry by entry, with one sentence for whatever is wrong with them."""

import contextlib
import csv
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from extract.schema import InputError

DIGITS = re.compile("([0-9]+)")


def read_json(path: Path) -> object:
    """What a JSON file holds.

    Raises:
      InputError: the file is missing or is no JSON.
    """
    with _reading(path, "JSON"):
        return json.loads(path.read_text(encoding="utf-8-sig"))


def read_json_list(path: Path) -> Iterator[tuple[str, object]]:
    """The entries of a JSON file that holds one list, each with its place in words.

    Raises:
      InputError: the file is missing, or is no JSON list.
    """
    entries = read_json(path)
    if not isinstance(entries, list):
        raise InputError(f"{path}: holds no list of clips; put the released file there")
    for number, entry in enumerate(entries, 1):
        yield f"{path}, clip {number}", entry


def read_table(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """The rows of a CSV file with a header, as name -> stripped text, each with its place in words.

    Raises:
      InputError: the file is missing or is no CSV, or a row has another number of fields than the header.
    """
    with _reading(path, "CSV"), path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        for row in reader:
            where = f"{path}, line {reader.line_num}"
            if None in row or None in row.values():
                raise InputError(f"{where}: has another number of fields than the header; correct the line")
            yield where, {name: text.strip() for name, text in row.items()}


def read_lines(path: Path) -> Iterator[tuple[str, str]]:
    """The lines of a text file that are not blank, each with its place in words.

    Raises:
      InputError: the file is missing or is no text.
    """
    with _reading(path, "text"), path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if text := line.strip():
                yield f"{path}, line {number}", text


def list_files(folder: Path, suffixes: tuple[str, ...]) -> list[str]:
    """The files below a folder with one of these (lower-case) suffixes in either case.

    Hidden files and folders and linked folders are left out.

    Returns:
      Paths relative to the folder, sorted with numbers as numbers (2.mp4 before 10.mp4).

    Raises:
      InputError: the folder, or one below it, cannot be listed.
    """
    found = []
    for parent, folders, names in os.walk(folder, onerror=_refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        place = Path(parent).relative_to(folder).as_posix()
        found += [f"{place}/{name}" for name in names if name.lower().endswith(suffixes) and not name.startswith(".")]
    return sorted((path.removeprefix("./") for path in found), key=_natural)


def _natural(path: str) -> tuple[list[str | int], str]:
    """Sort key with numbers as numbers; the path itself decides between 1 and 01."""
    return [int(part) if n % 2 else part for n, part in enumerate(DIGITS.split(path))], path


def _refuse(error: OSError) -> None:
    """An error of a listing, which os.walk would otherwise skip, as the user's."""
    raise InputError(f"{error.filename}: cannot be listed ({error.strerror}); name a folder that can be") from None


@contextlib.contextmanager
def _reading(path: Path, kind: str) -> Iterator[None]:
    """Whatever goes wrong with a file becomes an InputError."""
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; put the released file there") from None
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        raise InputError(f"{path}: not a readable {kind} file ({error}); put the released file there") from None
