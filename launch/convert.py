"""Converts official weights, .pt (AVH-Align), .ckpt (AVH-Align/sup) or .pth (RawNet2, MDS), to .safetensors or back.

python -m launch.convert --input=AVH-Align.pt --output=avh_align.safetensors
python -m launch.convert --input=AVH-Align-sup.ckpt --output=avh_sup.safetensors
python -m launch.convert --input=rawnet2.pth --output=rawnet2.safetensors
"""

from absl import flags

from avh_shards.text import one_line
from extract.convert.weights import convert_weights
from launch import command

INPUT = flags.DEFINE_string("input", None, "File to read: .pt, .ckpt, .pth or .safetensors.", required=True)
OUTPUT = flags.DEFINE_string(
    "output", None, "File to write: .safetensors, or .pt, .ckpt or .pth if the input is .safetensors.", required=True
)


def main() -> None:
    """Parses the flags and converts the file."""
    convert_weights(INPUT.value, OUTPUT.value)
    print(one_line(f"{INPUT.value} -> {OUTPUT.value}"))


if __name__ == "__main__":
    command.run(main)
