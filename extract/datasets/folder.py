"""Any folder of media files, without labels."""

import collections
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from avh_shards import ClipMeta
from avh_shards.text import warn
from extract.datasets import common

# Suffixes of files that FFmpeg opens as video. FFmpeg's own format names would include sound, pictures, subtitles and
# text, and lack many of these; probing every file would take as long as decoding.
CONTAINERS = """3g2 3gp 3gpp amv asf avi bik dav dif divx dv dvd f4v flv gif gxf ifv ismv lrv m2t m2ts m4v mj2 mk3d mkv
mov mp4 mpe mpeg mpg mpv mts mxf nut ogm ogv psp qt rm rmvb swf tod trp ts vob webm wmv wtv"""
STREAMS = "264 265 266 avc h261 h263 h264 h265 h266 h26l hevc ivf m1v m2v mjpeg mjpg obu vc1 vvc y4m"
MEDIA_SUFFIXES = frozenset(f".{name}" for name in f"{CONTAINERS} {STREAMS}".split())


def read_folder(root: Path, splits: tuple[str, ...] = ()) -> list[ClipMeta]:
    """Lists the media files below a folder, without hidden files and linked folders.

    Warnings on standard error name each media file with an unusable name, and count files of other kinds.

    Args:
      root: folder to search.
      splits: must be empty, since a folder has no splits.

    Returns:
      The clips, sorted by path with numbers as numbers, all with unknown label.

    Raises:
      UserError: a split is named, or the folder cannot be listed or has no media files.
    """
    common.check_splits("folder", splits, ())
    return common.collect(root, ((f"{root}", path) for path in _media_files(root)), ClipMeta)


def _media_files(root: Path) -> Iterator[str]:
    """Yields the paths of the media files."""
    others: collections.Counter[str] = collections.Counter()
    for file in common.list_files(root, ("",)):
        suffix = PurePosixPath(file).suffix.lower()
        if suffix not in MEDIA_SUFFIXES:
            others[suffix or "without a suffix"] += 1
            continue
        try:
            yield common.clip_path(file)
        except ValueError as error:
            warn(f"{root}: left out: {error}")
    if others:
        kinds = ", ".join(f"{kind} ({count})" for kind, count in others.most_common())
        warn(f"{root}: left out: {others.total()} files of other kinds: {kinds}")
