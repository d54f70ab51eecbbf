"""Alignment weights, official .pt <-> .safetensors.

python -m launch.convert --input=AVH-Align.pt --output=avh_align.safetensors
"""

from absl import flags

from extract.official import convert_weights
from launch import command

INPUT = flags.DEFINE_string("input", None, "Weights to read: .pt or .safetensors.", required=True)
OUTPUT = flags.DEFINE_string("output", None, "Weights to write: the other of the two.", required=True)


def main() -> None:
    """Parses flags, converts."""
    convert_weights(INPUT.value, OUTPUT.value)
    print(f"{INPUT.value} -> {OUTPUT.value}")


if __name__ == "__main__":
    command.run(main)
