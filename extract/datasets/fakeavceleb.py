"""FakeAVCeleb: one CSV file, as released (file name in `path`, folder unnamed) or with its columns renamed."""

import functools
from pathlib import Path

from avh_shards import ClipMeta
from avh_shards.clip import FAKE, REAL
from avh_shards.lists import read_table
from extract.datasets.common import LETTERS, REMEDY, check_splits, choice, clip_path, collect, field

TOP_FOLDER = "FakeAVCeleb"  # stands before every folder of the metadata, but is not in every copy of the data set
UNNAMED = ("Unnamed: 9", "")  # the released column of folders: pandas' name for it, and none
METADATA_COLUMNS = ("source", "category", "type", "path", "filename", *UNNAMED)
FAKEAVCELEB_UNREAD = ("target1", "target2", "method", "race", "gender")


def read_fakeavceleb(root: Path, splits: tuple[str, ...] = ()) -> list[ClipMeta]:
    """Reads FakeAVCeleb.

    Args:
      root: folder of `meta_data.csv` and of either `FakeAVCeleb` or what is in it (`RealVideo-RealAudio`, ...).
      splits: none, since it has none.

    Returns:
      The clips, in the metadata's order; of several rows of one file, the first.

    Raises:
      UserError: a split is named, or the metadata is wrong.
    """
    check_splits("fakeavceleb", splits, ())
    metadata = root / "meta_data.csv"
    stripped = "" if (root / TOP_FOLDER).is_dir() else f"{TOP_FOLDER}/"
    rows = read_table(metadata, METADATA_COLUMNS, (), FAKEAVCELEB_UNREAD, REMEDY)
    entries = ((f"{metadata}, line {line}", row) for line, row in rows)
    return collect(metadata, entries, functools.partial(_clip, stripped))


def _clip(stripped: str, row: dict[str, str]) -> ClipMeta:
    """A row as a clip."""
    kind = choice(row, "category", LETTERS)
    if field(row, "type", str) != kind:
        raise ValueError(f"category {row['category']!r} means {kind}, but type is {row['type']!r}; correct one of them")
    folder, file = _folder_and_file(row)
    return ClipMeta(
        path=clip_path(folder.removeprefix(stripped), file),
        label=REAL if row["category"] == "A" else FAKE,
        category=kind,
        identity=field(row, "source", str),
    )


def _folder_and_file(row: dict[str, str]) -> tuple[str, str]:
    """Returns folder and file name, out of either shape of the metadata."""
    if "filename" in row:
        return field(row, "path", str), row["filename"]
    unnamed = next((name for name in UNNAMED if name in row), UNNAMED[0])
    return field(row, unnamed, str), field(row, "path", str)
