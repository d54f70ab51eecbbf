"""Clip lists: which clips there are, read from a CSV file and checked line by line."""

import csv
import dataclasses
import io
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from extract.schema import FAKE, REAL, UNKNOWN, ClipMeta, InputError, place
from extract.schema.files import AnyPath, Place

COLUMNS = ("path", "label", "category", "split", "identity", "fake_segments")
LABELS = {"0": REAL, "1": FAKE, "-1": UNKNOWN, "": UNKNOWN, "real": REAL, "fake": FAKE}


class ClipError(InputError):
    """A clip that cannot be used: the stage at which that showed, and the reason in one sentence."""

    def __init__(self, stage: str, reason: str):
        super().__init__(reason)
        self.stage, self.reason = stage, reason

    def __reduce__(self):
        return ClipError, (self.stage, self.reason)


@dataclasses.dataclass(frozen=True)
class Failure:
    """A clip of the list that is in no shard, and why."""

    path: str
    stage: str
    reason: str


def read_clip_list(path: AnyPath) -> list[ClipMeta]:
    """Reads a clip list.

    Args:
      path: a CSV file whose header names at least `path`; also read, where present: `label` (0 or real, 1 or fake,
        -1 or empty = unknown), `category`, `split`, `identity`, `fake_segments` (JSON: [[start, end], ...], seconds).

    Returns:
      The clips, in the file's order.

    Raises:
      InputError: naming the file and the line at fault.
    """
    clips, lines = [], {}
    for line, row in _rows(place(path)):
        try:
            clip = _clip(row)
        except ValueError as error:
            raise InputError(f"{path}, line {line}: {error}") from None
        if (first := lines.setdefault(clip.path, line)) != line:
            raise InputError(f"{path}, line {line}: {clip.path!r} stands in line {first} too; list each clip once")
        clips.append(clip)
    if not clips:
        raise InputError(f"{path}: the list holds no clip")
    return clips


def clip_list_text(clips: Sequence[ClipMeta]) -> str:
    """A clip list in the form that `read_clip_list` reads."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for clip in clips:
        segments = json.dumps(clip.segments) if clip.segments else ""
        writer.writerow([clip.path, clip.label, clip.category, clip.split, clip.identity, segments])
    return text.getvalue()


def inside(root: str | os.PathLike, path: str, suffix: str | None = None) -> Path:
    """The file of a clip below `root`, with another suffix (".npz", "_roi.mp4") if one is given."""
    file = Path(root) / check_path(path)
    return file if suffix is None else file.with_name(file.stem + suffix)


def check_path(path: str) -> str:
    """Returns a clip's path if it names a place below its root.

    Raises:
      ValueError: the path is empty, absolute, climbs out by `..`, or holds control characters.
    """
    if not path or not path.isprintable():
        raise ValueError(f"the clip's path {path!r} is empty or unprintable")
    if path.startswith(("/", "\\")) or ".." in PurePosixPath(path.replace("\\", "/")).parts:
        raise ValueError(f"the clip's path {path!r} leaves its folder; paths are relative and go down only")
    if not PurePosixPath(path).name:
        raise ValueError(f"the clip's path {path!r} names no file")
    return path


def refuse_shared_names(clips: Sequence[ClipMeta]) -> None:
    """Refuses clips that differ in their suffix alone, where another suffix takes its place (x.mp4 means x.npz).

    Raises:
      InputError: naming the two.
    """
    seen: dict[str, str] = {}
    for clip in clips:
        if (other := seen.setdefault(str(PurePosixPath(clip.path).with_suffix("")), clip.path)) != clip.path:
            raise InputError(f"the list names {other!r} and {clip.path!r}, which would both be read from the same file")


def shift_segments(segments: Sequence[tuple[float, float]], seconds: float) -> tuple[tuple[float, float], ...]:
    """Segments on a timeline that starts `seconds` later; what lay before is gone."""
    if not seconds:
        return tuple(segments)
    return tuple((max(start - seconds, 0.0), end - seconds) for start, end in segments if end > seconds)


def _rows(path: Place):
    """(line number, row) of a CSV file with a `path` column."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            if "path" not in (reader.fieldnames or ()):
                raise InputError(f"{path}: no column `path` in its header {reader.fieldnames or []}")
            for row in reader:
                yield reader.line_num, row
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: not a readable CSV file ({error})") from None


def _clip(row: dict[str, str | None]) -> ClipMeta:
    """One row as a clip; a ValueError says what is wrong with it."""
    if None in row or None in row.values():
        raise ValueError("has another number of fields than the header")
    text = {name: (row.get(name) or "").strip() for name in ("label", "category", "split", "identity", "fake_segments")}
    if unprintable := [name for name, value in text.items() if not value.isprintable()]:
        raise ValueError(f"{unprintable[0]} {text[unprintable[0]]!r} holds control characters")
    if text["label"].lower() not in LABELS:
        raise ValueError(f"label {text['label']!r} is none of 0, 1, -1")
    return ClipMeta(
        path=str(PurePosixPath(check_path(row["path"]))),  # one spelling: "./a.mp4" is "a.mp4"
        label=LABELS[text.pop("label").lower()],
        segments=_segments(text.pop("fake_segments")),
        **text,
    )


def _segments(text: str) -> tuple[tuple[float, float], ...]:
    """Fake stretches out of their JSON form."""
    try:
        segments = tuple((start + 0.0, end + 0.0) for start, end in json.loads(text or "[]"))
    except (ValueError, TypeError, OverflowError, RecursionError):
        raise ValueError(f"fake_segments {text!r} is not JSON of the form [[start, end], ...]") from None
    if any(not 0 <= start <= end < math.inf for start, end in segments):
        raise ValueError(f"fake_segments {text!r} must have 0 <= start <= end, in seconds")
    return segments
