"""Flags that name clips: a clip list and its folder, or a data set as it was released."""

from absl import flags

from avh_shards import ClipMeta, UserError
from avh_shards.clip_list import read_clip_list
from extract.check.clip_list import warn_of_contradictions
from extract.datasets import DATASETS, of_splits, read_dataset

CLIPS = flags.DEFINE_string("clips", None, "Clip list: a CSV file with the column `path`.")
MEDIA = flags.DEFINE_string("media", None, "Folder that the paths of --clips are relative to.")
DATASET = flags.DEFINE_enum("dataset", None, list(DATASETS), "A data set as it was released, instead of --clips.")
ROOT = flags.DEFINE_string("root", None, "Folder of the --dataset.")
SPLIT = flags.DEFINE_list("split", [], "Splits of the --dataset, by its own names, or of --clips; none = all.")
SELECTION = flags.DEFINE_string("selection", None, "A list of AVH-Align's: the clips of the --dataset to keep.")


def read_clips() -> tuple[list[ClipMeta], str]:
    """The clips that the flags name, and the folder that their paths are relative to."""
    clips, folder = _read()
    warn_of_contradictions(clips)
    return clips, folder


def _read() -> tuple[list[ClipMeta], str]:
    if DATASET.value:
        if CLIPS.value or MEDIA.value:
            raise UserError("--dataset stands instead of --clips and --media; give one or the other")
        if not ROOT.value:
            raise UserError(f"--dataset={DATASET.value} needs --root, the folder of the data set")
        return read_dataset(DATASET.value, ROOT.value, SPLIT.value, SELECTION.value), ROOT.value
    if given := [flag.name for flag in (ROOT, SELECTION) if flag.value]:
        raise UserError(f"--{given[0]} goes with --dataset; give that too")
    if not CLIPS.value or not MEDIA.value:
        raise UserError("no clips named: give --clips and --media, or --dataset and --root")
    return of_splits(CLIPS.value, read_clip_list(CLIPS.value), SPLIT.value), MEDIA.value
