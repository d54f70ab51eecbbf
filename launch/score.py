"""Shards -> frame scores.

python -m launch.score --weights=run --features=shards/test --output=scores.h5
"""

from absl import flags

from extract.schema import caveat
from jax_avh.evaluation.score import score_shards
from launch import command

WEIGHTS = flags.DEFINE_string("weights", None, "A .safetensors file, or the workdir of a training run.", required=True)
FEATURES = flags.DEFINE_string("features", None, "Folder of feature shards.", required=True)
OUTPUT = flags.DEFINE_string("output", None, "Score file to write (.h5).", required=True)


def main() -> None:
    """Parses flags, scores."""
    table = score_shards(WEIGHTS.value, FEATURES.value, OUTPUT.value)
    print(
        f"{OUTPUT.value}: {len(table.clips)} clips, {len(table.frame)} frames. {caveat(table.attributes)}".rstrip(" .")
    )


if __name__ == "__main__":
    command.run(main)
