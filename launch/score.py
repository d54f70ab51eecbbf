"""Scores the clips of shards and their frames.

python -m launch.score --weights=run --features=shards/test --output=scores.h5
python -m launch.score --method=speech_forensics --features=shards/test --output=scores.h5
"""

from absl import flags

from avh_shards.format import caveat
from avh_shards.text import one_line
from jax_avh.inference import score_shards
from jax_avh.methods import METHODS
from jax_avh.parallel import keep_programs
from launch import command

METHOD = flags.DEFINE_enum("method", None, list(METHODS), "Detector; default: the method of the weights.")
WEIGHTS = flags.DEFINE_string("weights", None, "A .safetensors file, or the workdir of a training run.")
FEATURES = flags.DEFINE_string("features", None, "Folder of feature shards.", required=True)
OUTPUT = flags.DEFINE_string("output", None, "Score file to write (.h5).", required=True)
DATASET = flags.DEFINE_string("dataset", None, "Name of the data set in tables, if the shards do not record it.")
TRIMMED = flags.DEFINE_boolean("trimmed", None, "Whether leading silence was dropped, if the shards do not record it.")


def main() -> None:
    """Parses the flags and scores the shards."""
    keep_programs()
    notes = {flag.name: flag.value for flag in (DATASET, TRIMMED) if flag.value is not None}
    table = score_shards(FEATURES.value, OUTPUT.value, METHOD.value, WEIGHTS.value, notes)
    count = f"{OUTPUT.value}: {table.method}, {len(table.clips)} clips, {table.offset[-1]} frames"
    print(one_line(f"{count}. {caveat(table.attributes)}".rstrip(" .")))


if __name__ == "__main__":
    command.run(main)
