"""The clip list of a data set or a file: the list on standard output, counts and missing files on standard error.

python -m launch.clips --dataset=fakeavceleb --root=FakeAVCeleb_v1.2 > clips.csv
"""

import sys

from absl import flags

from avh_shards.clip_list import clip_list_text, refuse_shared_names
from extract.check.clip_list import count_clips, format_missing, missing_files
from extract.prepare import INPUTS
from launch import clip_flags, command

INPUT = flags.DEFINE_enum("input", "media", INPUTS, "media: video files; roi: x_roi.mp4 and x.wav for x.mp4.")


def main() -> int:
    """Parses flags, prints; the exit status is 1 if a file is missing."""
    clips, root = clip_flags.read_clips()
    if INPUT.value == "roi":
        refuse_shared_names(clips)
    missing = list(missing_files(clips, root, INPUT.value))
    sys.stdout.write(clip_list_text(clips))
    print(count_clips(clips), format_missing(missing), sep="\n", file=sys.stderr)
    return 1 if missing else 0


if __name__ == "__main__":
    command.run(main)
