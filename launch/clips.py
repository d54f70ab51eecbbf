"""Prints the clip list of a data set or a file; prints counts and missing files to standard error.

python -m launch.clips --dataset=fakeavceleb --root=FakeAVCeleb_v1.2 > clips.csv
"""

import sys

from absl import flags

from avh_shards import ClipMeta, UserError, read_clip_list
from avh_shards.clip_list import clip_list_text, refuse_shared_names
from extract.check.clip_list import count_clips, format_missing, missing_files, warn_of_contradictions
from extract.datasets import DATASETS, read_dataset
from extract.datasets.common import of_splits
from extract.prepare import INPUTS
from launch import command

# launch.extract shares these flags.
CLIPS = flags.DEFINE_string("clips", None, "Clip list, a CSV file with the column `path`.")
MEDIA = flags.DEFINE_string("media", None, "Folder that the paths of --clips are relative to.")
DATASET = flags.DEFINE_enum("dataset", None, list(DATASETS), "Data set in its released form, instead of --clips.")
ROOT = flags.DEFINE_string("root", None, "Folder of the --dataset.")
SPLIT = flags.DEFINE_list("split", [], "Splits of the --dataset, by its names, or of --clips; default: all.")
SELECTION = flags.DEFINE_string("selection", None, "AVH-Align's list of the clips of the --dataset to keep.")
INPUT = flags.DEFINE_enum("input", "media", INPUTS, "media: video files; roi: x_roi.mp4 and x.wav for x.mp4.")


def read_clips() -> tuple[list[ClipMeta], str]:
    """Reads the clips that the flags name.

    Returns:
      The clips, and the folder that their paths are relative to.

    Raises:
      UserError: the flags are incomplete or contradict each other, or the list or the data set cannot be read.
    """
    if DATASET.value:
        if CLIPS.value or MEDIA.value:
            raise UserError("--dataset: replaces --clips and --media; use one or the other")
        if not ROOT.value:
            raise UserError(f"--dataset={DATASET.value}: needs --root; add the folder of the data set")
        clips = read_dataset(DATASET.value, ROOT.value, SPLIT.value, SELECTION.value)
        folder = ROOT.value
    else:
        if given := [flag.name for flag in (ROOT, SELECTION) if flag.value]:
            raise UserError(f"--{given[0]}: needs --dataset; add it")
        if not CLIPS.value or not MEDIA.value:
            raise UserError("no clips named; add --clips and --media, or --dataset and --root")
        clips = of_splits(CLIPS.value, read_clip_list(CLIPS.value), SPLIT.value)
        folder = MEDIA.value
    warn_of_contradictions(clips)
    return clips, folder


def main() -> int:
    """Parses the flags and prints the list; returns exit status 1 if a file is missing."""
    clips, root = read_clips()
    if INPUT.value == "roi":
        refuse_shared_names(clips)
    missing = list(missing_files(clips, root, INPUT.value))
    sys.stdout.write(clip_list_text(clips))
    print(count_clips(clips), format_missing(missing), sep="\n", file=sys.stderr)
    return 1 if missing else 0


if __name__ == "__main__":
    command.run(main)
