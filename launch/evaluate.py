"""Scores -> metrics, a table of clips, a report.

python -m launch.evaluate --scores=a.h5,b.h5 --output=results
"""

from absl import flags

from extract.clips import read_clip_list
from extract.schema import place
from extract.shards import read_failures
from jax_avh.report.results import write_results
from launch import command

SCORES = flags.DEFINE_list("scores", None, "Score files, comma-separated.", required=True)
OUTPUT = flags.DEFINE_string("output", None, "Folder of metrics.json, clips.csv and report.html.", required=True)
CLIPS = flags.DEFINE_string("clips", None, "Clip list: which clips ought to be scored, for the coverage.")
FAILURES = flags.DEFINE_string("failures", None, "failures.jsonl of the extraction, to tell failed from missing.")
THRESHOLD = command.define_numbers("threshold", "METHOD=SCORE,...: from which clip score on a clip is called fake.")


def main() -> None:
    """Parses flags, evaluates."""
    listed = read_clip_list(CLIPS.value) if CLIPS.value else []
    failed = [failure.path for failure in read_failures(place(FAILURES.value))] if FAILURES.value else []
    print(write_results(SCORES.value, OUTPUT.value, listed, failed, THRESHOLD.value))


if __name__ == "__main__":
    command.run(main)
