"""Clips -> shards on one machine: processes prepare, this process encodes and writes.

A clip that fails, hangs, or takes its process down costs that clip alone: it lands in the failure log with a reason.
"""

import collections
import concurrent.futures
import dataclasses
import json
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import cv2
import pebble
import torch
import tqdm

from extract.avhubert.checkpoint import load_avhubert, random_avhubert, sha256
from extract.avhubert.encode import batches, encode_clips
from extract.avhubert.network import AVHubert, AVHubertConfig
from extract.clips import ClipError, Failure, refuse_shared_names
from extract.prepare.clip import PreparedClip, PrepareSettings, prepare_clip
from extract.schema import RANDOM_WEIGHTS, ClipMeta, InputError
from extract.shards import ClipFeatures, ShardSet, check_features
from extract.stopwatch import Stopwatch

AHEAD = 4  # clips in preparation or waiting, for each process: bounds memory
RANDOM_ENCODER = "random"  # in place of a file: seeded random weights, at the size of the official large model


@dataclasses.dataclass(frozen=True)
class ExtractSettings:
    """Choices of an extraction run; `prepare` and `dtype` change numbers, the others do not."""

    prepare: PrepareSettings = dataclasses.field(default_factory=PrepareSettings)
    dtype: str = "float16"  # of the stored features
    clips_per_shard: int = 256
    processes: int = os.cpu_count() or 1  # that prepare clips
    clip_timeout: float = 600.0  # seconds after which a clip's preparation counts as hung


def extract(
    clips: Sequence[ClipMeta],
    media: str | os.PathLike,
    avhubert: str | os.PathLike,
    output: str | os.PathLike,
    settings: ExtractSettings,
) -> dict[str, object]:
    """Extracts features; shards that are already there are kept, so a killed run goes on where it was.

    Args:
      clips: the clip list.
      media: folder of the clips' files.
      avhubert: an official AV-HuBERT file, or "random".
      output: folder of the shards.
      settings: how.

    Returns:
      What `extraction.json` says: counts, and seconds by stage of this run.

    Raises:
      InputError: the weights, the folder of media, or shards of another run in `output`.
    """
    if not Path(media).is_dir():
        raise InputError(f"{media}: no such folder of media files")
    watch = Stopwatch()
    network, attributes = open_encoder(avhubert)
    shards = ShardSet(Path(output), clips, settings.clips_per_shard, settings.dtype, attributes | _attributes(settings))
    missing = shards.missing()
    pending = [clip for shard in missing for clip in shards.clips_of(shard)]
    if settings.prepare.input == "roi":
        refuse_shared_names(clips)
    done = len(clips) - len(pending)
    with (
        pebble.ProcessPool(settings.processes, initializer=_start_worker, context=_SPAWN) as pool,
        tqdm.tqdm(desc="clips", unit="clip", initial=done, total=len(clips)) as bar,
    ):
        outcomes = watch.waiting("prepare", _prepared(pool, pending, media, settings))
        try:
            shards.fill(missing, lambda part: _encoded(network, outcomes, len(part), settings.dtype, watch, bar), watch)
        except BaseException:
            pool.stop()  # an error or Ctrl-C must not wait for the clips in preparation
            raise
    return shards.summarise(watch.summary())


def open_encoder(avhubert: str | os.PathLike) -> tuple[AVHubert, dict[str, object]]:
    """An encoder on the fastest device here, and the shard attributes that name it."""
    if str(avhubert) == RANDOM_ENCODER:
        network, digest = random_avhubert(AVHubertConfig.large()), RANDOM_WEIGHTS
    else:
        network, digest = load_avhubert(avhubert), sha256(avhubert)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cudnn.allow_tf32 = False  # float32 means float32: features agree between machines
    width = network.config.width
    kind = "random weights, " if digest == RANDOM_WEIGHTS else ""
    encoder = f"AV-HuBERT ({kind}{network.config.layers} layers, width {width})"
    return network.to(device), {"encoder": encoder, "weights_sha256": digest, "width": width}


