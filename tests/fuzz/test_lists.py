"""Fuzzing of clip lists, AVH-Align's lists and lists of test files: each returns clips or a one-line error."""

import math
import random
import tempfile
from pathlib import Path, PurePosixPath

import pytest

from avh_shards import ClipMeta, read_clip_list
from avh_shards.clip import FAKE, REAL, UNKNOWN
from avh_shards.clip_list import clip_list_text, inside
from avh_shards.lists import read_lines
from extract.check.clip_list import count_clips, format_missing, missing_files, warn_of_contradictions
from extract.datasets import select
from extract.datasets.common import of_splits
from tests.fuzz.campaign import campaign
from tests.fuzz.damage import damaged

CLIPS = [
    ClipMeta("a/é.mp4", REAL, "RealVideo-RealAudio", "train", "id1"),
    ClipMeta('b, "c".mp4', FAKE, "FakeVideo-RealAudio", "test", "id2", segments=((0.5, 1.25), (2.0, 3.0))),
    ClipMeta(" d .mp4 ", UNKNOWN),
]
LIST = clip_list_text(CLIPS)
LISTS = [LIST, LIST.replace(",", ";"), "path\tLabel\na.mp4\t0\n", "path , label\r\na.mp4, 1.0\r\n"]
OFFICIAL = "path,label,num_frames\na/é.npz,0,50\n", "source,category,full_path\nid1,A,x/a/é.mp4\n"


def read_damaged_list(number: int) -> None:
    """Reads a damaged list; its clips must be complete and survive a round trip."""
    chance = random.Random(number)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "list.csv")
        if number % 4 == 3:
            path.write_bytes(damaged(chance.choice(OFFICIAL).encode(), chance))
            assert {clip.path for clip in select(CLIPS, path)} <= {clip.path for clip in CLIPS}
            return
        path.write_bytes(damaged(chance.choice(LISTS).encode(), chance))
        if number % 4 == 2:
            assert all(text == text.strip() for _, text in read_lines(path))
            return
        clips = read_clip_list(path)
        check_clips(clips, Path(folder))
        path.write_text(clip_list_text(clips), encoding="utf-8")
        again = read_clip_list(path)
        assert clip_list_text(again) == clip_list_text(clips)


def check_clips(clips: list[ClipMeta], root: Path) -> None:
    """Asserts that clips are complete and that every use of them works."""
    for clip in clips:
        texts = (clip.path, clip.category, clip.split, clip.identity)
        assert all(text.isprintable() for text in texts)
        assert clip.path == str(PurePosixPath(clip.path))
        assert clip.label in (REAL, FAKE, UNKNOWN)
        assert all(0 <= start <= end < math.inf for start, end in clip.segments)
        assert inside(root, clip.path).resolve().is_relative_to(root.resolve())
    assert len({clip.path for clip in clips}) == len(clips)
    assert count_clips(clips)
    assert format_missing(list(missing_files(clips, root)))
    warn_of_contradictions(clips)
    of_splits("list", clips, sorted({clip.split for clip in clips} - {""}))


def test_damaged_lists():
    assert campaign(read_damaged_list, 200).keys() == {"read", "refused"}


@pytest.mark.slow
def test_many_damaged_lists():
    campaign(read_damaged_list, 10_000)
