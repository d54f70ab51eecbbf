"""Writes a submission to AV-Deepfake1M from a score file.

python -m launch.submit --scores=scores.h5 --test_files=test_files.txt --output=submission.zip
"""

from absl import flags

from avh_shards.text import one_line
from jax_avh.evaluation.submission import submit
from launch import command

SCORES = flags.DEFINE_string("scores", None, "Score file of the test split.", required=True)
TEST_FILES = flags.DEFINE_string("test_files", None, "The released test_files.txt.", required=True)
OUTPUT = flags.DEFINE_string("output", None, "Submission file to write (.zip).", required=True)


def main() -> None:
    """Parses the flags and writes the submission."""
    print(one_line(submit(SCORES.value, TEST_FILES.value, OUTPUT.value)))


if __name__ == "__main__":
    command.run(main)
