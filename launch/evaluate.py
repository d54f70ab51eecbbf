"""Evaluates scores and writes metrics, a table of clips and a report.

python -m launch.evaluate --scores=a.h5,b.h5 --output=results
"""

from absl import flags

from avh_shards import read_clip_list
from avh_shards.paths import as_path
from extract.store.shard import read_failures
from jax_avh.reference import RATES
from jax_avh.report.results import write_results
from launch import command

SCORES = command.define_paths("scores", "Score files, comma-separated.")
OUTPUT = flags.DEFINE_string("output", None, "Folder for metrics.json, clips.csv and report.html.", required=True)
CLIPS = flags.DEFINE_string("clips", None, "Clip list of the clips that should be scored, for the coverage.")
FAILURES = flags.DEFINE_string("failures", None, "failures.jsonl of the extraction; separates failed from missing.")
THRESHOLD = command.define_numbers("threshold", "METHOD=SCORE,...: least score of a clip that is called fake.")
REFERENCE = flags.DEFINE_list("reference", [], "References of real clips (.json, from launch.calibrate).")
TWO_SIDED = flags.DEFINE_bool("two_sided", False, "Count scores below those of real clips as suspicious, too.")
FALSE_ALARMS = command.define_rates("false_alarms", RATES, "False-alarm rates whose thresholds the references give.")


def main() -> None:
    """Parses the flags and prints the evaluation."""
    if FAILURES.value:
        command.require(CLIPS)
    command.check_needed(REFERENCE, TWO_SIDED, FALSE_ALARMS)
    listed = read_clip_list(CLIPS.value) if CLIPS.value else []
    failed = [failure.path for failure in read_failures(as_path(FAILURES.value))] if FAILURES.value else []
    lists = [flag.value for flag in (CLIPS, FAILURES) if flag.value]
    compared = {"references": REFERENCE.value, "two_sided": TWO_SIDED.value, "rates": FALSE_ALARMS.value}
    print(write_results(SCORES.value, OUTPUT.value, listed, failed, THRESHOLD.value, inputs=lists, **compared))


if __name__ == "__main__":
    command.run(main)
