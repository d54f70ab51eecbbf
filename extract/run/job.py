"""An extraction: what it needs to know, on one machine or many; the making of one shard; and all of it on one machine.

There, processes prepare clips, and this process encodes them and writes the shards.
"""

import contextlib
import dataclasses
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from avh_shards import ClipMeta, UserError
from avh_shards.clip_list import refuse_shared_names
from avh_shards.errors import Failure
from avh_shards.format import RAGGED, Variant
from avh_shards.paths import FilePath, as_path, locked, reachable
from extract.avhubert.encoder import Encoder, EncodeSettings
from extract.prepare import FINDERS, PreparedClip, PrepareSettings
from extract.progress import ProgressBar, Stopwatch
from extract.run.pool import Prepared, PrepareTask, prepare_all, running_pool
from extract.store.shard import ClipFeatures, ShardWriter, StoredClip
from extract.store.shard_set import CLIP_LIST, ExtractionSummary, ShardSet, merge, task_lock

VARIANTS = {  # --trimmed -> what is made of each clip
    "false": (Variant.UNTRIMMED,),
    "true": (Variant.TRIMMED,),
    "both": (Variant.UNTRIMMED, Variant.TRIMMED),
}


@dataclasses.dataclass(frozen=True)
class ExtractSettings:
    """Choices of an extraction run; all but the last three change numbers or their place."""

    prepare: PrepareSettings = dataclasses.field(default_factory=PrepareSettings)
    encode: EncodeSettings = dataclasses.field(default_factory=EncodeSettings)
    trimmed: str = "false"  # drop the leading silence from both modalities: false, true, or both (two sets)
    store: tuple[str, ...] = ()  # optional contents of the shards: of format.OPTIONAL
    dtype: str = "float16"  # of the stored features
    clips_per_shard: int = 256
    processes: int = len(os.sched_getaffinity(0))  # that prepare clips
    clip_timeout: float = 600.0  # seconds after which a clip's preparation counts as hung
    retry_failed: str = "passing"  # failures of an earlier run that are tried again: of errors.RETRIED

    @property
    def variants(self) -> tuple[Variant, ...]:
        """What is made of each clip."""
        return VARIANTS[self.trimmed]


@dataclasses.dataclass(frozen=True)
class Job:
    """What to extract, from where, to where."""

    clips: Sequence[ClipMeta]
    media: str  # folder of the clips' files
    output: str  # folder or URL of the shards
    settings: ExtractSettings

    def check(self) -> None:
        """Rejects what cannot work, before any work is done.

        Raises:
          UserError: the folders do not exist, or two clips would be read from one file.
        """
        if not Path(self.media).is_dir():
            raise UserError(f"{self.media}: no such folder of media files")
        reachable(self.output)
        prepare = self.settings.prepare
        files = prepare.landmarks not in FINDERS
        if files and not Path(prepare.landmarks).exists():
            raise UserError(f"{prepare.landmarks}: no such folder of landmarks, and none of {', '.join(FINDERS)}")
        if files and Path(prepare.landmarks).is_file() and len(self.clips) > 1:
            raise UserError(f"{prepare.landmarks}: is the file of one clip; name the folder with one for each clip")
        if prepare.input == "roi" or files:
            refuse_shared_names(self.clips)

    @contextlib.contextmanager
    def locked(self, index: int, count: int) -> Iterator[None]:
        """Keeps other runs of a task from writing to its folders while the block lasts.

        Raises:
          UserError: there is another one.
        """
        with contextlib.ExitStack() as stack:
            for folder in self.folders().values():
                stack.enter_context(locked(folder, task_lock(folder, index, count)))
            yield

    @property
    def task(self) -> PrepareTask:
        """How every clip is prepared."""
        return PrepareTask(self.media, self.settings.prepare, self.settings.variants, self.settings.clip_timeout)

    def shard_sets(self, encoder: Mapping[str, object]) -> dict[Variant, ShardSet]:
        """Returns the sets to make.

        Args:
          encoder: the attributes that name it.
        """
        settings = self.settings
        numbers = dataclasses.asdict(settings.prepare) | dataclasses.asdict(settings.encode)
        if settings.prepare.input == "roi" or settings.prepare.min_face_share == 0:
            del numbers["min_face_share"]  # fails no clip, like sets made before there was such a setting
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
    """Extracts features; shards that are already there are kept, so a killed run resumes where it was.

    First, clips that failed in an earlier run are tried again, by default those that failed for a passing reason
    (`job.settings.retry_failed`). That costs these clips only: a shard is made again, as a whole, if one of its failed
    clips can be prepared now, and a clip that it holds already is never lost to a new failure.

    Args:
      job: what to extract.
      avhubert: an official AV-HuBERT file, or "random".
      index: of this task, among
      count: tasks that share the job.

    Returns:
      The summary of each set; None while other tasks still have shards to make.

    Raises:
      UserError: the weights, the folder of media, shards of another run in the output folder, or another run of this
        task that is still writing there.
    """
    job.check()
    processes = job.settings.processes
    with job.locked(index, count), running_pool(processes) as pool:
        encoder = Encoder(avhubert, job.settings.encode)
        sets = job.shard_sets(encoder.attributes)
        missing = missing_shards(sets, index, count)
        if failed := failed_clips(sets, missing, index, count, job.settings.retry_failed):
            again = [clip for clips in failed.values() for clip in clips]
            with ProgressBar(len(again), title="failed clips again") as progress:
                prepared = _counted(prepare_all(pool, again, job.task, processes), progress)
                add_gaining_shards(missing, sets, failed, (clip.failures for clip in prepared))
        any_set = next(iter(sets.values()))
        listed = [any_set.clips_of(shard) for shard in sorted(missing)]
        total = sum(len(any_set.clips_of(shard)) for shard in tasks_shards(range(any_set.count), index, count))
        pending = [clip for part in listed for clip in part]
        with ProgressBar(total, total - len(pending)) as progress:
            prepared = _counted(prepare_all(pool, pending, job.task, processes), progress)
            for shard, part in zip(sorted(missing), listed, strict=True):
                writers = {variant: sets[variant].writer for variant in missing[shard]}
                make_shard(shard, part, itertools.islice(prepared, len(part)), encoder, writers)
    return [merge(folder) for folder in job.folders().values()]


