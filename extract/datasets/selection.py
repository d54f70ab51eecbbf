"""AVH-Align's own lists: which clips of a data set its experiments use, in which order."""

import collections
import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence, Set
from pathlib import Path, PurePosixPath

from avh_shards import FAKE, REAL, UNKNOWN, ClipMeta, read_table
from avh_shards.clip_list import check_path
from extract.datasets.common import LETTERS, choice, collect, field

COLUMNS = ("path", "label", "category", "full_path")
UNREAD = ("source", "num_frames")
LABELS = {"0": REAL, "1": FAKE}
LETTER_LABELS = {letter: REAL if letter == "A" else FAKE for letter in LETTERS}


def select(clips: Sequence[ClipMeta], list_path: str | os.PathLike) -> list[ClipMeta]:
    """Keeps the clips that a list names.

    Args:
      clips: of a data set.
      list_path: a CSV file of AVH-Align: `path,label[,num_frames]`, or `source,category,full_path`, where category A
        is real. Its paths may have leading folders more or fewer than the clips, and `.npz` for `.mp4`.

    Returns:
      The clips, in the list's order, each once, with all that the data set says of them; where it does not know the
      label, with the list's.

    Raises:
      UserError: the list is wrong, or names no clip, several, or one of another label.
    """
    path = Path(list_path)
    rows = [(f"{path}, line {line}", row) for line, row in read_table(path, COLUMNS, (), UNREAD)]
    find = _finder(clips, {_name(row) for _, row in rows})
    return collect(path, rows, lambda row: _chosen(find, row))


def _name(row: dict[str, str]) -> str:
    """The path that a row names, as the data sets have it; "." if it names none."""
    path = PurePosixPath(row.get(_column(row), ""))
    return str(path.with_suffix(".mp4") if path.suffix == ".npz" else path)


def _column(row: dict[str, str]) -> str:
    """The column of paths."""
    return "full_path" if "full_path" in row else "path"


def _chosen(find: Callable[[str], ClipMeta], row: dict[str, str]) -> ClipMeta:
    """The clip of a row."""
    check_path(field(row, _column(row), str))
    clip = find(_name(row))
    label = choice(row, "category", LETTER_LABELS) if "full_path" in row else choice(row, "label", LABELS)
    if clip.label not in (UNKNOWN, label):
        raise ValueError(f"labels {clip.path!r} {label}, but the data set {clip.label}; take the list of this data set")
    return clip if clip.label == label else dataclasses.replace(clip, label=label)


def _finder(clips: Sequence[ClipMeta], names: Set[str]) -> Callable[[str], ClipMeta]:
    """A function from a listed path to its clip; the longest agreement counts."""
    exact = {clip.path: clip for clip in clips}
    longer = collections.defaultdict(list)  # only for what is listed: a set has several endings a clip
    for clip in clips:
        for ending in _endings(clip.path):
            if ending in names:
                longer[ending].append(clip)

    def find(name: str) -> ClipMeta:
        if name in exact:
            return exact[name]
        found = longer.get(name) or [exact[ending] for ending in _endings(name) if ending in exact][:1]
        if not found:
            raise ValueError(f"{name!r} is no clip of the data set; take the list of this data set, or other splits")
        if len(found) > 1:
            raise ValueError(f"{name!r} may be {found[0].path!r} or {found[1].path!r}; choose one split")
        return found[0]

    return find


def _endings(path: str) -> Iterator[str]:
    """The path without its first folder, without its first two, and so on."""
    while "/" in path:
        path = path.partition("/")[2]
        yield path
