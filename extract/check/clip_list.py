"""Checks of a clip list before extraction: counts, missing files and contradictions."""

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

LABEL_NAMES = {REAL: "real", FAKE: "fake"}  # all others are unknown
INPUT_SUFFIXES = {"media": (None,), "roi": ("_roi.mp4", ".wav")}  # files of a clip, by --input
SHOWN_FILES = 20  # missing files listed by name
REAL_KIND, *FAKE_KINDS = LETTERS.values()  # categories that determine the label of their clips


def count_clips(clips: Sequence[ClipMeta]) -> str:
    """Returns a table of the number of clips by split, category and label."""
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
      root: folder of the clips' paths.
      kind: "media" or "roi", as in `PrepareSettings.input`.
    """
    return (inside(root, clip.path, suffix) for clip in clips for suffix in INPUT_SUFFIXES[kind])


def missing_files(clips: Sequence[ClipMeta], root: str | os.PathLike, kind: str = "media") -> Iterator[Path]:
    """Yields those files of `clip_files` that do not exist."""
    return (file for file in clip_files(clips, root, kind) if not file.is_file())


def format_missing(missing: Sequence[Path]) -> str:
    """Returns a message that lists the first missing files."""
    if not missing:
        return "all files exist"
    more = [f"... and {len(missing) - SHOWN_FILES:,} more"] if len(missing) > SHOWN_FILES else []
    shown = [printable(f"{file}{near_name(file)}") for file in missing[:SHOWN_FILES]]
    return "\n".join([f"{len(missing):,} files are missing:", *shown, *more])


def warn_of_contradictions(clips: Sequence[ClipMeta]) -> None:
    """Prints the number of clips with each kind of contradiction; the clips are kept unchanged."""
    fakes = [clip for clip in clips if clip.label == FAKE]
    located = any(clip.segments for clip in fakes)
    seen: dict[str, str] = {}
    for what, found in {
        "have the same path as another clip except for Unicode form, blanks or backslashes": (
            clip for clip in clips if seen.setdefault(plain_path(clip.path), clip.path) != clip.path
        ),
        "have fake segments that overlap": filter(_overlapping, clips),
        f"are labelled fake, but have category {REAL_KIND}": (clip for clip in fakes if clip.category == REAL_KIND),
        f"are labelled real, but have category {', '.join(FAKE_KINDS[:-1])} or {FAKE_KINDS[-1]}": (
            clip for clip in clips if clip.label == REAL and clip.category in FAKE_KINDS
        ),
        "are labelled fake without fake segments, unlike others": (c for c in fakes if located and not c.segments),
    }.items():
        if paths := [clip.path for clip in found]:
            warn(f"{len(paths):,} clips {what}; the first is {paths[0]!r}")


def _overlapping(clip: ClipMeta) -> bool:
    segments = sorted(clip.segments)
    return any(end > start for (_, end), (start, _) in itertools.pairwise(segments))