_SPAWN = multiprocessing.get_context("spawn")  # a fork would copy torch's threads in an unknown state


def _start_worker() -> None:
    cv2.setNumThreads(1)  # the processes themselves fill the cores


def _attributes(settings: ExtractSettings) -> dict[str, object]:
    """Shard attributes that tell one run from another."""
    numbers = dataclasses.asdict(settings.prepare) | {"landmarks": "dlib", "dtype": settings.dtype}
    shape = {"clips_per_shard": settings.clips_per_shard}
    return {"trimmed": settings.prepare.trimmed, "settings": json.dumps(numbers | shape, sort_keys=True)}


def _prepared(
    pool: pebble.ProcessPool, clips: Iterable[ClipMeta], media: str | os.PathLike, settings: ExtractSettings
) -> Iterator[PreparedClip | Failure]:
    """Outcomes in the clips' order, a bounded number of clips ahead of their use."""
    waiting = collections.deque()
    for clip in clips:
        arguments = (prepare_clip, clip, media, settings.prepare)
        waiting.append((clip, pool.schedule(attempt, arguments, timeout=settings.clip_timeout)))
        if len(waiting) > AHEAD * settings.processes:
            yield _outcome(*waiting.popleft())
    while waiting:
        yield _outcome(*waiting.popleft())


def attempt(
    prepare: Callable[..., PreparedClip], clip: ClipMeta, media: str | os.PathLike, settings: PrepareSettings
) -> PreparedClip | Failure:
    """Prepares a clip; whatever its file makes a library raise becomes the clip's failure."""
    try:
        return prepare(clip, media, settings)
    except ClipError as error:
        return Failure(clip.path, error.stage, error.reason)
    except InputError:  # not this clip's fault: a missing landmark model, say
        raise
    except Exception as error:
        return Failure(clip.path, "prepare", f"unexpected {type(error).__name__}: {' '.join(str(error).split())}")


def _outcome(clip: ClipMeta, future: pebble.ProcessFuture) -> PreparedClip | Failure:
    try:
        return future.result()
    except concurrent.futures.TimeoutError as error:
        return Failure(clip.path, "prepare", f"preparation took longer than {error.args[-1]:g} s")
    except pebble.ProcessExpired as error:
        return Failure(clip.path, "prepare", f"its decoder crashed (exit status {error.exitcode})")


def _encoded(
    network: AVHubert,
    outcomes: Iterator[PreparedClip | Failure],
    count: int,
    dtype: str,
    watch: Stopwatch,
    bar: tqdm.tqdm,
) -> list[tuple[ClipMeta, ClipFeatures] | Failure]:
    """The next `count` outcomes, prepared clips encoded batch by batch (a batch never spans two shards)."""
    results: list[tuple[ClipMeta, ClipFeatures] | Failure] = []

    def prepared() -> Iterator[PreparedClip]:
        for _ in range(count):
            outcome = next(outcomes)
            bar.update()
            if isinstance(outcome, Failure):
                results.append(outcome)
            else:
                yield outcome

    for batch in batches(prepared()):
        with watch.stage("encode"):
            results += _encode_batch(network, batch, dtype)
    return results


def _encode_batch(
    network: AVHubert, batch: list[PreparedClip], dtype: str
) -> list[tuple[ClipMeta, ClipFeatures] | Failure]:
    """A batch's features; a batch that does not fit into memory is encoded clip by clip."""
    try:
        encoded = encode_clips(network, batch)
    except (MemoryError, RuntimeError) as error:  # torch's own out-of-memory errors are RuntimeErrors
        if len(batch) > 1:
            return [outcome for clip in batch for outcome in _encode_batch(network, [clip], dtype)]
        return [Failure(batch[0].meta.path, "encode", f"cannot be encoded: {' '.join(str(error).split())}")]
    reasons = [check_features(features, network.config.width, dtype) for features in encoded]
    return [
        Failure(clip.meta.path, "encode", reason) if reason else (clip.meta, features)
        for clip, features, reason in zip(batch, encoded, reasons, strict=True)
    ]
