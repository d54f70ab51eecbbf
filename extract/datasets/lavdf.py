"""LAV-DF: one JSON list of all clips with their splits."""

from pathlib import Path

from avh_shards import ClipMeta
from avh_shards.clip import FAKE, REAL
from extract.datasets import common

SPLITS = ("train", "dev", "test")


def read_lavdf(root: Path, splits: tuple[str, ...] = ()) -> list[ClipMeta]:
    """Reads LAV-DF.

    Args:
      root: folder of `metadata.json` or, if that is missing, `metadata.min.json`.
      splits: train, dev or test; empty for all splits.

    Returns:
      The clips in the order of the metadata.

    Raises:
      UserError: a split is unknown or has no clips, or the metadata is missing or invalid.
    """
    common.check_splits("lavdf", splits, SPLITS)
    full = root / "metadata.json"
    metadata = full if full.is_file() else root / "metadata.min.json"
    return common.of_splits(str(metadata), common.collect(metadata, common.read_json_list(metadata), _clip), splits)


def _clip(entry: object) -> ClipMeta:
    """Converts a metadata entry to a clip."""
    fakes = common.field(entry, "n_fakes", int)
    periods = common.segments(entry, "fake_periods")
    if fakes < 0 or (periods and not fakes):
        raise ValueError(f"n_fakes is {fakes} with {len(periods)} fake_periods; correct one of them")
    return ClipMeta(
        path=common.clip_path(common.field(entry, "file", str)),
        label=FAKE if fakes else REAL,
        category=common.category(common.field(entry, "modify_video", bool), common.field(entry, "modify_audio", bool)),
        split=common.choice(entry, "split", {split: split for split in SPLITS}),
        segments=periods,
    )
