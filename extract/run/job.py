"""Settings of an extraction, the steps common to every kind of run, and extraction on a single machine.

On a single machine, worker processes prepare clips, and the main process encodes them. It writes each shard on a thread
of its own, while the next one is encoded.
"""

import contextlib
import dataclasses
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch

from avh_shards import ClipMeta, UserError
from avh_shards.clip import video_of
from avh_shards.clip_list import refuse_shared_names
from avh_shards.errors import Failure
from avh_shards.format import RAGGED, Variant
from avh_shards.machine import local_rank, own_cores
from avh_shards.paths import FilePath, as_path, locked, reachable
from extract.avhubert.encoder import Encoder, EncodeSettings
from extract.prepare import FINDERS, PreparedClip, PrepareSettings
from extract.progress import ProgressBar, Stopwatch
from extract.run.pool import Prepared, PrepareTask, prepare_all, running_pool
from extract.store.shard import ClipFeatures, ShardWriter, StoredClip, list_order
from extract.store.shard_set import CLIP_LIST, ExtractionSummary, ShardSet, merge, task_lock

VARIANTS = {  # --trimmed -> variants extracted from each clip
    "false": (Variant.UNTRIMMED,),
    "true": (Variant.TRIMMED,),
    "both": (Variant.UNTRIMMED, Variant.TRIMMED),
}


@dataclasses.dataclass(frozen=True)
class ExtractSettings:
    """Settings of an extraction run; all but the last three affect the numbers or where they are stored."""

    prepare: PrepareSettings = dataclasses.field(default_factory=PrepareSettings)
    encode: EncodeSettings = dataclasses.field(default_factory=EncodeSettings)
    trimmed: str = "false"  # drop the leading silence from both modalities: false, true, or both (two sets)
    store: tuple[str, ...] = ()  # optional contents of the shards, from format.OPTIONAL
    dtype: str = "float16"  # of the stored features
    clips_per_shard: int = 256
    processes: int = dataclasses.field(default_factory=own_cores)  # worker processes that prepare clips
    clip_timeout: float = 600.0  # seconds after which a clip's preparation counts as hung
    retry_failed: str = "passing"  # failures of an earlier run to retry, from errors.RETRIED

    @property
    def variants(self) -> tuple[Variant, ...]:
        """Variants extracted from each clip."""
        return VARIANTS[self.trimmed]


@dataclasses.dataclass(frozen=True)
class Job:
    """Clips to extract, their media files, the output and the settings."""

    clips: Sequence[ClipMeta]
    media: str  # folder of the clips' files
    output: str  # folder or URL of the shards
    settings: ExtractSettings

    def check(self) -> None:
        """Checks folders and clip names before any work is done.

        Raises:
          UserError: a folder does not exist, the output cannot be reached, one file of landmarks is given for several
            clips, two clips would be read from the same file, or faces are asked for where none are searched.
        """
        if not Path(self.media).is_dir():
            raise UserError(f"{self.media}: no such folder; name the folder of the clips' media files")
        reachable(self.output)
        prepare = self.settings.prepare
        files = prepare.landmarks not in FINDERS
        if files and not Path(prepare.landmarks).exists():
            raise UserError(f"{prepare.landmarks}: no such folder of landmarks; name one or use {' or '.join(FINDERS)}")
        if files and Path(prepare.landmarks).is_file() and len(self.clips) > 1:
            raise UserError(f"{prepare.landmarks}: is the file of one clip; name a folder with a file for each clip")
        if prepare.input == "roi" or files:
            refuse_shared_names(self.clips)
        if prepare.faces and not prepare.finds_faces:
            finders = " or ".join(FINDERS)
            raise UserError(f"--faces={prepare.faces}: needs videos and --landmarks={finders}; leave out --faces")
        if prepare.faces and (key := next((clip.path for clip in self.clips if video_of(clip.path) != clip.path), "")):
            raise UserError(f"{key}: is named like a face of a video; rename the file, or leave out --faces")

    @contextlib.contextmanager
    def locked(self, index: int, count: int) -> Iterator[None]:
        """Locks the output folders against other runs of the same task for the duration of the block.

        Args:
          index: index of this task, from 0.
          count: number of tasks that share the job.

        Raises:
          UserError: another run of this task holds a lock.
        """
        with contextlib.ExitStack() as stack:
            for folder in self.folders().values():
                stack.enter_context(locked(folder, task_lock(folder, index, count)))
            yield

    @property
    def task(self) -> PrepareTask:
        """Preparation applied to every clip."""
        return PrepareTask(self.media, self.settings.prepare, self.settings.variants, self.settings.clip_timeout)

    def shard_sets(self, encoder: Mapping[str, object]) -> dict[Variant, ShardSet]:
        """Returns the shard set of each variant.

        Args:
          encoder: attributes that identify the encoder, as in `Encoder.attributes`.
        """
        settings = self.settings
        numbers = dataclasses.asdict(settings.prepare) | dataclasses.asdict(settings.encode)
        if not settings.prepare.faces:
            del numbers["faces"]  # as in sets made before this setting existed
        if settings.prepare.input == "roi" or settings.prepare.min_face_share == 0:
            del numbers["min_face_share"]  # rejects no clip, so sets made before this setting existed still match
        numbers |= {"dtype": settings.dtype, "clips_per_shard": settings.clips_per_shard, "store": settings.store}
        text = json.dumps(numbers, sort_keys=True)
        sets = {}
        for variant, folder in self.folders().items():
            attributes = {**encoder, "trimmed": variant is Variant.TRIMMED, "settings": text}
            writer = ShardWriter(folder, settings.dtype, attributes, settings.store)
            sets[variant] = ShardSet(writer, self.clips, settings.clips_per_shard)
        return sets

    def folders(self) -> dict[Variant, FilePath]:
        """Returns the folder of each variant's set."""
        output = as_path(self.output)
        variants = self.settings.variants
        return {variant: output / variant.value if len(variants) > 1 else output for variant in variants}


