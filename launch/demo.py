"""Runs the whole pipeline in a few minutes, on three real clips and on simulated features.

python -m launch.demo --output=demo_output
"""

from absl import flags

from apps.demo import demo
from launch import command

OUTPUT = flags.DEFINE_string("output", None, "Folder for all results.", required=True)
AVHUBERT = flags.DEFINE_string("avhubert", None, "Official AV-HuBERT file; without it, the encoder has random weights.")


def main() -> None:
    """Parses the flags and runs the demo."""
    demo(OUTPUT.value, AVHUBERT.value)


if __name__ == "__main__":
    command.run(main)
