"""A clip list before it is extracted: its counts, and whether its files are there."""

import collections
import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from avh_shards import ClipMeta
from avh_shards.clip import FAKE, REAL
from avh_shards.clip_list import inside, near_name, plain_path
from avh_shards.text import printable, warn
from extract.datasets.common import LETTERS

LABEL_NAMES = {REAL: "real", FAKE: "fake"}  # else unknown
INPUT_SUFFIXES = {"media": (None,), "roi": ("_roi.mp4", ".wav")}  # files of a clip, by --input
SHOWN_FILES = 20  # missing files that are named
REAL_KIND, *FAKE_KINDS = LETTERS.values()  # categories that say which label their clips have


def count_clips(clips: Sequence[ClipMeta]) -> str:
    """A table of clips by split, category and label."""
    counts = collections.Counter(
        (clip.split or "-", clip.category or "-", LABEL_NAMES.get(clip.label, "unknown")) for clip in clips
    )
    lines = [f"{'split':<10} {'category':<22} {'label':<8} {'clips':>10}"]
    for (split, kind, label), n in sorted(counts.items()):
        lines.append(f"{printable(split):<10} {printable(kind):<22} {label:<8} {n:>10,}")
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
    return (inside(root, clip.path, suffix) for clip in clips for suffix in INPUT_SUFFIXES[kind])


def missing_files(clips: Sequence[ClipMeta], root: str | os.PathLike, kind: str = "media") -> Iterator[Path]:
    """Files of the clips, as by `clip_files`, that are not there."""
    return (file for file in clip_files(clips, root, kind) if not file.is_file())


def format_missing(missing: Sequence[Path]) -> str:
    """The missing files in words."""
    if not missing:
        return "every file is there"
    more = [f"... and {len(missing) - SHOWN_FILES:,} more"] if len(missing) > SHOWN_FILES else []
    shown = [printable(f"{file}{near_name(file)}") for file in missing[:SHOWN_FILES]]
    return "\n".join([f"{len(missing):,} files are missing:", *shown, *more])


def warn_of_contradictions(clips: Sequence[ClipMeta]) -> None:
    """Prints how many clips contradict themselves, for each way of doing so; they are kept as they are."""
    fakes = [clip for clip in clips if clip.label == FAKE]
    located = any(clip.segments for clip in fakes)
    seen: dict[str, str] = {}
    for what, found in {
        "have the path of another clip but for Unicode form, blanks or backslashes": (
            clip for clip in clips if seen.setdefault(plain_path(clip.path), clip.path) != clip.path
        ),
        "have fake segments that overlap": filter(_overlapping, clips),
        f"are labelled fake, but of category {REAL_KIND}": (clip for clip in fakes if clip.category == REAL_KIND),
        f"are labelled real, but of category {', '.join(FAKE_KINDS[:-1])} or {FAKE_KINDS[-1]}": (
            clip for clip in clips if clip.label == REAL and clip.category in FAKE_KINDS
        ),
        "are labelled fake without fake segments, unlike others": (c for c in fakes if located and not c.segments),
    }.items():
        if paths := [clip.path for clip in found]:
            warn(f"{len(paths):,} clips {what}; the first is {paths[0]!r}")


def _overlapping(clip: ClipMeta) -> bool:
    segments = sorted(clip.segments)
    return any(end > start for (_, end), (start, _) in itertools.pairwise(segments))