def extract(job: Job, avhubert: str | os.PathLike, index: int = 0, count: int = 1) -> list[ExtractionSummary | None]:
    """Extracts features on this machine; existing shards are kept, so a killed run resumes where it stopped.

    Clips that failed in an earlier run are retried first, by default those that failed for a transient reason
    (`job.settings.retry_failed`). Only these clips are prepared for that: a whole shard is rebuilt only if one of its
    failed clips can be prepared now, and a clip already in a shard is never lost to a new failure.

    Args:
      job: clips, folders and settings.
      avhubert: path of an official AV-HuBERT file, or "random".
      index: index of this task, from 0.
      count: number of tasks that share the job.

    Returns:
      The summary of each set; None while other tasks have not finished.

    Raises:
      UserError: the weights cannot be loaded, the media folder is missing, the output folder holds shards of a
        different run, or another run of this task is still writing there.
    """
    job.check()
    processes = job.settings.processes
    with job.locked(index, count), running_pool(job.task, processes) as pool:
        encoder = Encoder(avhubert, job.settings.encode)
        _report_idle_gpus()
        sets = job.shard_sets(encoder.attributes)
        missing = missing_shards(sets, index, count)
        if failed := failed_clips(sets, missing, index, count, job.settings.retry_failed):
            again = [clip for clips in failed.values() for clip in clips]
            with ProgressBar(len(again), title="retrying failed clips") as progress:
                prepared = _counted(prepare_all(pool, again, job.task, processes), progress)
                add_gaining_shards(missing, sets, failed, (clip.failures for clip in prepared))
        any_set = next(iter(sets.values()))
        listed = [any_set.clips_of(shard) for shard in sorted(missing)]
        total = sum(len(any_set.clips_of(shard)) for shard in tasks_shards(range(any_set.count), index, count))
        pending = [clip for part in listed for clip in part]
        with ProgressBar(total, total - len(pending)) as progress:
            prepared = _counted(prepare_all(pool, pending, job.task, processes), progress)
            with ThreadPoolExecutor(1, "write") as thread:  # leaving it waits for the shard that is being written
                writing = thread.submit(lambda: None)
                for shard, part in zip(sorted(missing), listed, strict=True):
                    writers = {variant: sets[variant].writer for variant in missing[shard]}
                    ready = _unless_failed(writing, itertools.islice(prepared, len(part)))
                    write = encode_shard(shard, part, ready, encoder, writers)
                    writing.result()  # so that no more than two shards are in memory
                    writing = thread.submit(write)
                    del write
                writing.result()
    return [merge(folder) for folder in job.folders().values()]


def _report_idle_gpus() -> None:
    rank, processes = local_rank()
    gpus = torch.cuda.device_count()
    if rank == 0 and processes < gpus:
        command = f"torchrun --nproc_per_node={gpus} -m launch.extract"
        print(f"uses {processes} of {gpus} GPUs; to use all, start it with {command} ...", file=sys.stderr, flush=True)


def merge_sets(output: str) -> list[ExtractionSummary]:
    """Summarises the one or two sets in a folder.

    Args:
      output: folder or URL of the set, or of both sets of a run with --trimmed=both.

    Raises:
      UserError: the folder holds no set, or a shard is missing.
    """
    both = [reachable(output) / variant.value for variant in Variant]
    folders = both if any((folder / CLIP_LIST).exists() for folder in both) else [as_path(output)]
    summaries = [merge(folder) for folder in folders]
    if None in summaries:
        raise UserError(f"{folders[summaries.index(None)]}: shards are missing; run the remaining tasks first")
    return [summary for summary in summaries if summary is not None]


def missing_shards(sets: Mapping[Variant, ShardSet], index: int, count: int) -> dict[int, list[Variant]]:
    """Returns the shards that a task still has to write -> the variants for which they are missing."""
    missing: dict[int, list[Variant]] = {}
    for variant, shards in sets.items():
        for shard in tasks_shards(shards.missing(), index, count):
            missing.setdefault(shard, []).append(variant)
    return missing


