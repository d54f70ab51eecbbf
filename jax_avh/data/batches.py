"""Batches of the frame stream: of static shape, the same for any number of devices and processes.

Batch i is some consecutive frames of the stream: a fixed number, borders of clips notwithstanding, or as many whole
clips as fit. It is handed out in C equal chunks, one a device, each with its own halo of tau audio frames on both
sides, so that no device needs another's frames. A process reads only the chunks of its own devices. What a chunk has
beyond the batch's last frame, or the stream's, has weight 0.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeVar

import grain
import numpy as np
from jaxtyping import Int

from jax_avh.data.source import FeatureSource
from jax_avh.data.stream import FrameStream
from jax_avh.models.windows import FrameBatch

READ_THREADS = 2, 8  # of a local disk; of a bucket, where each read waits long
PREFETCH = 2  # batches read ahead, for each thread
Batch = TypeVar("Batch")


class Plan(NamedTuple):
    """Which frames of a stream make each batch."""

    border: Int[np.ndarray, "borders"]  # batch i is frames border[i]:border[i+1]
    items: Int[np.ndarray, " steps"]  # of each batch that its loss is summed over: frames, or clips
    room: int  # frames that a batch has place for


def even_plan(count: int, size: int) -> Plan:
    """Batches of one size; the last holds what is left."""
    border = np.minimum(np.arange(-(-count // size) + 1) * size, count)
    return Plan(border, np.diff(border), size)


@dataclasses.dataclass(frozen=True)
class Batching:
    """How a stream is cut into batches."""

    frames: int  # of a batch; of whole clips, at most, unless a single one is longer
    whole_clips: bool = False
    clips: int = 0  # whole clips of a batch at most; 0 = as many as fit

    def plan(self, stream: FrameStream) -> Plan:
        """The batches of a stream."""
        if not self.whole_clips:
            return even_plan(stream.frames, self.frames)
        first, room = [0], self.room(stream)
        fit = np.searchsorted(stream.border, stream.border + room, side="right") - 1  # the clip after a full batch
        while first[-1] < len(stream.order):
            end = int(fit[first[-1]])
            first.append(min(end, first[-1] + self.clips) if self.clips else end)
        return Plan(stream.border[first], np.diff(first), room)

    def room(self, stream: FrameStream) -> int:
        """Frames that a batch has place for, whatever the order of the stream's clips."""
        if not self.whole_clips:
            return self.frames
        longest = np.sort(np.diff(stream.border))[::-1]
        room = max(self.frames, int(longest[0]))
        return min(room, int(longest[: self.clips].sum())) if self.clips else room


@dataclasses.dataclass(frozen=True)
class FrameBatches(Sequence):
    """The batches of one pass over a stream; each is a FrameBatch whose arrays have a leading axis of chunks."""

    stream: FrameStream
    plan: Plan
    tau: int  # halo
    chunks: int = 1  # C, of the whole batch
    own: range | None = None  # consecutive chunks that this process reads; None = all

    def __len__(self) -> int:
        return len(self.plan.items)

    @property
    def source(self) -> FeatureSource:
        """Whose frames they are."""
        return self.stream.source

    @property
    def chunk_frames(self) -> int:
        """Visual frames of a chunk."""
        return -(-self.plan.room // self.chunks)

    def __getitem__(self, index: int) -> FrameBatch:
        if not 0 <= index < len(self):
            raise IndexError(index)
        own, size, (begin, end) = self._own, self.chunk_frames, map(int, self.plan.border[index : index + 2])
        start, stop = begin + own.start * size, begin + own.stop * size
        halo = start - self.tau, stop + self.tau
        return FrameBatch(
            visual=self._chunks(self.stream.features("visual", start, stop)),
            audio=self._chunks(self.stream.features("audio", *halo)),
            clip=self._chunks(self.stream.places(*halo)),
            weight=self._chunks((np.arange(start, stop) < end).astype(np.float32)),
            label=self._chunks(self.stream.labels(start, stop)),
        )

    @property
    def _own(self) -> range:
        return self.own or range(self.chunks)

    def _chunks(self, rows: np.ndarray) -> np.ndarray:
        """Cuts consecutive rows into chunks; those longer than all chunks together overlap."""
        if len(self._own) == 1:
            return rows[None]  # without copying them
        starts = range(0, len(self._own) * self.chunk_frames, self.chunk_frames)
        length = len(rows) - starts[-1]
        return np.stack([rows[start : start + length] for start in starts])


def prefetched(batches: Sequence[Batch], first: int = 0) -> Iterator[Batch]:
    """Batches of a pass from `first` on, read ahead in the background."""
    threads = READ_THREADS[not batches.source.local]
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=PREFETCH * threads)
    yield from grain.MapDataset.source(batches)[first:].to_iter_dataset(options)
