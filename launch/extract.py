"""Videos -> feature shards.

python -m launch.extract --clips=clips.csv --media=videos --avhubert=large.pt --output=shards
"""

from absl import flags

from extract.clips import read_clip_list
from extract.pipeline import ExtractSettings, extract
from extract.prepare.clip import INPUTS, PrepareSettings
from extract.prepare.media import FPS_POLICIES
from extract.shards import format_summary
from launch import command

CLIPS = flags.DEFINE_string("clips", None, "Clip list: a CSV file with the column `path`.", required=True)
MEDIA = flags.DEFINE_string("media", None, "Folder that the paths of the list are relative to.", required=True)
AVHUBERT = flags.DEFINE_string("avhubert", None, "Official AV-HuBERT file, or `random` to try the path.", required=True)
OUTPUT = flags.DEFINE_string("output", None, "Folder of the shards.", required=True)
INPUT = flags.DEFINE_enum("input", "media", INPUTS, "media: video files; roi: x_roi.mp4 and x.wav for x.mp4.")
FPS_POLICY = flags.DEFINE_enum(
    "fps_policy", "resample", FPS_POLICIES, "resample to 25 fps, or take native frames for it."
)
TRIMMED = flags.DEFINE_bool("trimmed", False, "Drop the leading silence from both modalities.")
DTYPE = flags.DEFINE_enum("dtype", "float16", ["float16", "float32"], "Of the stored features.")
CLIPS_PER_SHARD = flags.DEFINE_integer("clips_per_shard", 256, "Clips in one shard.", lower_bound=1)
PROCESSES = flags.DEFINE_integer("processes", ExtractSettings.processes, "Processes that prepare clips.", lower_bound=1)


def main() -> None:
    """Parses flags, extracts."""
    settings = ExtractSettings(
        prepare=PrepareSettings(INPUT.value, FPS_POLICY.value, TRIMMED.value),
        dtype=DTYPE.value,
        clips_per_shard=CLIPS_PER_SHARD.value,
        processes=PROCESSES.value,
    )
    summary = extract(read_clip_list(CLIPS.value), MEDIA.value, AVHUBERT.value, OUTPUT.value, settings)
    print(format_summary(summary))


if __name__ == "__main__":
    command.run(main)
