"""AV-Deepfake1M and AV-Deepfake1M++: one JSON list per split or JSON file per clip; the test split has no labels."""

import functools
from collections.abc import Iterator
from pathlib import Path

from avh_shards import ClipMeta, UserError
from avh_shards.clip import FAKE, REAL, speaker_of
from avh_shards.lists import read_lines
from extract.datasets import common

LISTINGS = {"train": "train_metadata.json", "val": "val_metadata.json", "test": "test_files.txt"}
CATEGORIES = {
    "real": common.category(False, False),
    "audio_modified": common.category(False, True),
    "visual_modified": common.category(True, False),
    "both_modified": common.category(True, True),
}


def read_av_deepfake1m(root: Path, splits: tuple[str, ...] = ()) -> list[ClipMeta]:
    """Reads AV-Deepfake1M or AV-Deepfake1M++.

    Args:
      root: folder of `train_metadata.json` and `val_metadata.json`, each of which may be replaced by one JSON file per
        clip below `train` or `val`, and of `test_files.txt`.
      splits: train, val or test; empty for all splits that have metadata.

    Returns:
      The clips, split by split, in the order of the metadata. A clip is fake if it has fake segments, whatever its
      `modify_type`, as in the official program. The labels of the test split are not published.

    Raises:
      UserError: a split is unknown or missing, or its metadata is invalid.
    """
    common.check_splits("av_deepfake1m", splits, tuple(LISTINGS))
    clips = []
    for split, listing in LISTINGS.items():
        if splits and split not in splits:
            continue
        if (entries := _entries(root, split)) is not None:
            clips += common.collect(root / listing, entries, functools.partial(_clip, split))
        elif splits:
            raise UserError(f"{root / listing}: no such file; put it there or choose from {', '.join(LISTINGS)}")
    if not clips:
        raise UserError(f"{root}: holds none of {', '.join(LISTINGS.values())}; name the folder that contains them")
    return clips


def _entries(root: Path, split: str) -> Iterator[tuple[str, object]] | None:
    """Returns the metadata entries of a split, or None if it has no metadata."""
    listing = root / LISTINGS[split]
    folder = root / split
    if split == "test" and listing.exists():
        return ((f"{listing}, line {line}", file) for line, file in read_lines(listing))
    if listing.exists():
        return common.read_json_list(listing)
    if split == "test" or not folder.is_dir() or not (files := common.list_files(folder, (".json",))):
        return None
    return ((f"{folder / file}", common.read_json(folder / file)) for file in files)


def _clip(split: str, entry: object) -> ClipMeta:
    """Converts a metadata entry to a clip."""
    if split == "test":
        assert isinstance(entry, str)  # a line of the list
        return ClipMeta(common.clip_path(split, entry), split=split, identity=speaker_of(entry))
    file = common.field(entry, "file", str)
    fake = common.segments(entry, "fake_segments")
    return ClipMeta(
        path=common.clip_path(split, file),
        label=FAKE if fake else REAL,
        category=common.choice(entry, "modify_type", CATEGORIES),
        split=split,
        identity=speaker_of(file),
        segments=fake,
    )