def merge_sets(output: str) -> list[ExtractionSummary]:
    """Sums up the set, or the two sets, in a folder.

    Raises:
      UserError: the folder holds no set, or a shard is missing.
    """
    both = [reachable(output) / variant.value for variant in Variant]
    folders = both if any((folder / CLIP_LIST).exists() for folder in both) else [as_path(output)]
    summaries = [merge(folder) for folder in folders]
    if None in summaries:
        raise UserError(f"{folders[summaries.index(None)]}: shards are missing; run the tasks that make them first")
    return [summary for summary in summaries if summary is not None]


def missing_shards(sets: Mapping[Variant, ShardSet], index: int, count: int) -> dict[int, list[Variant]]:
    """Returns the shards that a task still has to make, and for which variants."""
    missing: dict[int, list[Variant]] = {}
    for variant, shards in sets.items():
        for shard in tasks_shards(shards.missing(), index, count):
            missing.setdefault(shard, []).append(variant)
    return missing


def tasks_shards(shards: Iterable[int], index: int, count: int) -> Iterator[int]:
    """Yields the shards of one of several tasks: shard k is made by task k mod count."""
    return (shard for shard in shards if shard % count == index)


def failed_clips(
    sets: Mapping[Variant, ShardSet], missing: Mapping[int, list[Variant]], index: int, count: int, retry: str
) -> dict[int, list[ClipMeta]]:
    """Returns the clips that a task tries again, by shard: those that failed in its shards that are there."""
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
    """Adds the shards to make again to those that are missing; brings the failure logs of the others up to date.

    Args:
      missing: shards to make, and for which variants.
      sets: by variant.
      failed: the clips that were tried again, by shard.
      outcomes: for each of them, by variant, why it fails now; None if it can be had.
    """
    for shard, clips in failed.items():
        tried = dict(zip([clip.path for clip in clips], itertools.islice(outcomes, len(clips)), strict=True))
        for variant, shards in sets.items():
            now = {path: outcome[variant] for path, outcome in tried.items()}
            if variant not in missing.get(shard, ()) and shards.can_gain(shard, now):
                missing.setdefault(shard, []).append(variant)


def make_shard(
    shard: int,
    listed: Sequence[ClipMeta],
    prepared: Iterable[Prepared],
    encoder: Encoder,
    writers: Mapping[Variant, ShardWriter],
) -> None:
    """Encodes the clips of one shard and writes it, once for each variant.

    Batches never span shards, and hold every variant, even one that is not written: features are then the same bits
    whichever shards a killed run left behind.

    Args:
      shard: its number.
      listed: the clips that belong in it.
      prepared: what became of each of them.
      encoder: the encoder.
      writers: of the variants to write.
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
                    yield outcome
                elif variant in writers:
                    outcomes[variant].append(outcome)

    encoded = encoder.encode(ready(), some.dtype, "multimodal" in some.store)
    for clip, result in watch.waiting("encode", encoded):
        if clip.variant in writers:
            outcomes[clip.variant].append(result if isinstance(result, Failure) else _stored(clip, result, some))
    watch.seconds["encode"] -= watch.seconds["wait"]
    seconds = {stage: spent / len(writers) for stage, spent in watch.seconds.items()}  # the variants share the work
    pieces = {clip.path: encoder.pieces[clip.path] for clip in listed if clip.path in encoder.pieces}
    for variant, writer in writers.items():
        writer.write(shard, listed, outcomes[variant], seconds, {"pieces": json.dumps(pieces)} if pieces else {})


def _stored(clip: PreparedClip, features: ClipFeatures, writer: ShardWriter) -> StoredClip:
    """What the writer stores of a clip, and no more: a shard's clips are held until it is written."""
    arrays = {name: getattr(features, name) for name in ("visual", "audio", "multimodal")}
    kept = {name: array.astype(writer.dtype) for name, array in arrays.items() if array is not None}
    ragged = {name: getattr(clip, name) for name in RAGGED if name in writer.store}
    return StoredClip(clip.meta, ClipFeatures(**kept), **ragged)


def _counted(prepared: Iterable[Prepared], progress: ProgressBar) -> Iterator[Prepared]:
    for clip in prepared:
        progress.add(1, clip.frames, clip.failed)
        yield clip
