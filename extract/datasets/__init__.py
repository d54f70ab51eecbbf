"""Readers of released data sets, one module each, that turn folders and metadata into clips.

This module looks up a data set by name, reads it, and applies AVH-Align's own lists of clips used in its experiments.
"""

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

from avh_shards import ClipMeta, UserError
from avh_shards.clip import FAKE, REAL, UNKNOWN
from avh_shards.clip_list import check_path, path_endings, rows_by_ending
from avh_shards.lists import read_table
from extract.datasets.av_deepfake1m import read_av_deepfake1m
from extract.datasets.avlips import read_avlips
from extract.datasets.common import LETTERS, choice, collect, field
from extract.datasets.fakeavceleb import read_fakeavceleb
from extract.datasets.folder import read_folder
from extract.datasets.lavdf import read_lavdf

Reader = Callable[[Path, tuple[str, ...]], list[ClipMeta]]

DATASETS: dict[str, Reader] = {
    "av_deepfake1m": read_av_deepfake1m,
    "fakeavceleb": read_fakeavceleb,
    "avlips": read_avlips,
    "lavdf": read_lavdf,
    "folder": read_folder,
}

SELECTION_COLUMNS = ("path", "label", "category", "full_path")
SELECTION_UNREAD = ("source", "num_frames")
SELECTION_LABELS = {"0": REAL, "1": FAKE}
LETTER_LABELS = {letter: REAL if letter == "A" else FAKE for letter in LETTERS}


def read_dataset(
    name: str,
    root: str | os.PathLike,
    splits: Sequence[str] = (),
    selection: str | os.PathLike | None = None,
) -> list[ClipMeta]:
    """Reads a data set in its released layout.

    Args:
      name: a key of DATASETS.
      root: folder of the data set; the clips' paths are relative to it.
      splits: names of splits, as in the data set; empty for all available ones.
      selection: one of AVH-Align's lists of clips; None for all clips.

    Returns:
      The clips without duplicate paths, in the order of the selection or else of the metadata.

    Raises:
      UserError: the data set, its folder or a split does not exist, or the metadata or selection is invalid.
    """
    if name not in DATASETS:
        raise UserError(f"{name!r} is not a known data set; choose from {', '.join(DATASETS)}")
    try:
        if not (root := Path(root)).is_dir():
            raise UserError(f"{root}: no such folder; name the folder of the data set")
        clips = DATASETS[name](root, tuple(splits))
    except OSError as error:  # from checking whether a file exists
        raise UserError(f"{error.filename}: cannot be read ({error.strerror}); name a readable folder") from None
    return clips if selection is None else select(clips, selection)


def select(clips: Sequence[ClipMeta], list_path: str | os.PathLike) -> list[ClipMeta]:
    """Selects the clips in one of AVH-Align's lists.

    Args:
      clips: clips of a data set.
      list_path: a CSV file of AVH-Align: `path,label[,num_frames]`, or `source,category,full_path`, where category A
        is real. Its paths may have more or fewer leading folders than the clips, and `.npz` instead of `.mp4`.

    Returns:
      The clips in the list's order, without duplicates, with the data set's records. Labels that the data set does not
      know are taken from the list.

    Raises:
      UserError: the list is invalid, or a path matches no clip, several clips, or a clip with a different label.
    """
    path = Path(list_path)
    rows = [(f"{path}, line {line}", row) for line, row in read_table(path, SELECTION_COLUMNS, (), SELECTION_UNREAD)]
    places = rows_by_ending([clip.path for clip in clips], {_name(row) for _, row in rows})
    exact = {clip.path: clip for clip in clips}

    def chosen(row: dict[str, str]) -> ClipMeta:
        check_path(field(row, _column(row), str))
        name = _name(row)
        meant = [clips[place] for place in places.get(name, [])]
        meant = meant or [exact[ending] for ending in path_endings(name) if ending in exact][:1]  # the longest
        if not meant:
            raise ValueError(f"{name!r} is not in the data set; use a list for this data set, or other splits")
        if len(meant) > 1:
            raise ValueError(f"{name!r} could be {meant[0].path!r} or {meant[1].path!r}; choose one split")
        clip = meant[0]
        label = choice(row, "category", LETTER_LABELS) if "full_path" in row else choice(row, "label", SELECTION_LABELS)
        if clip.label not in (UNKNOWN, label):
            named = f"labels {clip.path!r} {label}, but the data set {clip.label}"
            raise ValueError(f"{named}; use a list for this data set")
        return clip if clip.label == label else dataclasses.replace(clip, label=label)

    return collect(path, rows, chosen)


def _name(row: dict[str, str]) -> str:
    """Returns the path in a row with the data sets' suffix `.mp4`; "." if the row has none."""
    path = PurePosixPath(row.get(_column(row), ""))
    return str(path.with_suffix(".mp4") if path.suffix == ".npz" else path)


def _column(row: dict[str, str]) -> str:
    """Returns the name of the column with paths."""
    return "full_path" if "full_path" in row else "path"
