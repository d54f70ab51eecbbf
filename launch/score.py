"""Scores the clips of shards and their frames.

python -m launch.score --weights=run --features=shards/test --output=scores.h5
python -m launch.score --method=speech_forensics --features=shards/test --output=scores.h5
"""

from absl import flags

from avh_shards import UserError
from avh_shards.format import caveat
from avh_shards.text import one_line
from extract.run.array_job import this_task
from jax_avh.inference import ScoreJob, make_job
from jax_avh.methods import METHODS
from jax_avh.parallel import keep_programs, this_process, together
from launch import command
from launch.cluster import DISTRIBUTED, join

METHOD = flags.DEFINE_enum("method", None, list(METHODS), "Detector; default: the method of the weights.")
WEIGHTS = flags.DEFINE_string("weights", None, "A .safetensors file, or the workdir of a training run.")
FEATURES = flags.DEFINE_string("features", None, "Folder of feature shards.", required=True)
OUTPUT = flags.DEFINE_string("output", None, "Score file to write (.h5).", required=True)
DATASET = flags.DEFINE_string("dataset", None, "Name of the data set in tables, if the shards do not record it.")
TRIMMED = flags.DEFINE_boolean("trimmed", None, "Whether leading silence was dropped, if the shards do not record it.")
TASK_INDEX = flags.DEFINE_integer(
    "task_index", None, "Index of this task in a job array, from 0; default: read from the launcher."
)
TASK_COUNT = flags.DEFINE_integer("task_count", None, "Tasks of a job array; this one scores its share of the shards.")
MERGE = flags.DEFINE_bool("merge", False, "Only merge the scores of a job array after all tasks have ended.")


def main() -> None:
    """Parses the flags and scores the shards."""
    array = TASK_INDEX.value is not None or TASK_COUNT.value is not None
    if DISTRIBUTED.value + array + MERGE.value > 1:
        raise UserError("--distributed, --task_count, --merge: only one is possible; leave out the others")
    index, count = this_task(TASK_INDEX.value, TASK_COUNT.value) if array else (0, 1)
    join()
    keep_programs()
    job = together(_make_job, f"--features={FEATURES.value}")
    if array:
        job.score(index, count)
        print(one_line(f"{OUTPUT.value}: task {index} of {count} has ended; after all tasks, give --merge"))
        return
    if MERGE.value:
        job.merge()
    else:
        job.run()
    process, _ = this_process()
    if process == 0:
        size = f"{len(job.source.members)} clips, {job.source.lengths.sum()} frames"
        summary = f"{OUTPUT.value}: {job.detector.method.name}, {size}"
        print(one_line(f"{summary}. {caveat(job.attributes)}".rstrip(" .")))


def _make_job() -> ScoreJob:
    notes = {flag.name: flag.value for flag in (DATASET, TRIMMED) if flag.value is not None}
    return make_job(FEATURES.value, OUTPUT.value, METHOD.value, WEIGHTS.value, notes)


if __name__ == "__main__":
    command.run(main)
