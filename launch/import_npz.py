"""Imports official features from npz files into shards.

python -m launch.import_npz --clips=train.csv --features=npz --output=shards
"""

from absl import flags

from avh_shards import read_clip_list
from avh_shards.errors import RETRIED
from extract.check.clip_list import warn_of_contradictions
from extract.convert.npz import import_features
from extract.store.shard_set import format_summary
from launch import command

CLIPS = flags.DEFINE_string("clips", None, "Clip list, a CSV file with the column `path`.", required=True)
FEATURES = flags.DEFINE_string("features", None, "Folder of the npz files, x.npz for x.mp4.", required=True)
OUTPUT = flags.DEFINE_string("output", None, "Folder for the shards.", required=True)
DTYPE = flags.DEFINE_enum("dtype", "float16", ["float16", "float32"], "Dtype of the stored features.")
WIDTH = flags.DEFINE_integer("width", 1024, "Feature width (1024 for AV-HuBERT large, 768 for base).", lower_bound=1)
CLIPS_PER_SHARD = flags.DEFINE_integer("clips_per_shard", 256, "Clips per shard.", lower_bound=1)
RETRY_FAILED = flags.DEFINE_enum(
    "retry_failed",
    "passing",
    RETRIED,
    "Failed clips of earlier runs to retry; passing: those whose reason may have passed.",
)


def main() -> int:
    """Parses the flags and imports features; returns exit status 1 if no clip succeeded."""
    clips = read_clip_list(CLIPS.value)
    warn_of_contradictions(clips)
    choices = DTYPE.value, WIDTH.value, CLIPS_PER_SHARD.value, RETRY_FAILED.value
    summary = import_features(clips, FEATURES.value, OUTPUT.value, *choices)
    print(format_summary(summary))
    return int(not summary.stored)


if __name__ == "__main__":
    command.run(main)
