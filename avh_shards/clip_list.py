"""Clip lists: CSV files that name clips, validated line by line, and the lookup of the file that a path names."""

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
UNREAD_COLUMNS = ("num_frames",)  # columns of AVH-Align's own lists that are ignored without a warning
MAX_FRAMES = 15_000  # per clip, 10 minutes: the encoder processes a clip in one piece, memory permitting
LABEL_WORDS = {"0": REAL, "1": FAKE, "-1": UNKNOWN, "": UNKNOWN, "real": REAL, "fake": FAKE, "unknown": UNKNOWN}
LABEL_WORDS |= {"0.0": REAL, "1.0": FAKE, "-1.0": UNKNOWN}  # pandas writes floats if any label is missing
NUMBERS = {int, float}
LONGEST_NAME = 255  # bytes, the limit of common file systems


def read_clip_list(path: AnyPath) -> list[ClipMeta]:
    """Reads and validates a clip list.

    Blanks around a field are stripped; write a name that really begins or ends with one as `./ a.mp4` or `a.mp4 /`.

    Args:
      path: a CSV file, local or at a URL, delimited by commas, semicolons, tabs or bars, whose header has the column
        `path`. Optional columns: `label` (0 or real, 1 or fake, -1 or empty = unknown), `category`, `split`,
        `identity`, `fake_segments` (JSON: [[start, end], ...], seconds). Other columns are not read.

    Returns:
      The clips, in the file's order.

    Raises:
      UserError: the file cannot be read, lists no clips, or has an invalid line, which the message names.
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
        raise UserError(f"{path}: lists no clips; add one per line")
    return clips


def clip_list_text(clips: Sequence[ClipMeta]) -> str:
    """Formats clips as a CSV file that `read_clip_list` reads."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CLIP_COLUMNS)
    for clip in clips:
        path = f"{'./' * clip.path.startswith(' ')}{clip.path}{'/' * clip.path.endswith(' ')}"
        segments = json.dumps(clip.segments) if clip.segments else ""
        writer.writerow([path, clip.label, clip.category, clip.split, clip.identity, segments])
    return text.getvalue()


def inside(root: str | os.PathLike, path: str, suffix: str | None = None) -> Path:
    """Returns the file of a clip below a folder, whether or not it exists.

    If no file has exactly this name, the only one is used that differs just in the ways in which lists from other
    systems do: in Unicode form (NFC, NFD), in blanks at the ends of names, or in backslashes instead of slashes.

    Args:
      root: the folder.
      path: path of the clip, relative to the folder.
      suffix: replaces the clip's own suffix (".npz", "_roi.mp4").

    Raises:
      ClipError: the path does not name a place below the folder.
    """
    try:
        file = Path(root) / check_path(path)
    except ValueError as error:
        raise ClipError("path", str(error)) from None
    file = file if suffix is None else file.with_name(file.stem + suffix)
    with contextlib.suppress(OSError):  # name too long, or no permission: reported when the file is opened
        if not file.exists():
            return _as_stored(Path(root), file.relative_to(root)) or file
    return file


def plain_path(path: str) -> str:
    """Normalises a clip's path as `inside` does: clips with the same result may share a file."""
    return "/".join(map(_plain, path.replace("\\", "/").split("/")))


def near_name(file: str | os.PathLike) -> str:
    """Returns "; did you mean NAME?" for a missing file if its folder has another spelling of the name, else "".

    The spellings may differ in case, Unicode form and blanks at the ends.
    """
    missing = Path(str(file).replace("\\", "/"))
    with contextlib.suppress(OSError):
        while not missing.parent.exists():
            missing = missing.parent
        for name in _namesakes(missing.parent, missing.name):
            if name != missing.name:
                return f"; did you mean {name!r}?"
    return ""


