"""A clip list before it is extracted: its counts, and whether its files are there."""

import collections
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from extract.clips import inside
from extract.schema import FAKE, REAL, ClipMeta

LABEL_NAMES = {REAL: "real", FAKE: "fake"}  # else unknown
SUFFIXES = {"media": (None,), "roi": ("_roi.mp4", ".wav")}  # files of a clip, by --input
SHOWN = 20  # missing files that are named


def count_clips(clips: Sequence[ClipMeta]) -> str:
    """A table of clips by split, category and label."""
    counts = collections.Counter(
        (clip.split or "-", clip.category or "-", LABEL_NAMES.get(clip.label, "unknown")) for clip in clips
    )
    lines = [f"{'split':<10} {'category':<22} {'label':<8} {'clips':>10}"]
    lines += [f"{split:<10} {kind:<22} {label:<8} {n:>10,}" for (split, kind, label), n in sorted(counts.items())]
    lines.append(f"{'':<42} {len(clips):>10,}")
    if segments := sum(len(clip.segments) for clip in clips):
        lines.append(f"{segments:,} fake segments; {len({clip.identity for clip in clips} - {''}):,} speakers named")
    return "\n".join(lines)


def clip_files(clips: Sequence[ClipMeta], root: str | os.PathLike, kind: str = "media") -> Iterator[Path]:
    """Yields the files of the clips, whether they exist or not.

    Args:
      clips: the clip list.
      root: the folder that their paths are relative to.
      kind: "media" or "roi", as extraction reads them.
    """
    return (inside(root, clip.path, suffix) for clip in clips for suffix in SUFFIXES[kind])


def missing_files(clips: Sequence[ClipMeta], root: str | os.PathLike, kind: str = "media") -> Iterator[Path]:
    """Files of the clips, as by `clip_files`, that are not there."""
    return (file for file in clip_files(clips, root, kind) if not file.is_file())


def format_missing(missing: Sequence[Path]) -> str:
    """The missing files in words."""
    if not missing:
        return "every file is there"
    more = [f"... and {len(missing) - SHOWN:,} more"] if len(missing) > SHOWN else []
    return "\n".join([f"{len(missing):,} files are missing:", *map(str, missing[:SHOWN]), *more])
