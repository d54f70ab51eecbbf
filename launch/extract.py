"""Extracts features from videos into shards.

python -m launch.extract --clips=clips.csv --media=videos --avhubert=large.pt --output=shards
"""

from pathlib import Path

from absl import flags

from avh_shards import UserError
from avh_shards.errors import RETRIED
from avh_shards.format import OPTIONAL
from avh_shards.machine import own_cores
from avh_shards.paths import PNG, check_outputs
from extract.avhubert.encoder import BATCH_FRAMES, ENCODER_PRECISIONS, EncodeSettings
from extract.check.clip_list import clip_files
from extract.check.contact_sheet import write_contact_sheet
from extract.faces import CHOICES
from extract.media.decode import FPS_POLICIES
from extract.prepare import PrepareSettings
from extract.run.array_job import this_task
from extract.run.job import VARIANTS, ExtractSettings, Job, extract, merge_sets
from extract.store.shard_set import format_summary
from launch import command
from launch.clips import CLIPS, INPUT, SELECTION, read_clips

AVHUBERT = flags.DEFINE_string("avhubert", None, "Official AV-HuBERT file, or `random` to try the pipeline.")
OUTPUT = flags.DEFINE_string("output", None, "Folder or fsspec URL for the shards.", required=True)
FPS_POLICY = flags.DEFINE_enum(
    "fps_policy", "resample", FPS_POLICIES, "resample: convert to 25 fps; native: use the frames as if at 25 fps."
)
LANDMARKS = flags.DEFINE_string(
    "landmarks",
    PrepareSettings.landmarks,
    "dlib: detect on every frame; dlib-tracked: detect at intervals and when in doubt. Otherwise a folder with x.npz "
    "for x.mp4 (`landmarks` [T, 68, 2]), or the npz file of the only clip.",
)
MIN_FACE_SHARE = flags.DEFINE_float(
    "min_face_share",
    PrepareSettings.min_face_share,
    "Least share of frames with a face; clips below it fail.",
    lower_bound=0,
    upper_bound=1,
)
FACES = flags.DEFINE_enum(
    "faces",
    None,
    list(CHOICES),
    "Cut videos into shots and store faces one by one; speaker: of each shot the one whose lips fit the sound best; "
    "all: each that is visible for a second; largest. Default: the whole video, with one face followed through it.",
)
TRIM = command.define_switch("trimmed", VARIANTS, "Drop leading silence from both modalities; both: write two sets.")
STORE = command.define_choices("store", OPTIONAL, "Optional contents of the shards.")
DTYPE = flags.DEFINE_enum("dtype", "float16", ["float16", "float32"], "Dtype of the stored features.")
CLIPS_PER_SHARD = flags.DEFINE_integer("clips_per_shard", 256, "Clips per shard.", lower_bound=1)
PRECISION = flags.DEFINE_enum("precision", "float32", ENCODER_PRECISIONS, "Precision of encoder weights and products.")
BATCH = flags.DEFINE_integer("batch_frames", BATCH_FRAMES, "Frames per encoder batch.", lower_bound=1)
COMPILE = flags.DEFINE_bool("compile", False, "torch.compile the encoder: takes minutes, then runs faster on a GPU.")
PROCESSES = flags.DEFINE_integer("processes", own_cores(), "Processes that prepare clips.", lower_bound=1)
CLIP_TIMEOUT = flags.DEFINE_float("clip_timeout", 600, "Seconds after which a clip counts as hung.", lower_bound=0.001)
RETRY_FAILED = flags.DEFINE_enum(
    "retry_failed",
    "passing",
    RETRIED,
    "Failed clips of earlier runs to retry; passing: those whose reason may have passed.",
)
CLUSTER = flags.DEFINE_enum("cluster", "none", ["none", "ray"], "ray: use the Ray cluster at RAY_ADDRESS.")
TASK_INDEX = flags.DEFINE_integer(
    "task_index", None, "Index of this task in a job array, from 0; default: read from the launcher."
)
TASK_COUNT = flags.DEFINE_integer(
    "task_count", None, "Tasks of the whole job array, even if only some of them are rerun."
)
MERGE = flags.DEFINE_bool("merge", False, "Only summarise the shards of --output after all tasks have ended.")
CONTACT_SHEET = flags.DEFINE_string("contact_sheet", None, "PNG file for the first clips' crops, drawn at the start.")


def main() -> int:
    """Parses the flags and extracts features; returns exit status 1 if no clip succeeded."""
    summaries = merge_sets(OUTPUT.value) if MERGE.value else _extract()
    print("\n".join(map(format_summary, summaries)))
    return int(not any(summary is None or summary.stored for summary in summaries))


def _extract() -> list:
    avhubert = command.require(AVHUBERT)
    settings = ExtractSettings(
        prepare=PrepareSettings(
            INPUT.value, FPS_POLICY.value, LANDMARKS.value, MIN_FACE_SHARE.value, FACES.value or PrepareSettings.faces
        ),
        encode=EncodeSettings(PRECISION.value, BATCH.value, COMPILE.value),
        trimmed=TRIM.value,
        store=STORE.value,
        dtype=DTYPE.value,
        clips_per_shard=CLIPS_PER_SHARD.value,
        processes=PROCESSES.value,
        clip_timeout=CLIP_TIMEOUT.value,
        retry_failed=RETRY_FAILED.value,
    )
    clips, media = read_clips()
    job = Job(clips, media, OUTPUT.value, settings)
    if CONTACT_SHEET.value is not None:
        _check_contact_sheet(CONTACT_SHEET.value, job)
    index, count = this_task(TASK_INDEX.value, TASK_COUNT.value)
    if CONTACT_SHEET.value and index == 0:
        job.check()
        write_contact_sheet(CONTACT_SHEET.value, clips, job.task, settings.processes)
    if CLUSTER.value == "ray":
        from extract.run.ray import extract_on_ray  # requires the extra `ray`

        return extract_on_ray(job, avhubert, index, count)
    return extract(job, avhubert, index, count)


def _check_contact_sheet(sheet: str, job: Job) -> None:
    """Raises a UserError, before any work, if the contact sheet would replace an input or a file of another kind."""
    read = [CLIPS.value, SELECTION.value, AVHUBERT.value, LANDMARKS.value]
    inputs = [*filter(None, read), *clip_files(job.clips, job.media, job.settings.prepare.input)]
    check_outputs({sheet: PNG}, inputs)
    if Path(sheet).suffix.lower() != ".png":
        raise UserError(f"{sheet}: a contact sheet is a PNG file; name it *.png")


if __name__ == "__main__":
    command.run(main)
