"""Scores videos with the whole pipeline, from a media file to a verdict.

python -m launch.detect clip.mp4 --avhubert=self_large_vox_433h.pt --weights=avh_align.safetensors

Many videos are given as one folder or in --clips; a killed run then resumes by --results.
"""

from pathlib import Path

from absl import flags

from apps.detect import DetectSettings, detect
from apps.detect_many import detect_many, find_videos
from avh_shards import UserError, read_clip_list
from avh_shards.errors import RETRIED
from extract.faces import CHOICES
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
CLIPS = flags.DEFINE_string("clips", None, "Clip list, a CSV file with the column `path`, instead of VIDEO.")
MEDIA = flags.DEFINE_string("media", None, "Folder that the paths of --clips are relative to.")
RESULTS = flags.DEFINE_string(
    "results", None, "JSON Lines file for the verdicts on many videos; videos that it holds are skipped."
)
RETRY_FAILED = flags.DEFINE_enum(
    "retry_failed",
    "passing",
    RETRIED,
    "Failures of --results to retry, of scores and of pages; passing: those whose reason may have passed.",
)
LANDMARKS = flags.DEFINE_enum(
    "landmarks",
    PrepareSettings.landmarks,
    list(FINDERS),
    "dlib: detect on every frame, including small faces; dlib-tracked: detect at intervals and when in doubt.",
)
FACES = flags.DEFINE_enum(
    "faces",
    None,
    list(CHOICES),
    "Cut videos into shots and score faces one by one; the video's score is that of the likely speakers; all: also "
    "where no face clearly speaks; largest: of the largest faces. Default: one face is followed through the video.",
)
REFERENCE = flags.DEFINE_string("reference", None, "Reference of real clips (.json, from launch.calibrate).")
TWO_SIDED = flags.DEFINE_bool("two_sided", False, "Count scores below those of real clips as suspicious, too.")
FALSE_ALARMS = command.define_rates("false_alarms", RATES, "False-alarm rates at which a video is flagged or not.")


def main(videos: list[str]) -> int:
    """Parses the flags and scores the videos; returns the exit status."""
    keep_to_cpu()  # a detector takes milliseconds there; on a GPU, JAX would reserve the memory that the encoder needs
    command.check_needed(REFERENCE, TWO_SIDED, FALSE_ALARMS)
    settings = DetectSettings(
        AVHUBERT.value,
        WEIGHTS.value,
        LANDMARKS.value,
        FACES.value or "",
        REFERENCE.value,
        TWO_SIDED.value,
        FALSE_ALARMS.value,
    )
    folders = [video for video in videos if Path(video).is_dir()]
    if not CLIPS.value and not folders:
        if given := [flag.name for flag in (MEDIA, RESULTS, RETRY_FAILED) if flag.value != flag.default]:
            raise UserError(f"--{given[0]}: is for --clips or a folder of videos; add --clips, or leave it out")
        return detect(videos, settings, JSON.value, PAGES.value)
    results = command.require(RESULTS)
    if JSON.value:
        raise UserError("--json: is for videos that are named one by one; use --results")
    if CLIPS.value:
        if videos:
            raise UserError(f"{videos[0]}: is given together with --clips; give one or the other")
        media = command.require(MEDIA)
        listed = read_clip_list(CLIPS.value)
    else:
        if len(videos) > 1 or MEDIA.value:
            raise UserError(f"{folders[0]}: is a folder; name no other video, and no --media")
        media = folders[0]
        listed = find_videos(media)
    return detect_many(listed, media, settings, results, PAGES.value, RETRY_FAILED.value)


if __name__ == "__main__":
    command.run(main, arguments="VIDEO", instead=CLIPS)
