"""Extraction on a Ray cluster: tasks prepare clips on every core, actors encode them and write shards.

Both run the same functions as on a single machine. A task prepares its clip in a separate process, so a crash or hang
affects only that clip; an actor encodes a shard with `job.encode_shard` while it writes the one before. The work of a
node that dies is repeated on other nodes. Every node must see the media and the output under the same paths.
"""

import functools
import logging
import os
import threading
from collections.abc import Iterator, Sequence
from typing import cast

import torch

from avh_shards import ClipMeta, UserError
from avh_shards.errors import Failure
from avh_shards.format import Variant
from avh_shards.text import one_line
from extract.avhubert.encoder import Encoder, EncodeSettings
from extract.progress import ProgressBar
from extract.run.job import Job, add_gaining_shards, encode_shard, failed_clips, missing_shards
from extract.run.pool import Prepared, PrepareTask, open_pool, prepare_all
from extract.store.shard import ShardWriter
from extract.store.shard_set import ExtractionSummary, ShardSet, merge

try:
    import ray
    import ray.exceptions
except ImportError as error:
    raise UserError("--cluster=ray needs the package ray (extra `ray`)") from error

RETRIES = 20  # of a clip whose node or worker died, which is rarely the clip's fault; after that it counts as failed
LOST = tuple(  # raised by the result of a clip whose workers died too often
    getattr(ray.exceptions, name)
    for name in ("WorkerCrashedError", "NodeDiedError", "ObjectLostError", "OutOfMemoryError")
)
SHARDS_AHEAD = 2  # shards per actor in preparation or encoding: bounds the object store


def extract_on_ray(
    job: Job, avhubert: str | os.PathLike, index: int = 0, count: int = 1
) -> list[ExtractionSummary | None]:
    """Runs `job.extract` on the cluster at RAY_ADDRESS, or on a local cluster if that is not set.

    Takes the same arguments, returns the same summaries and writes the same shards as `job.extract`.

    Raises:
      UserError: as `job.extract`, or Ray cannot be started or the cluster fails.
    """
    job.check()
    with job.locked(index, count):
        attributes = Encoder(avhubert, job.settings.encode, torch.device("cpu")).attributes  # the GPU is an actor's
        sets = job.shard_sets(attributes)
        missing = missing_shards(sets, index, count)
        failed = failed_clips(sets, missing, index, count, job.settings.retry_failed)
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray sends usage statistics by default
        try:
            ray.init(log_to_driver=False, ignore_reinit_error=True, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError) as error:
            raise UserError(f"Ray cannot be reached or started: {error}") from error
        try:
            add_gaining_shards(missing, sets, failed, _try_again(job.task, failed))
            _make_shards(job, avhubert, sets, missing)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None  # the error that a single machine would raise
        except ray.exceptions.RayError as error:
            raise UserError(
                f"the Ray cluster failed: {one_line(error)}; run the same command again to resume"
            ) from error
    return [merge(folder) for folder in job.folders().values()]


def _try_again(task: PrepareTask, failed: dict[int, list[ClipMeta]]) -> Iterator[dict[Variant, Failure | None]]:
    """Retries failed clips and yields the failure of each by variant, None where it succeeds."""
    shared = ray.put(task)
    tried = [(clip, _failures.remote(clip, shared)) for clips in failed.values() for clip in clips]
    for clip, reference in tried:
        try:
            yield ray.get(reference)
        except LOST:
            yield task.all_failed(_lost(clip)).failures


def _make_shards(
    job: Job, avhubert: str | os.PathLike, sets: dict[Variant, ShardSet], missing: dict[int, list[Variant]]
) -> None:
    any_set = next(iter(sets.values()))
    actors = _start_actors(avhubert, job)
    task = ray.put(job.task)
    load: dict[ray.ObjectRef, int] = {}  # shard in progress -> its actor
    with ProgressBar(sum(len(any_set.clips_of(shard)) for shard in missing)) as progress:
        for shard in sorted(missing):
            if len(load) >= SHARDS_AHEAD * len(actors):
                _wait_for_one(load, progress)
            actor = min(range(len(actors)), key=list(load.values()).count)
            listed = any_set.clips_of(shard)
            prepared = [_prepare.remote(clip, task) for clip in listed]
            writers = {variant: sets[variant].writer for variant in missing[shard]}
            load[actors[actor].make_shard.remote(shard, listed, prepared, writers)] = actor
        while load:
            _wait_for_one(load, progress)


def _start_actors(avhubert: str | os.PathLike, job: Job) -> list:
    """Starts one encoder for each GPU of the cluster, or one on the CPU if there is none."""
    gpus = int(ray.cluster_resources().get("GPU", 0))
    # An actor on the CPU reserves no core, or it would starve the tasks on a small machine.
    options = {"num_gpus": 1, "num_cpus": 1} if gpus else {"num_cpus": 0}
    actor = _EncoderActor.options(max_restarts=-1, max_task_retries=-1, max_concurrency=SHARDS_AHEAD, **options)
    arguments = str(avhubert), job.settings.encode, job.task, torch.get_num_threads()
    return [actor.remote(*arguments) for _ in range(max(gpus, 1))]


def _wait_for_one(load: dict, progress: ProgressBar) -> None:
    (done,), _ = ray.wait(list(load), num_returns=1)
    del load[done]
    progress.add(*ray.get(done))


@ray.remote(num_cpus=1, max_retries=RETRIES)
def _prepare(clip: ClipMeta, task: PrepareTask) -> Prepared:
    """Prepares a clip in a separate process next to this worker's."""
    (prepared,) = prepare_all(_worker_pool(task), [clip], task, 1)
    return prepared


@ray.remote(num_cpus=1, max_retries=RETRIES)
def _failures(clip: ClipMeta, task: PrepareTask) -> dict[Variant, Failure | None]:
    """Prepares a clip as `_prepare` does, but returns only the failures."""
    (prepared,) = prepare_all(_worker_pool(task), [clip], task, 1)
    return prepared.failures


def _lost(clip: ClipMeta) -> Failure:
    return Failure(clip.path, "prepare", f"its machine died {RETRIES + 1} times", passing=True)


@functools.cache
def _worker_pool(task: PrepareTask):
    """Opens this worker's pool of one process, once."""
    return open_pool(task, 1)


@ray.remote
class _EncoderActor:
    def __init__(self, avhubert: str, settings: EncodeSettings, task: PrepareTask, threads: int):
        torch.set_num_threads(threads)  # as on a single machine, because the number of threads affects the last digits
        self.encoder = Encoder(avhubert, settings)
        self.encoding = threading.Lock()  # one shard at a time, while another may be written
        self.task = task

    def make_shard(
        self, shard: int, listed: Sequence[ClipMeta], prepared: Sequence, writers: dict[Variant, ShardWriter]
    ) -> tuple[int, int, int]:
        """Encodes and writes a shard; returns its numbers of clips, frames and failures."""
        frames = failed = 0

        def arrived() -> Iterator[Prepared]:
            nonlocal frames, failed
            for clip, reference in zip(listed, prepared, strict=True):
                try:
                    outcome = cast(Prepared, ray.get(reference))
                except LOST:
                    outcome = self.task.all_failed(_lost(clip))
                frames += outcome.frames
                failed += outcome.failed
                yield outcome

        with self.encoding:
            write = encode_shard(shard, listed, arrived(), self.encoder, writers)
        write()
        return len(listed), frames, failed