def rows_by_ending(paths: Sequence[str], names: Iterable[str]) -> dict[str, list[int]]:
    """Matches names to paths: to the equal path, or else to every path that ends with the name after some folders.

    Args:
      paths: the paths to search.
      names: relative paths, which may lack leading folders.

    Returns:
      The indices in `paths` that each name matches; names without a match are left out.
    """
    wanted = set(names)
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
    """Yields a path without its first folder, without its first two, and so on: b/c.mp4 and c.mp4 for a/b/c.mp4."""
    while "/" in path:
        path = path.partition("/")[2]
        yield path


def check_path(path: str) -> str:
    """Returns a clip's path if it names a place below its root.

    Raises:
      ValueError: the path is empty, absolute or a URL, contains `..` or unprintable characters, names no file, or has
        a name of more than LONGEST_NAME bytes.
    """
    if not path:
        raise ValueError("the clip's path is empty; fill it in")
    if character := unprintable(path):
        raise ValueError(f"the clip's path {path!r} holds {character}; remove it, or rename the file")
    if path.startswith(("/", "\\")) or ".." in PurePosixPath(path.replace("\\", "/")).parts:
        raise ValueError(f"the clip's path {path!r} leaves its folder; use a relative path without `..`")
    if "://" in path:
        raise ValueError(f"the clip's path {path!r} is a URL; download the file and list its path")
    if not PurePosixPath(path).name:
        raise ValueError(f"the clip's path {path!r} names no file; list a file")
    if any(len(name.encode()) > LONGEST_NAME for name in path.split("/")):
        raise ValueError(
            f"the clip's path {reprlib.repr(path)} has a name of more than {LONGEST_NAME} bytes; shorten it"
        )
    return path


def check_segments(name: str, value: object) -> tuple[tuple[float, float], ...]:
    """Returns fake segments from parsed JSON, in seconds.

    Args:
      name: what to call the value in an error message.
      value: the parsed JSON.

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
    """Rejects clips that differ only in their suffix, for inputs that replace the suffix (x.mp4 is read from x.npz).

    Raises:
      UserError: two clips would be read from the same file; the message names both.
    """
    seen: dict[str, str] = {}
    for clip in clips:
        if (other := seen.setdefault(str(PurePosixPath(clip.path).with_suffix("")), clip.path)) != clip.path:
            raise UserError(
                f"the list names {other!r} and {clip.path!r}, which would both be read from the same file; keep one"
            )


def shift_segments(segments: Sequence[tuple[float, float]], seconds: float) -> tuple[tuple[float, float], ...]:
    """Returns segments in seconds on a timeline that starts `seconds` later, without the parts before its start."""
    if not seconds:
        return tuple(segments)
    return tuple((max(start - seconds, 0.0), end - seconds) for start, end in segments if end > seconds)


def _clip(row: dict[str, str]) -> ClipMeta:
    """Returns a row as a clip; raises a ValueError if the row is invalid."""
    text = {name: row.get(name, "") for name in ("category", "split", "identity")}
    for name, value in text.items():
        if character := unprintable(value):
            raise ValueError(f"{name} {value!r} holds {character}; remove it")
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
    # Normalises the spelling: "./a.mp4" becomes "a.mp4".
    path = str(PurePosixPath(check_path(row["path"])))
    return ClipMeta(path, LABEL_WORDS[label], text["category"], text["split"], text["identity"], segments=segments)


def _as_stored(root: Path, path: Path) -> Path | None:
    """Returns the file below a folder whose path differs only in the ways that `inside` allows, if it is unique."""
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
    """Lists the names in a folder that differ from this one at most in case, Unicode form and blanks at the ends."""
    return _listing(folder, folder.stat().st_mtime_ns).get(_plain(name).casefold(), [])


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name).strip()


@functools.lru_cache(maxsize=8)
def _listing(folder: Path, changed: int) -> dict[str, list[str]]:
    """Lists the names in a folder by their normalised, case-folded form; `changed` is its mtime, a cache key."""
    names: dict[str, list[str]] = {}
    for name in os.listdir(folder):  # noqa: PTH208 (names, not paths)
        names.setdefault(_plain(name).casefold(), []).append(name)
    return names
