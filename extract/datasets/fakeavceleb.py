"""FakeAVCeleb: one CSV file, as released (file name in `path`, unnamed folder column) or with renamed columns."""

import functools
from pathlib import Path

from avh_shards import ClipMeta
from avh_shards.clip import FAKE, REAL
from avh_shards.lists import read_table
from extract.datasets import common

TOP_FOLDER = "FakeAVCeleb"  # prefix of every folder in the metadata, missing from some copies of the data set
UNNAMED = ("Unnamed: 9", "")  # header of the released folder column: pandas' default name, or empty
METADATA_COLUMNS = ("source", "category", "type", "path", "filename", *UNNAMED)
FAKEAVCELEB_UNREAD = ("target1", "target2", "method", "race", "gender")


def read_fakeavceleb(root: Path, splits: tuple[str, ...] = ()) -> list[ClipMeta]:
    """Reads FakeAVCeleb.

    Args:
      root: folder of `meta_data.csv` and of either `FakeAVCeleb` or its contents (`RealVideo-RealAudio`, ...).
      splits: must be empty, since FakeAVCeleb has no splits.

    Returns:
      The clips in the order of the metadata; of several rows for the same file, the first.

    Raises:
      UserError: a split is named, or the metadata is missing or invalid.
    """
    common.check_splits("fakeavceleb", splits, ())
    metadata = root / "meta_data.csv"
    stripped = "" if (root / TOP_FOLDER).is_dir() else f"{TOP_FOLDER}/"
    rows = read_table(metadata, METADATA_COLUMNS, (), FAKEAVCELEB_UNREAD, common.REMEDY)
    entries = ((f"{metadata}, line {line}", row) for line, row in rows)
    return common.collect(metadata, entries, functools.partial(_clip, stripped))


def _clip(stripped: str, row: dict[str, str]) -> ClipMeta:
    """Converts a metadata row to a clip."""
    kind = common.choice(row, "category", common.LETTERS)
    if common.field(row, "type", str) != kind:
        raise ValueError(f"category {row['category']!r} means {kind}, but type is {row['type']!r}; correct one of them")
    folder, file = _folder_and_file(row)
    return ClipMeta(
        path=common.clip_path(folder.removeprefix(stripped), file),
        label=REAL if row["category"] == "A" else FAKE,
        category=kind,
        identity=common.field(row, "source", str),
    )


def _folder_and_file(row: dict[str, str]) -> tuple[str, str]:
    """Returns folder and file name from either layout of the metadata."""
    if "filename" in row:
        return common.field(row, "path", str), row["filename"]
    unnamed = next((name for name in UNNAMED if name in row), UNNAMED[0])
    return common.field(row, unnamed, str), common.field(row, "path", str)
