"""Clip lists: which clips there are, read from a CSV file and checked line by line; which file a clip's path names."""

import contextlib
import csv
import functools
import io
import json
import os
import reprlib
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

from avh_shards.clip import FAKE, REAL, UNKNOWN, ClipMeta
from avh_shards.errors import ClipError, UserError
from avh_shards.lists import read_table
from avh_shards.paths import AnyPath
from avh_shards.text import unprintable

CLIP_COLUMNS = ("path", "label", "category", "split", "identity", "fake_segments")
UNREAD_COLUMNS = ("num_frames",)  # further columns of AVH-Align's own lists
MAX_FRAMES = 15_000  # of a clip, 10 minutes: the encoder sees it in one piece, if memory allows
LABEL_WORDS = {"0": REAL, "1": FAKE, "-1": UNKNOWN, "": UNKNOWN, "real": REAL, "fake": FAKE, "unknown": UNKNOWN}
LABEL_WORDS |= {"0.0": REAL, "1.0": FAKE, "-1.0": UNKNOWN}  # pandas' spelling, where a label of the column is missing
NUMBERS = {int, float}
LONGEST_NAME = 255  # bytes: no common file system holds a longer one


def read_clip_list(path: AnyPath) -> list[ClipMeta]:
    """Reads a clip list.

    Blanks at either end of a field do not count; a name that does begin or end with one is written `./ a.mp4` or
    `a.mp4 /`.

    Args:
      path: a CSV file, delimited by commas, semicolons or tabs, whose header names at least `path`; also read, where
        present: `label` (0 or real, 1 or fake, -1 or empty = unknown), `category`, `split`, `identity`,
        `fake_segments` (JSON: [[start, end], ...], seconds).

    Returns:
      The clips, in the file's order.

    Raises:
      UserError: naming the file and, where there is one, the line at fault.
    """
    clips: list[ClipMeta] = []
    lines: dict[str, int] = {}
    for line, row in read_table(path, CLIP_COLUMNS, ("path",), UNREAD_COLUMNS):
        try:
            clip = _clip(row)
        except ValueError as error:
            raise UserError(f"{path}, line {line}: {error}") from None
        if (first := lines.setdefault(clip.path, line)) != line:
            raise UserError(f"{path}, line {line}: {clip.path!r} is also in line {first}; list each clip once")
        clips.append(clip)
    if not clips:
        raise UserError(f"{path}: holds no clip; list one a line")
    return clips


def clip_list_text(clips: Sequence[ClipMeta]) -> str:
    """A clip list in the form that `read_clip_list` reads."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CLIP_COLUMNS)
    for clip in clips:
        path = f"{'./' * clip.path.startswith(' ')}{clip.path}{'/' * clip.path.endswith(' ')}"
        segments = json.dumps(clip.segments) if clip.segments else ""
        writer.writerow([path, clip.label, clip.category, clip.split, clip.identity, segments])
    return text.getvalue()


def inside(root: str | os.PathLike, path: str, suffix: str | None = None) -> Path:
    """The file of a clip below a folder.

    Where no file has exactly this name, one counts that differs only as lists from other systems do: in Unicode form
    (NFC, NFD), in blanks at the ends of names, in backslashes for slashes.

    Args:
      root: the folder.
      path: of the clip.
      suffix: in place of the clip's own (".npz", "_roi.mp4").

    Raises:
      ClipError: the path does not name a place below the folder.
    """
    try:
        file = Path(root) / check_path(path)
    except ValueError as error:
        raise ClipError("path", str(error)) from None
    file = file if suffix is None else file.with_name(file.stem + suffix)
    with contextlib.suppress(OSError):  # of names too long, or folders without permission: whoever opens it will say
        if not file.exists():
            return _as_stored(Path(root), file.relative_to(root)) or file
    return file


def plain_path(path: str) -> str:
    """A clip's path without the differences that `inside` overlooks: clips that share it may share a file."""
    return "/".join(map(_plain, path.replace("\\", "/").split("/")))


def near_name(file: str | os.PathLike) -> str:
    """Ends a message on a missing file: a question that names its likeliest other spelling (case), or ""."""
    missing = Path(str(file).replace("\\", "/"))
    with contextlib.suppress(OSError):
        while not missing.parent.exists():
            missing = missing.parent
        for name in _namesakes(missing.parent, missing.name):
            if name != missing.name:
                return f"; did you mean {name!r}?"
    return ""


def rows_by_ending(paths: Sequence[str], names: Iterable[str]) -> dict[str, list[int]]:
    """Finds the paths that each of some names means: the equal one, else those that end with it after some folders.

    Returns:
      The rows in `paths` by name; names that mean none are left out.
    """
    wanted = set(names)  # a set of clips has several endings for each
    exact: dict[str, list[int]] = {}
    longer: dict[str, list[int]] = {}
    for row, path in enumerate(paths):
        if path in wanted:
            exact.setdefault(path, []).append(row)
        for ending in path_endings(path):
            if ending in wanted:
                longer.setdefault(ending, []).append(row)
    return longer | exact


