"""Clips -> shards on one machine: processes prepare, this process encodes and writes."""

import itertools
import os
from collections.abc import Iterable, Iterator

from extract.encoder import Encoder
from extract.job import Job, make_shard
from extract.progress import Progress
from extract.shard_set import ShardSet, merge, tasks_shards
from extract.workers import Prepared, prepare_all, running_pool


def extract(job: Job, avhubert: str | os.PathLike, index: int = 0, count: int = 1) -> list[dict[str, object] | None]:
    """Extracts features; shards that are already there are kept, so a killed run goes on where it was.

    Args:
      job: what to extract.
      avhubert: an official AV-HuBERT file, or "random".
      index: of this task, among
      count: tasks that share the job.

    Returns:
      What `extraction.json` says of each set; None while other tasks still have shards to make.

    Raises:
      InputError: the weights, the folder of media, or shards of another run in the output folder.
    """
    job.start(index)
    encoder = Encoder(avhubert, job.settings.encode)
    sets = job.shard_sets(encoder.attributes)
    missing = missing_shards(sets, index, count)
    any_set = next(iter(sets.values()))
    listed = [any_set.clips_of(shard) for shard in sorted(missing)]
    total = sum(len(any_set.clips_of(shard)) for shard in tasks_shards(range(any_set.count), index, count))
    pending = [clip for part in listed for clip in part]
    with running_pool(job.settings.processes) as pool, Progress(total, total - len(pending)) as progress:
        prepared = _counted(prepare_all(pool, pending, job.task, job.settings.processes), progress)
        for shard, part in zip(sorted(missing), listed, strict=True):
            writers = {form: sets[form].writer for form in missing[shard]}
            make_shard(shard, part, itertools.islice(prepared, len(part)), encoder, writers)
    return [merge(folder) for folder in job.folders().values()]


def _on_ray(*arguments: object) -> list[dict[str, object] | None]:
    from extract.cluster import extract_on_ray  # needs the extra `ray`

    return extract_on_ray(*arguments)


RUNNERS = {"none": extract, "ray": _on_ray}  # --cluster


def missing_shards(sets: dict[bool, ShardSet], index: int, count: int) -> dict[int, list[bool]]:
    """The shards that a task still has to make, and for which forms."""
    missing: dict[int, list[bool]] = {}
    for form, shards in sets.items():
        for shard in tasks_shards(shards.missing(), index, count):
            missing.setdefault(shard, []).append(form)
    return missing


def _counted(prepared: Iterable[Prepared], progress: Progress) -> Iterator[Prepared]:
    for clip in prepared:
        progress.add(1, clip.frames, clip.failed)
        yield clip
