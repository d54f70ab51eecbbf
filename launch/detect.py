"""Videos -> verdicts.

python -m launch.detect clip.mp4 --avhubert=self_large_vox_433h.pt --weights=avh_align.safetensors
"""

from absl import flags

from apps.detect import detect
from launch import command

AVHUBERT = flags.DEFINE_string("avhubert", None, "Official AV-HuBERT file, or `random` to try the path.", required=True)
WEIGHTS = flags.DEFINE_string("weights", None, "Alignment weights, or the workdir of a training run.", required=True)
JSON = flags.DEFINE_string("json", None, "File to write the verdicts to.")


def main(videos: list[str]) -> int:
    """Parses flags, detects."""
    return detect(videos, AVHUBERT.value, WEIGHTS.value, JSON.value)


if __name__ == "__main__":
    command.run(main, arguments="VIDEO")
