"""Any folder of media files, without labels."""

from pathlib import Path

from extract.datasets.common import check_splits, clip_path, collect
from extract.datasets.files import list_files
from extract.schema import ClipMeta

SUFFIXES = (".mp4", ".mkv", ".avi", ".mov", ".webm", ".mpg", ".mpeg", ".m4v", ".flv", ".ts", ".wmv")


def read_folder(root: Path, splits: tuple[str, ...] = ()) -> list[ClipMeta]:
    """Lists the media files below a folder; hidden ones and linked folders are left out.

    Args:
      root: the folder.
      splits: none, since it has none.

    Returns:
      The clips, sorted by path with numbers as numbers, all of unknown label.

    Raises:
      InputError: a split is named, the folder cannot be listed or holds no media file.
    """
    check_splits("folder", splits, ())
    files = list_files(root, SUFFIXES)
    return collect(root, ((f"{root}", file) for file in files), lambda file: ClipMeta(clip_path(file)))
