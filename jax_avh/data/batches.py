"""Batches of frames or examples, of static shape and the same for any number of devices and processes.

A batch consists of C equal chunks, one per device; a process reads only the chunks of its own devices. Places beyond
the last frame or example have weight 0.

Letters: T visual frames, L = T + 2 tau audio frames, N clips, D feature width; B and E examples.
"""

import abc
import dataclasses
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import grain
import jax
import numpy as np
from jaxtyping import Float, Int, Shaped

from avh_shards.clip import UNKNOWN, offsets
from avh_shards.paths import REQUESTS
from jax_avh.data.source import Source

PADDING = -1  # clip number of frames that belong to no clip
READ_THREADS = 2, 8  # for a local disk; for a bucket, where each read has high latency
PREFETCH = 2  # batches read ahead per thread
OneBatch = TypeVar("OneBatch")
Seed = tuple[int, int]  # (seed, epoch), which determine the order of a pass


def pass_order(count: int, seed: Seed | None = None) -> Int[np.ndarray, " count"]:
    """Returns the order of `count` clips or examples, as determined by (seed, epoch); None = their own order."""
    return np.arange(count) if seed is None else np.random.default_rng(seed).permutation(count)


def even_borders(count: int, size: int) -> Int[np.ndarray, "borders"]:
    """Returns the borders of batches of equal size; the last batch holds the remainder."""
    return np.minimum(np.arange(-(-count // size) + 1) * size, count)


def prefetched(batches: Sequence[OneBatch], local: bool, first: int = 0) -> Iterator[OneBatch]:
    """Yields the batches of a pass, read ahead in the background.

    Args:
      batches: the batches.
      local: whether they are read from local files.
      first: index of the first batch to yield.
    """
    threads = READ_THREADS[not local]
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=PREFETCH * threads)
    yield from grain.MapDataset.source(batches)[first:].to_iter_dataset(options)


# --- frames ----------------------------------------------------------------------------------------------------------
# Clips are concatenated to a stream, where each frame has the number of its clip. A batch holds consecutive frames of
# the stream: a fixed number regardless of the borders of clips, or as many whole clips as fit. Each chunk has its own
# halo of tau audio frames on both sides, so that no device needs the frames of another.


class FrameBatch(NamedTuple):
    """T consecutive frames of the stream, with tau frames of halo on each side of the audio.

    A batch for several devices has a leading axis of chunks.
    """

    visual: Float[Any, "*chunks T D"]  # on the host or on the devices; not normalised
    audio: Float[Any, "*chunks L D"]
    clip: Int[Any, "*chunks L"]  # clip number of each audio frame; that of visual frame t is at t + tau
    weight: Float[Any, "*chunks T"]  # 1 = a frame that counts, 0 = padding
    label: Int[Any, "*chunks T"]  # label of the visual frame's clip: 0 real, 1 fake, -1 unknown


@dataclasses.dataclass(frozen=True)
class FrameStream:
    """Frames of a source's clips, concatenated in some order of the clips."""

    source: Source
    order: Int[np.ndarray, " N"]  # clip at each place of the stream
    border: Int[np.ndarray, "borders"]  # place n is frames border[n]:border[n+1] of the stream

    @property
    def frames(self) -> int:
        """Number of frames in the stream."""
        return int(self.border[-1])

    def features(self, name: str, start: int, stop: int) -> Float[np.ndarray, "T D"]:
        """Reads `visual` or `audio` features of the frames start:stop; frames beyond the stream are zeros."""
        return next(self.features_of([(name, start, stop)]))

    def features_of(self, parts: Sequence[tuple[str, int, int]]) -> Iterator[Float[np.ndarray, "T D"]]:
        """Yields several parts of the stream, each (`visual` or `audio`, start, stop) and as `features` returns it.

        From shards at a URL, the clips of all parts are read at the same time.
        """
        pieces = [
            (name, int(self.order[place]), first - int(self.border[place]), last - int(self.border[place]))
            for name, start, stop in parts
            for place, first, last in self._pieces(start, stop)
        ]
        read = self.source.features_of(pieces)
        for _, start, stop in parts:
            yield self._end_to_end(read, start, stop)

    def _end_to_end(self, read: Iterator[Float[np.ndarray, "T D"]], start: int, stop: int) -> Float[np.ndarray, "T D"]:
        frames = np.zeros((stop - start, self.source.width), self.source.dtype)
        for _, first, last in self._pieces(start, stop):
            frames[first - start : last - start] = next(read)
        return frames

    def places(self, start: int, stop: int) -> Int[np.ndarray, " T"]:
        """Returns the place of each frame's clip, for the frames start:stop; PADDING beyond the stream."""
        places = np.full(stop - start, PADDING, np.int32)
        for place, first, last in self._pieces(start, stop):
            places[first - start : last - start] = place
        return places

    def labels(self, start: int, stop: int) -> Int[np.ndarray, " T"]:
        """Returns the label of each frame's clip, for the frames start:stop; UNKNOWN beyond the stream."""
        places = self.places(start, stop)
        return np.where(places == PADDING, UNKNOWN, self.source.labels[self.order[places]]).astype(np.int32)

    def _pieces(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Yields the place of each clip that overlaps start:stop, with the first and last frame of the overlap."""
        place = max(int(np.searchsorted(self.border, start, side="right")) - 1, 0)
        while place < len(self.order) and self.border[place] < stop:
            yield place, max(start, int(self.border[place])), min(stop, int(self.border[place + 1]))
            place += 1


def frame_stream(source: Source, seed: Seed | None = None) -> FrameStream:
    """Concatenates a source's clips in the order of (seed, epoch); None = the source's own order."""
    order = pass_order(len(source.members), seed)
    return FrameStream(source, order, offsets(source.lengths[order]))


@dataclasses.dataclass(frozen=True)
class FrameBatches(Sequence[FrameBatch]):
    """Batches of one pass over a stream; each is a FrameBatch whose arrays have a leading axis of chunks."""

    stream: FrameStream
    border: Int[np.ndarray, "borders"]  # batch i is frames border[i]:border[i+1]
    items: Int[np.ndarray, " steps"]  # items that the loss of each batch sums over: frames or whole clips
    room: int  # capacity of a batch in frames
    tau: int  # audio frames of halo on each side of a chunk
    whole_clips: bool
    chunks: int  # C, over all processes
    own: range  # consecutive chunks that this process reads

    def __len__(self) -> int:
        return len(self.items)

    @property
    def chunk_frames(self) -> int:
        """Number of visual frames in a chunk."""
        return -(-self.room // self.chunks)

    def __getitem__(self, index: int) -> FrameBatch:
        if not 0 <= index < len(self):
            raise IndexError(index)
        begin, end = map(int, self.border[index : index + 2])
        start = begin + self.own.start * self.chunk_frames
        stop = begin + self.own.stop * self.chunk_frames
        halo = start - self.tau, stop + self.tau
        # `map` keeps no frames, so that the memory of the visual ones serves for the audio.
        visual, audio = map(self._chunks, self.stream.features_of([("visual", start, stop), ("audio", *halo)]))
        return FrameBatch(
            visual=visual,
            audio=audio,
            clip=self._chunks(self.stream.places(*halo)),
            weight=self._chunks((np.arange(start, stop) < end).astype(np.float32)),
            label=self._chunks(self.stream.labels(start, stop)),
        )

    def _chunks(self, rows: np.ndarray) -> np.ndarray:
        """Cuts consecutive rows into chunks, which overlap if the rows include a halo."""
        if len(self.own) == 1:
            return rows[None]  # no copy
        starts = range(0, len(self.own) * self.chunk_frames, self.chunk_frames)
        length = len(rows) - starts[-1]
        return np.stack([rows[start : start + length] for start in starts])


def frame_batches(
    stream: FrameStream,
    frames: int,
    tau: int = 0,
    *,
    whole_clips: bool = False,
    clips: int = 0,
    chunks: int = 1,
    own: range | None = None,
) -> FrameBatches:
    """Cuts a stream into batches.

    Args:
      stream: the frames.
      frames: frames of a batch; with whole clips, at most, unless a single clip is longer.
      tau: audio frames of halo on each side of a chunk.
      whole_clips: whether each batch ends with a clip.
      clips: most clips of a batch of whole clips; 0 = as many as fit.
      chunks: chunks of a batch over all processes, one per device.
      own: consecutive chunks that this process reads; None = all.
    """
    own = own or range(chunks)
    if not whole_clips:
        border = even_borders(stream.frames, frames)
        return FrameBatches(stream, border, np.diff(border), frames, tau, whole_clips, chunks, own)
    # Capacity for any order of the clips, because each other shape would compile another program.
    longest = np.sort(np.diff(stream.border))[::-1]
    room = max(frames, int(longest[0]))
    if clips:
        room = min(room, int(longest[:clips].sum()))
    fit = np.searchsorted(stream.border, stream.border + room, side="right") - 1  # place after a batch from each place
    first = [0]
    while first[-1] < len(stream.order):
        end = int(fit[first[-1]])
        first.append(min(end, first[-1] + clips) if clips else end)
    return FrameBatches(stream, stream.border[first], np.diff(first), room, tau, whole_clips, chunks, own)


# --- examples --------------------------------------------------------------------------------------------------------
# An example is a fixed-size piece of a clip, which a network on sound or pictures takes as one input.


class ExampleBatch(NamedTuple):
    """B examples; a batch for several devices has a leading axis of chunks."""

    inputs: dict[str, Shaped[Any, "..."]]  # as stored; on the host or on the devices
    label: Int[Any, "*chunks B"]  # label of the example's clip: 0 real, 1 fake, -1 unknown
    weight: Float[Any, "*chunks B"]  # 1 = an example that counts, 0 = padding


class Examples(abc.ABC):
    """Examples of a source, clip by clip."""

    def __init__(self, source: Source, clip: Int[np.ndarray, " E"]):
        self.source = source
        self.clip = clip  # clip of each example, in rising order

    @abc.abstractmethod
    def read(self, example: int) -> dict[str, np.ndarray]:
        """Reads an example's inputs, whose shapes are the same for all examples."""


@dataclasses.dataclass(frozen=True)
class ExampleBatches(Sequence[ExampleBatch]):
    """Batches of one pass over examples; their arrays have a leading axis of chunks."""

    examples: Examples
    order: Int[np.ndarray, " E"]  # example at each place of the pass
    size: int  # B, over all processes; a multiple of `chunks`
    full_only: bool = False  # whether to leave out an incomplete last batch
    chunks: int = 1  # C, over all processes
    own: range | None = None  # consecutive chunks that this process reads; None = all

    @property
    def border(self) -> Int[np.ndarray, "borders"]:
        """Borders of the batches: batch i holds the examples order[border[i]:border[i+1]]."""
        count = len(self.order) // self.size * self.size if self.full_only else len(self.order)
        return even_borders(count, self.size)

    @property
    def items(self) -> Int[np.ndarray, " steps"]:
        """Number of examples in each batch."""
        return np.diff(self.border)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> ExampleBatch:
        if not 0 <= index < len(self):
            raise IndexError(index)
        own = self.own or range(self.chunks)
        part = self.size // self.chunks
        places = np.arange(index * self.size + own.start * part, index * self.size + own.stop * part)
        chosen = self.order[np.minimum(places, len(self.order) - 1)]  # padding repeats an example
        read = self._read(chosen.tolist())
        batch = ExampleBatch(
            inputs={name: np.stack([arrays[name] for arrays in read]) for name in read[0]},
            label=self.examples.source.labels[self.examples.clip[chosen]].astype(np.int32),
            weight=(places < len(self.order)).astype(np.float32),
        )
        return jax.tree.map(lambda array: array.reshape(len(own), part, *array.shape[1:]), batch)

    def _read(self, chosen: list[int]) -> list[dict[str, np.ndarray]]:
        if self.examples.source.local:
            return [self.examples.read(example) for example in chosen]
        with ThreadPoolExecutor(REQUESTS) as threads:  # they only wait
            return list(threads.map(self.examples.read, chosen))
