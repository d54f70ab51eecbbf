"""Scores videos with the whole pipeline, from a media file to a verdict.

python -m launch.detect clip.mp4 --avhubert=self_large_vox_433h.pt --weights=avh_align.safetensors
"""

from absl import flags

from apps.detect import detect
from extract.prepare import FINDERS, PrepareSettings
from jax_avh.parallel import keep_to_cpu
from jax_avh.reference import RATES
from launch import command

AVHUBERT = flags.DEFINE_string(
    "avhubert", None, "Official AV-HuBERT file, or `random` to try the pipeline.", required=True
)
WEIGHTS = flags.DEFINE_string("weights", None, "Weights, or the workdir of a training run.", required=True)
JSON = flags.DEFINE_string("json", None, "File to write the verdicts to.")
PAGES = flags.DEFINE_string("pages", None, "Folder for a page per video, which plays it above its frame scores.")
LANDMARKS = flags.DEFINE_enum(
    "landmarks",
    PrepareSettings.landmarks,
    list(FINDERS),
    "dlib: detect on every frame, including small faces; dlib-tracked: detect at intervals and when in doubt.",
)
REFERENCE = flags.DEFINE_string("reference", None, "Reference of real clips (.json, from launch.calibrate).")
TWO_SIDED = flags.DEFINE_bool("two_sided", False, "Count scores below those of real clips as suspicious, too.")
FALSE_ALARMS = command.define_rates("false_alarms", RATES, "False-alarm rates at which a video is flagged or not.")


def main(videos: list[str]) -> int:
    """Parses the flags and scores the videos; returns the exit status."""
    keep_to_cpu()  # a detector takes milliseconds there; on a GPU, JAX would reserve the memory that the encoder needs
    compared = (REFERENCE.value, TWO_SIDED.value, FALSE_ALARMS.value)
    return detect(videos, AVHUBERT.value, WEIGHTS.value, JSON.value, PAGES.value, LANDMARKS.value, *compared)


if __name__ == "__main__":
    command.run(main, arguments="VIDEO")
