"""Batches of the frame stream: of static shape, the same for any number of devices.

Batch i is the frames i*B .. (i+1)*B - 1 of the stream, borders of clips notwithstanding. It is handed out in C equal
chunks, one a device, each with its own halo of tau audio frames on both sides, so that no device needs another's
frames. The last batch is filled up with frames of weight 0.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import grain
import numpy as np

from jax_avh.data.stream import FrameStream
from jax_avh.models.windows import FrameBatch

READ_THREADS = 1  # HDF5 pages come from one disk; more threads only contend
PREFETCH = 4  # batches read ahead


@dataclasses.dataclass(frozen=True)
class FrameBatches(Sequence):
    """The batches of one pass over a stream; each is a FrameBatch whose arrays have a leading axis of chunks."""

    stream: FrameStream
    batch_frames: int  # B
    tau: int  # halo
    chunks: int = 1  # C

    def __len__(self) -> int:
        return -(-self.stream.frames // self.batch_frames)

    def __getitem__(self, index: int) -> FrameBatch:
        if not 0 <= index < len(self):
            raise IndexError(index)
        start = index * self.batch_frames
        stop = min(start + self.batch_frames, self.stream.frames)
        size = -(-self.batch_frames // self.chunks)
        chunks = [self._chunk(start + chunk * size, size, stop) for chunk in range(self.chunks)]
        return FrameBatch(*map(np.stack, zip(*chunks, strict=True)))

    def _chunk(self, start: int, size: int, stop: int) -> FrameBatch:
        """`size` frames from `start`, those from `stop` on without weight."""
        halo = start - self.tau, start + size + self.tau
        return FrameBatch(
            visual=self.stream.features("visual", start, start + size),
            audio=self.stream.features("audio", *halo),
            clip=self.stream.places(*halo),
            weight=(np.arange(start, start + size) < stop).astype(np.float32),
        )


def prefetched(batches: FrameBatches, first: int = 0) -> Iterator[FrameBatch]:
    """Batches from `first` on, read ahead in the background.

    Raises:
      InputError: naming the clip, where features hold NaN or infinity (a ReLU may hide them from the scores).
    """
    options = grain.ReadOptions(num_threads=READ_THREADS, prefetch_buffer_size=PREFETCH)
    for batch in grain.MapDataset.source(batches)[first:].to_iter_dataset(options):
        if not (np.isfinite(batch.visual).all() and np.isfinite(batch.audio).all()):
            batches.stream.source.check_finite()
        yield batch