def tasks_shards(shards: Iterable[int], index: int, count: int) -> Iterator[int]:
    """Yields the shards of one of several tasks: shard k belongs to task k mod count."""
    return (shard for shard in shards if shard % count == index)


def failed_clips(
    sets: Mapping[Variant, ShardSet], missing: Mapping[int, list[Variant]], index: int, count: int, retry: str
) -> dict[int, list[ClipMeta]]:
    """Returns the clips that a task retries, by shard: the failed clips of its existing shards.

    Args:
      sets: shard sets by variant.
      missing: shards that do not exist yet, from `missing_shards`.
      index: index of this task, from 0.
      count: number of tasks that share the job.
      retry: failures to retry, from errors.RETRIED.
    """
    any_set = next(iter(sets.values()))
    failed = {}
    for shard in tasks_shards(range(any_set.count), index, count):
        there = [shards for variant, shards in sets.items() if variant not in missing.get(shard, ())]
        paths = {clip.path for shards in there for clip in shards.failed(shard, retry)}
        if paths:
            failed[shard] = [clip for clip in any_set.clips_of(shard) if clip.path in paths]
    return failed


def add_gaining_shards(
    missing: dict[int, list[Variant]],
    sets: Mapping[Variant, ShardSet],
    failed: Mapping[int, list[ClipMeta]],
    outcomes: Iterator[Mapping[Variant, Failure | None]],
) -> None:
    """Adds the shards that gain a clip to `missing`, and updates the failure logs of the others.

    Args:
      missing: shards to write -> their variants; updated in place.
      sets: shard sets by variant.
      failed: retried clips, by shard.
      outcomes: new failure by variant for each retried clip, in the order of `failed`; None if it succeeded.
    """
    for shard, clips in failed.items():
        tried = dict(zip([clip.path for clip in clips], itertools.islice(outcomes, len(clips)), strict=True))
        for variant, shards in sets.items():
            now = {path: outcome[variant] for path, outcome in tried.items()}
            if variant not in missing.get(shard, ()) and shards.can_gain(shard, now):
                missing.setdefault(shard, []).append(variant)


def encode_shard(
    shard: int,
    listed: Sequence[ClipMeta],
    prepared: Iterable[Prepared],
    encoder: Encoder,
    writers: Mapping[Variant, ShardWriter],
) -> Callable[[], None]:
    """Encodes the clips of one shard.

    Batches never span shards and contain every variant, even one that is not written, so features are bit-identical
    whichever shards a killed run left behind.

    Args:
      shard: number of the shard.
      listed: clips that belong in the shard.
      prepared: outcome of each listed clip's preparation, in order.
      encoder: the encoder.
      writers: writers of the variants to write.

    Returns:
      A function that writes the shard for each variant; the next shard can be encoded in the meantime.
    """
    watch = Stopwatch()
    some = next(iter(writers.values()))
    outcomes: dict[Variant, list[StoredClip | Failure]] = {variant: [] for variant in writers}

    def ready() -> Iterator[PreparedClip]:
        for clip in watch.waiting("wait", prepared):
            for stage, spent in clip.seconds.items():
                watch.seconds[stage] += spent
            for variant, outcome in clip.outcomes.items():
                if not isinstance(outcome, Failure):
                    yield from outcome
                elif variant in writers:
                    outcomes[variant].append(outcome)

    encoded = encoder.encode(ready(), some.dtype, "multimodal" in some.store)
    keys = set()
    for clip, result in watch.waiting("encode", encoded):
        keys.add(clip.meta.path)
        if clip.variant in writers:
            outcomes[clip.variant].append(result if isinstance(result, Failure) else _stored(clip, result, some))
    watch.seconds["encode"] -= watch.seconds["wait"]
    seconds = {stage: spent / len(writers) for stage, spent in watch.seconds.items()}  # the variants share the work
    order = list_order(listed)
    pieces = {key: encoder.pieces[key] for key in sorted(encoder.pieces.keys() & keys, key=order)}

    def write() -> None:
        for variant, writer in writers.items():
            writer.write(shard, listed, outcomes[variant], seconds, {"pieces": json.dumps(pieces)} if pieces else {})

    return write


def _unless_failed(writing: Future[None], prepared: Iterable[Prepared]) -> Iterator[Prepared]:
    """Yields prepared clips until the shard being written fails, and then raises its error."""
    for clip in prepared:
        if writing.done():
            writing.result()
        yield clip


def _stored(clip: PreparedClip, features: ClipFeatures, writer: ShardWriter) -> StoredClip:
    """Keeps only what the writer stores of a clip, because a shard's clips stay in memory until it is written."""
    arrays = {name: getattr(features, name) for name in ("visual", "audio", "multimodal")}
    kept = {name: array.astype(writer.dtype) for name, array in arrays.items() if array is not None}
    ragged = {name: getattr(clip, name) for name in RAGGED if name in writer.store}
    return StoredClip(clip.meta, ClipFeatures(**kept), **ragged)


def _counted(prepared: Iterable[Prepared], progress: ProgressBar) -> Iterator[Prepared]:
    for clip in prepared:
        progress.add(1, clip.frames, clip.failed)
        yield clip
