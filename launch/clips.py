"""Prints the clip list of a data set or a file; counts and missing files go to standard error.

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

# launch.extract takes them, too.
CLIPS = flags.DEFINE_string("clips", None, "Clip list: a CSV file with the column `path`.")
MEDIA = flags.DEFINE_string("media", None, "Folder that the paths of --clips are relative to.")
DATASET = flags.DEFINE_enum("dataset", None, list(DATASETS), "A data set as it was released, instead of --clips.")
ROOT = flags.DEFINE_string("root", None, "Folder of the --dataset.")
SPLIT = flags.DEFINE_list("split", [], "Splits of the --dataset, by its own names, or of --clips; none = all.")
SELECTION = flags.DEFINE_string("selection", None, "A list of AVH-Align's: the clips of the --dataset to keep.")
INPUT = flags.DEFINE_enum("input", "media", INPUTS, "media: video files; roi: x_roi.mp4 and x.wav for x.mp4.")


def read_clips() -> tuple[list[ClipMeta], str]:
    """Reads the clips that the flags name; returns the folder that their paths are relative to, as well."""
    if DATASET.value:
        if CLIPS.value or MEDIA.value:
            raise UserError("--dataset stands instead of --clips and --media; give one or the other")
        if not ROOT.value:
            raise UserError(f"--dataset={DATASET.value} needs --root, the folder of the data set")
        clips = read_dataset(DATASET.value, ROOT.value, SPLIT.value, SELECTION.value)
        folder = ROOT.value
    else:
        if given := [flag.name for flag in (ROOT, SELECTION) if flag.value]:
            raise UserError(f"--{given[0]} goes with --dataset; give that too")
        if not CLIPS.value or not MEDIA.value:
            raise UserError("no clips named: give --clips and --media, or --dataset and --root")
        clips = of_splits(CLIPS.value, read_clip_list(CLIPS.value), SPLIT.value)
        folder = MEDIA.value
    warn_of_contradictions(clips)
    return clips, folder


def main() -> int:
    """Parses flags, prints; the exit status is 1 if a file is missing."""
    clips, root = read_clips()
    if INPUT.value == "roi":
        refuse_shared_names(clips)
    missing = list(missing_files(clips, root, INPUT.value))
    sys.stdout.write(clip_list_text(clips))
    print(count_clips(clips), format_missing(missing), sep="\n", file=sys.stderr)
    return 1 if missing else 0


if __name__ == "__main__":
    command.run(main)
