"""AVLips: one folder of real clips and one of fakes, without the method of manipulation."""

from pathlib import Path

from avh_shards import ClipMeta
from avh_shards.clip import FAKE, REAL
from extract.datasets import common

FOLDERS = {"0_real": (REAL, common.category(False, False)), "1_fake": (FAKE, "")}


def read_avlips(root: Path, splits: tuple[str, ...] = ()) -> list[ClipMeta]:
    """Reads AVLips.

    Args:
      root: folder that contains either `AVLips` or its `0_real` and `1_fake`; `wav` is not needed, since the clips
        have sound.
      splits: must be empty, since AVLips has no splits.

    Returns:
      The clips, real ones first, in the order of their numbers.

    Raises:
      UserError: a split is named, a folder is missing, or no clip is found.
    """
    common.check_splits("avlips", splits, ())
    above = ["AVLips"] if (root / "AVLips").is_dir() else []
    base = root.joinpath(*above)
    files = ([*above, folder, file] for folder in FOLDERS for file in common.list_files(base / folder, (".mp4",)))
    return common.collect(root, ((f"{root}", parts) for parts in files), _clip)


def _clip(parts: list[str]) -> ClipMeta:
    """Builds a clip from the parts of its path."""
    label, kind = FOLDERS[parts[-2]]
    return ClipMeta(common.clip_path(*parts), label, kind)