def path_endings(path: str) -> Iterator[str]:
    """Yields a path without its first folder, without its first two, and so on: b/c.mp4 and c.mp4 of a/b/c.mp4."""
    while "/" in path:
        path = path.partition("/")[2]
        yield path


def check_path(path: str) -> str:
    """Returns a clip's path if it names a place below its root.

    Raises:
      ValueError: the path is empty, absolute or a URL, climbs out by `..`, or holds characters that do not print.
    """
    if not path:
        raise ValueError("the clip's path is empty")
    if character := unprintable(path):
        raise ValueError(f"the clip's path {path!r} holds {character}; take it out, or rename the file")
    if path.startswith(("/", "\\")) or ".." in PurePosixPath(path.replace("\\", "/")).parts:
        raise ValueError(f"the clip's path {path!r} leaves its folder; paths are relative and go down only")
    if "://" in path:
        raise ValueError(f"the clip's path {path!r} is a URL; fetch the file, and list its path")
    if not PurePosixPath(path).name:
        raise ValueError(f"the clip's path {path!r} names no file")
    if any(len(name.encode()) > LONGEST_NAME for name in path.split("/")):
        raise ValueError(f"the clip's path {reprlib.repr(path)} has a name of more than {LONGEST_NAME} bytes")
    return path


def check_segments(name: str, value: object) -> tuple[tuple[float, float], ...]:
    """Fake stretches out of parsed JSON, in seconds.

    Raises:
      ValueError: they are not [[start, end], ...] with 0 <= start <= end.
    """
    if type(value) is not list or not all(
        type(pair) is list and len(pair) == 2 and {*map(type, pair)} <= NUMBERS for pair in value
    ):
        raise ValueError(f"{name} {reprlib.repr(value)} is not of the form [[start, end], ...]; correct it")
    if not all(0 <= start <= end <= sys.float_info.max for start, end in value):
        raise ValueError(f"{name} {reprlib.repr(value)} must have 0 <= start <= end, in seconds; correct it")
    return tuple((float(start), float(end)) for start, end in value)


def refuse_shared_names(clips: Sequence[ClipMeta]) -> None:
    """Refuses clips that differ in their suffix alone, where another suffix takes its place (x.mp4 means x.npz).

    Raises:
      UserError: naming the two.
    """
    seen: dict[str, str] = {}
    for clip in clips:
        if (other := seen.setdefault(str(PurePosixPath(clip.path).with_suffix("")), clip.path)) != clip.path:
            raise UserError(f"the list names {other!r} and {clip.path!r}, which would both be read from the same file")


def shift_segments(segments: Sequence[tuple[float, float]], seconds: float) -> tuple[tuple[float, float], ...]:
    """Segments on a timeline that starts `seconds` later; what lay before is gone."""
    if not seconds:
        return tuple(segments)
    return tuple((max(start - seconds, 0.0), end - seconds) for start, end in segments if end > seconds)


def _clip(row: dict[str, str]) -> ClipMeta:
    """One row as a clip; a ValueError says what is wrong with it."""
    text = {name: row.get(name, "") for name in ("category", "split", "identity")}
    for name, value in text.items():
        if character := unprintable(value):
            raise ValueError(f"{name} {value!r} holds {character}; take it out")
    if (label := row.get("label", "").casefold()) not in LABEL_WORDS:
        raise ValueError(f"label {row['label']!r} is not one of 0 (real), 1 (fake), -1 (unknown); correct it")
    listed = row.get("fake_segments", "")
    try:
        value = json.loads(listed or "[]")
    except (ValueError, RecursionError):
        raise ValueError(f"fake_segments {reprlib.repr(listed)} is not JSON: [[start, end], ...]; correct it") from None
    segments = check_segments("fake_segments", value)
    if segments and LABEL_WORDS[label] == REAL:
        raise ValueError("has fake_segments, but is labelled real; correct one of them")
    # One spelling: "./a.mp4" is "a.mp4".
    path = str(PurePosixPath(check_path(row["path"])))
    return ClipMeta(path, LABEL_WORDS[label], text["category"], text["split"], text["identity"], segments=segments)


def _as_stored(root: Path, path: Path) -> Path | None:
    """The only file below a folder whose path differs only in the ways that `inside` allows."""
    found = root
    for part in path.as_posix().replace("\\", "/").split("/"):
        if not (found / part).exists():
            names = [name for name in _namesakes(found, part) if _plain(name) == _plain(part)]
            if len(names) != 1:
                return None
            part = names[0]
        found /= part
    return found


def _namesakes(folder: Path, name: str) -> list[str]:
    """The names in a folder that differ from this one at most in case, Unicode form and blanks at the ends."""
    return _listing(folder, folder.stat().st_mtime_ns).get(_plain(name).casefold(), [])


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name).strip()


@functools.lru_cache(maxsize=8)
def _listing(folder: Path, changed: int) -> dict[str, list[str]]:
    """The names in a folder by their plain form without case; read again only once it has changed."""
    names: dict[str, list[str]] = {}
    for name in os.listdir(folder):  # noqa: PTH208 (names, not paths)
        names.setdefault(_plain(name).casefold(), []).append(name)
    return names
