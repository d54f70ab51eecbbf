"""Benchmark of reading shards in a bucket: in few requests, many at a time, against one clip after another.

The bucket is a file system in memory, where every request takes 30 ms, and its data 10 ms per megabyte.

python -m benchmarks.bucket
"""

import argparse
import dataclasses
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import fsspec
import numpy as np
from fsspec.implementations.memory import MemoryFileSystem
from upath import UPath

from avh_shards import ClipMeta
from avh_shards.format import list_shards, read_shard_table
from avh_shards.hdf5 import read_bytes
from extract.store.shard import ClipFeatures, ShardWriter, StoredClip
from jax_avh.data.batches import frame_batches, frame_streams, prefetched, read_parts
from jax_avh.data.source import PAIRED_FEATURES, RowRange, Source, open_source

LATENCY, SECONDS_PER_BYTE = 0.03, 1e-8  # of one request
WIDTH, CLIP_FRAMES = 1024, 228
BATCH_FRAMES = (1024, 8192)
URL = "memory://bucket"


class SlowFileSystem(MemoryFileSystem):
    """A file system in memory whose requests take time; it counts them."""

    requests = waiting = most = 0
    lock = threading.Lock()

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: object) -> bytes:
        """Reads bytes start:end of a file."""
        kind = type(self)
        with self.lock:
            kind.requests += 1
            kind.waiting += 1
            kind.most = max(kind.most, kind.waiting)
        data = super().cat_file(path, start, end, **options)
        time.sleep(LATENCY + len(data) * SECONDS_PER_BYTE)
        with self.lock:
            kind.waiting -= 1
        return data


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=32, help="number of shards")
    parser.add_argument("--clips", type=int, default=32, help="clips of 228 frames in each shard")
    arguments = parser.parse_args()
    fsspec.register_implementation("memory", SlowFileSystem, clobber=True)
    make_shards(arguments.shards, arguments.clips)
    files = list_shards(URL)
    print("| | one after another, s | ours, s | ratio | requests | most at a time |\n|---|---|---|---|---|---|")
    compare(f"opening {len(files)} shards", lambda: [*map(read_shard_table, files)], lambda: open_source(URL))
    source = open_source(URL)
    single = dataclasses.replace(source, rows=one_by_one)
    frames = int(source.lengths.sum())
    compare(
        f"the features of {frames} frames, {source.nbytes / 1e9:.2f} GB, in their order",
        lambda: read_whole(single),
        lambda: read_whole(source),
    )
    for size in BATCH_FRAMES:
        compare(
            f"the same, shuffled, in batches of {size} frames",
            lambda size=size: read_batches(single, size),
            lambda size=size: read_batches(source, size),
        )


def make_shards(shards: int, clips: int) -> None:
    """Writes shards with random features to the bucket."""
    rng = np.random.default_rng(0)
    attributes = {"encoder": "none", "weights_sha256": "", "width": WIDTH, "trimmed": False, "settings": "{}"}
    with tempfile.TemporaryDirectory() as folder:
        writer = ShardWriter(Path(folder), "float16", attributes)
        for shard in range(shards):
            listed = [ClipMeta(f"{shard}/{n}.mp4", label=0) for n in range(clips)]
            features = rng.standard_normal((2, CLIP_FRAMES, WIDTH), np.float32).astype(np.float16)
            writer.write(shard, listed, [StoredClip(clip, ClipFeatures(*features)) for clip in listed])
            UPath(f"{URL}/{writer.path(shard).name}").write_bytes(writer.path(shard).read_bytes())
            writer.path(shard).unlink()


def one_by_one(ranges: Sequence[RowRange]) -> Iterator[np.ndarray]:
    """Reads ranges of rows by one request after another, as `rows_of_file` does with local files."""
    for shard, content, first, last in ranges:
        extent = shard.extent(content)
        yield extent.view(read_bytes(shard.path, *extent.span(first, last)))


def read_whole(source: Source) -> None:
    """Reads all features."""
    (stream,) = frame_streams(source)
    frames = np.zeros((len(PAIRED_FEATURES), stream.frames, source.width), source.dtype)
    read_parts([(stream, name, 0, rows) for name, rows in zip(PAIRED_FEATURES, frames, strict=True)])


def read_batches(source: Source, size: int) -> None:
    """Reads an epoch of batches, ahead in several threads, as training does."""
    for _ in prefetched(frame_batches(frame_streams(source, (0, 0)), size), local=False):
        pass


def compare(name: str, before: Callable[[], object], ours: Callable[[], object]) -> None:
    """Prints a line of the table."""
    seconds = []
    for read in (before, ours):
        SlowFileSystem.requests = SlowFileSystem.most = 0
        began = time.monotonic()
        read()
        seconds.append(time.monotonic() - began)
    print(
        f"| {name} | {seconds[0]:.2f} | {seconds[1]:.2f} | {seconds[0] / seconds[1]:.1f} "
        f"| {SlowFileSystem.requests} | {SlowFileSystem.most} |",
        flush=True,
    )


if __name__ == "__main__":
    main()
