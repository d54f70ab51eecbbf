"""AV-Deepfake1M and AV-Deepfake1M++: a JSON list of clips a split, or a JSON file a clip; test without labels."""

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
      root: folder of `train_metadata.json` and `val_metadata.json` (where one is absent, of JSON files, a clip each,
        below `train` or `val`) and of `test_files.txt`.
      splits: of train, val, test; none = all whose metadata is there.

    Returns:
      The clips, split after split, in the metadata's order. A clip is fake if it has fake segments, which is how the
      official program counts it, whatever `modify_type` says. The labels of the test split are withheld.

    Raises:
      UserError: a split is unknown or not there, or metadata is wrong.
    """
    common.check_splits("av_deepfake1m", splits, tuple(LISTINGS))
    clips = []
    for split, listing in LISTINGS.items():
        if splits and split not in splits:
            continue
        if (entries := _entries(root, split)) is not None:
            clips += common.collect(root / listing, entries, functools.partial(_clip, split))
        elif splits:
            raise UserError(f"{root / listing}: no such file; put it there or choose of {', '.join(LISTINGS)}")
    if not clips:
        raise UserError(f"{root}: holds none of {', '.join(LISTINGS.values())}; name the folder that does")
    return clips


def _entries(root: Path, split: str) -> Iterator[tuple[str, object]] | None:
    """The metadata of a split, if any is there."""
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
    """An entry as a clip."""
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
