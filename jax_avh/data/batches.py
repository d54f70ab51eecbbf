"""Batches of the frame stream: of static shape, the same for any number of devices and processes.

Batch i is the frames i*B .. (i+1)*B - 1 of the stream, borders of clips notwithstanding. It is handed out in C equal
chunks, one a device, each with its own halo of tau audio frames on both sides, so that no device needs another's
frames. A process reads only the chunks of its own devices. What a chunk has beyond the batch's last frame, or the
stream's, has weight 0.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import grain
import numpy as np

from jax_avh.data.stream import FrameStream
from jax_avh.models.windows import FrameBatch

READ_THREADS = 2, 8  # of a local disk; of a bucket, where each read waits long
PREFETCH = 2  # batches read ahead, for each thread


@dataclasses.dataclass(frozen=True)
class FrameBatches(Sequence):
    """The batches of one pass over a stream; each is a FrameBatch whose arrays have a leading axis of chunks."""

    stream: FrameStream
    batch_frames: int  # B
    tau: int  # halo
    chunks: int = 1  # C, of the whole batch
    own: range | None = None  # consecutive chunks that this process reads; None = all

    def __len__(self) -> int:
        return -(-self.stream.frames // self.batch_frames)

    @property
    def chunk_frames(self) -> int:
        """Visual frames of a chunk."""
        return -(-self.batch_frames // self.chunks)

    def __getitem__(self, index: int) -> FrameBatch:
        if not 0 <= index < len(self):
            raise IndexError(index)
        own, size, begin = self.own or range(self.chunks), self.chunk_frames, index * self.batch_frames
        start, stop = begin + own.start * size, begin + own.stop * size
        halo = start - self.tau, stop + self.tau
        counted = np.arange(start, stop) < min(begin + self.batch_frames, self.stream.frames)
        return FrameBatch(
            visual=self._chunks(self.stream.features("visual", start, stop)),
            audio=self._chunks(self.stream.features("audio", *halo)),
            clip=self._chunks(self.stream.places(*halo)),
            weight=self._chunks(counted.astype(np.float32)),
        )

    def _chunks(self, rows: np.ndarray) -> np.ndarray:
        """Cuts consecutive rows into chunks; those longer than all chunks together overlap."""
        starts = range(0, len(self.own or range(self.chunks)) * self.chunk_frames, self.chunk_frames)
        length = len(rows) - starts[-1]
        return np.stack([rows[start : start + length] for start in starts])


def prefetched(batches: FrameBatches, first: int = 0) -> Iterator[FrameBatch]:
    """Batches from `first` on, read ahead in the background."""
    threads = READ_THREADS[not batches.stream.source.local]
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=PREFETCH * threads)
    yield from grain.MapDataset.source(batches)[first:].to_iter_dataset(options)
