"""Makes a reference of real clips' scores, with which detect and evaluate compare others.

python -m launch.calibrate --scores=scores.h5 --output=reference.json
"""

from absl import flags

from jax_avh.report.reference import write_calibration
from launch import command

SCORES = command.define_paths("scores", "Score files of real clips, comma-separated; clips labelled fake are fakes.")
FAKES = flags.DEFINE_list("fakes", [], "Score files of fakes, comma-separated, for probabilities.")
OUTPUT = flags.DEFINE_string("output", None, "Reference to write (.json).", required=True)
PAGE = flags.DEFINE_string("page", None, "HTML file to show the reference in.")
DATASET = flags.DEFINE_string("dataset", None, "Name of the real clips' data set, if the score files do not record it.")
PROTOCOL = flags.DEFINE_string("protocol", "", "What a reader should know of the clips: split, language, compression.")
CALIBRATION = flags.DEFINE_enum(
    "calibration",
    "platt",
    ["platt", "isotonic"],
    "How p-values become probabilities: a logistic curve, or any rising one, which takes 500 clips of each class.",
)


def main() -> None:
    """Parses the flags and prints the thresholds of the reference."""
    described = (DATASET.value, PROTOCOL.value, CALIBRATION.value)
    print(write_calibration(SCORES.value, OUTPUT.value, PAGE.value, FAKES.value, *described))


if __name__ == "__main__":
    command.run(main)
