"""Clips -> shards on one machine: processes prepare, this process encodes and writes."""

import itertools
import os
from collections.abc import Iterable, Iterator

from extract.avhubert.encoder import Encoder
from extract.progress import ProgressBar
from extract.run.job import Job, add_gaining_shards, failed_clips, make_shard, missing_shards, tasks_shards
from extract.run.pool import Prepared, prepare_all, running_pool
from extract.store.summary import ExtractionSummary, merge


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


def _counted(prepared: Iterable[Prepared], progress: ProgressBar) -> Iterator[Prepared]:
    for clip in prepared:
        progress.add(1, clip.frames, clip.failed)
        yield clip
