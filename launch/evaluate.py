"""Frame scores -> metrics.

python -m launch.evaluate --scores=scores.h5 --output=results
"""

from absl import flags

from jax_avh.evaluation import evaluate_scores
from launch import command

SCORES = flags.DEFINE_list("scores", None, "Score files, comma-separated.", required=True)
OUTPUT = flags.DEFINE_string("output", None, "Folder of metrics.json and clips.csv.", required=True)


def main() -> None:
    """Parses flags, evaluates."""
    print(evaluate_scores(SCORES.value, OUTPUT.value))


if __name__ == "__main__":
    command.run(main)
