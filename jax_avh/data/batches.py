"""Batches of frames or examples, of static shape and the same for any number of devices and processes.

A batch consists of C equal chunks, as many on each device; a process reads only the chunks of its own devices. Places
beyond the last frame or example have weight 0.

Letters: T visual frames, L = T + 2 tau audio frames, N clips, S streams, D feature width; B and E examples.
"""

import abc
import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

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


def pass_order(count: int, seed: tuple[int, ...] | None = None) -> Int[np.ndarray, " count"]:
    """Returns the order of `count` clips or examples, as determined by a seed; None = their own order."""
    return np.arange(count) if seed is None else np.random.default_rng(seed).permutation(count)


def prefetched(batches: Sequence[OneBatch], local: bool, first: int = 0) -> Iterator[OneBatch]:
    """Yields the batches of a pass, read ahead in the background.

    Args:
      batches: the batches.
      local: whether they are read from local files.
      first: index of the first batch to yield.
    """
    if len(batches) - first == 1:  # nothing to read ahead
        yield batches[first]
        return
    import grain  # takes half a second to import, because it loads Orbax; scoring a single clip does without

    threads = READ_THREADS[not local]
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=PREFETCH * threads)
    yield from grain.MapDataset.source(batches)[first:].to_iter_dataset(options)


# --- frames ----------------------------------------------------------------------------------------------------------
# Clips are concatenated to streams, where each frame has the number of its clip. A batch holds consecutive frames of
# each stream: a fixed number regardless of the borders of clips, or as many whole clips as fit. Each chunk has its own
# halo of tau audio frames on both sides, so that no device needs the frames of another. A single stream is cut into as
# many chunks as there are devices. Of several streams, each contributes one chunk, and always stays on one device.


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
    """Frames of clips of a source, concatenated in some order."""

    source: Source
    order: Int[np.ndarray, " N"]  # clip at each place of the stream
    border: Int[np.ndarray, "borders"]  # place n is frames border[n]:border[n+1] of the stream
    first_place: int = 0  # number of the first place, so that the places of several streams differ

    @property
    def frames(self) -> int:
        """Number of frames in the stream."""
        return int(self.border[-1])

    def places(self, start: int, stop: int) -> Int[np.ndarray, " T"]:
        """Returns the place of each frame's clip, for the frames start:stop; PADDING beyond the stream."""
        places = np.full(stop - start, PADDING, np.int32)
        for place, first, last in self.pieces(start, stop):
            places[first - start : last - start] = self.first_place + place
        return places

    def labels(self, start: int, stop: int) -> Int[np.ndarray, " T"]:
        """Returns the label of each frame's clip, for the frames start:stop; UNKNOWN beyond the stream."""
        labels = np.full(stop - start, UNKNOWN, np.int32)
        for place, first, last in self.pieces(start, stop):
            labels[first - start : last - start] = self.source.labels[self.order[place]]
        return labels

    def pieces(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Yields the place of each clip that overlaps start:stop, with the first and last frame of the overlap."""
        place = max(int(np.searchsorted(self.border, start, side="right")) - 1, 0)
        while place < len(self.order) and self.border[place] < stop:
            yield place, max(start, int(self.border[place])), min(stop, int(self.border[place + 1]))
            place += 1


def read_parts(parts: Sequence[tuple[FrameStream, str, int, Float[np.ndarray, "_ D"]]]) -> None:
    """Reads parts of streams of one source; from shards at a URL, the clips of all parts are read at the same time.

    Args:
      parts: (stream, `visual` or `audio`, first frame, array to fill); frames beyond a stream are not written.
    """
    pieces = []
    targets = []
    for stream, name, start, frames in parts:
        for place, first, last in stream.pieces(start, start + len(frames)):
            begin = int(stream.border[place])
            pieces.append((name, int(stream.order[place]), first - begin, last - begin))
            targets.append(frames[first - start : last - start])
    read = parts[0][0].source.features_of(pieces)
    for target in targets:
        target[:] = next(read)


def frame_streams(source: Source, seed: Seed | None = None, count: int = 1) -> tuple[FrameStream, ...]:
    """Concatenates a source's clips to streams of about equal length.

    Each stream has the same clips in every epoch. They are consecutive clips of the source, so that a process reads few
    shards. A stream may be empty.

    Args:
      source: the clips.
      seed: (seed, epoch), which determine the order within each stream; None = the source's own order.
      count: number of streams S.
    """
    begin = offsets(source.lengths)
    stream = (begin[:-1] + begin[1:]) * count // (2 * begin[-1])  # of each clip, by its middle
    borders = np.searchsorted(stream, np.arange(count + 1))
    streams = []
    for number, (first, last) in enumerate(itertools.pairwise(borders.tolist())):
        order = first + pass_order(last - first, seed if seed is None or count == 1 else (*seed, number))
        streams.append(FrameStream(source, order, offsets(source.lengths[order]), first))
    return tuple(streams)


@dataclasses.dataclass(frozen=True)
class FrameBatches(Sequence[FrameBatch]):
    """Batches of one pass over streams; each is a FrameBatch whose arrays have a leading axis of chunks."""

    streams: tuple[FrameStream, ...]
    border: Int[np.ndarray, "S borders"]  # batch i takes frames border[s, i]:border[s, i+1] of stream s
    items: Int[np.ndarray, " steps"]  # items that the loss of each batch sums over: frames or whole clips
    chunk_frames: int  # visual frames of a chunk
    tau: int  # audio frames of halo on each side of a chunk
    whole_clips: bool
    chunks: int  # C, over all processes
    own: range  # consecutive chunks that this process reads

    def __len__(self) -> int:
        return len(self.items)

    @property
    def sizes(self) -> Int[np.ndarray, " steps"]:
        """Number of frames in each batch."""
        return np.diff(self.border).sum(axis=0)

    def __getitem__(self, index: int) -> FrameBatch:
        if not 0 <= index < len(self):
            raise IndexError(index)
        parts = [self._part(index, chunk) for chunk in self.own]
        size, tau = self.chunk_frames, self.tau
        source = self.streams[0].source
        visual = np.zeros((len(parts), size, source.width), source.dtype)
        audio = np.zeros((len(parts), size + 2 * tau, source.width), source.dtype)
        read_parts(
            [(stream, "visual", start, rows) for (stream, start, _), rows in zip(parts, visual, strict=True)]
            + [(stream, "audio", start - tau, rows) for (stream, start, _), rows in zip(parts, audio, strict=True)]
        )
        return FrameBatch(
            visual=visual,
            audio=audio,
            clip=np.stack([stream.places(start - tau, start + size + tau) for stream, start, _ in parts]),
            weight=np.stack([(np.arange(size) < end - start).astype(np.float32) for _, start, end in parts]),
            label=np.stack([stream.labels(start, start + size) for stream, start, _ in parts]),
        )

    def _part(self, index: int, chunk: int) -> tuple[FrameStream, int, int]:
        """Returns the stream of a batch's chunk, the first frame of the chunk, and the end of the batch."""
        number, part = divmod(chunk, self.chunks // len(self.streams))
        begin, end = map(int, self.border[number, index : index + 2])
        return self.streams[number], begin + part * self.chunk_frames, end


def frame_batches(
    streams: tuple[FrameStream, ...],
    frames: int,
    tau: int = 0,
    *,
    whole_clips: bool = False,
    clips: int = 0,
    chunks: int = 1,
    own: range | None = None,
) -> FrameBatches:
    """Cuts streams into batches.

    Args:
      streams: the frames.
      frames: frames of a batch, a multiple of the streams; with whole clips, at most, unless a single clip is longer.
      tau: audio frames of halo on each side of a chunk.
      whole_clips: whether each batch ends with a clip.
      clips: most clips of a batch of whole clips, a multiple of the streams; 0 = as many as fit.
      chunks: chunks of a batch over all processes; as many of each stream.
      own: consecutive chunks that this process reads; None = all.
    """
    count = len(streams)
    assert frames % count == clips % count == chunks % count == 0
    room = frames // count  # frames of each stream in a batch
    if whole_clips:
        # Room for any order of the clips, because each other shape would compile another program.
        longest = [np.sort(np.diff(stream.border))[::-1] for stream in streams]
        room = max(room, *(int(lengths[:1].sum()) for lengths in longest))
        if clips:
            room = min(room, max(int(lengths[: clips // count].sum()) for lengths in longest))
        firsts = [_whole_clips(stream, room, clips // count) for stream in streams]
        steps = max(map(len, firsts)) - 1
        firsts = [np.pad(first, (0, steps + 1 - len(first)), "edge") for first in firsts]
        border = np.stack([stream.border[first] for stream, first in zip(streams, firsts, strict=True)])
        items = np.diff(firsts).sum(axis=0)
    else:
        steps = -(-max(stream.frames for stream in streams) // room)
        border = np.minimum(np.arange(steps + 1) * room, [[stream.frames] for stream in streams])
        items = np.diff(border).sum(axis=0)
    chunk_frames = -(-room // (chunks // count))
    return FrameBatches(streams, border, items, chunk_frames, tau, whole_clips, chunks, own or range(chunks))


def _whole_clips(stream: FrameStream, room: int, clips: int) -> list[int]:
    """Returns the first place of each batch of whole clips, and the place after the last batch."""
    fit = np.searchsorted(stream.border, stream.border + room, side="right") - 1  # place after a batch from each place
    first = [0]
    while first[-1] < len(stream.order):
        end = int(fit[first[-1]])
        first.append(min(end, first[-1] + clips) if clips else end)
    return first


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
        return np.minimum(np.arange(-(-count // self.size) + 1) * self.size, count)

    @property
    def items(self) -> Int[np.ndarray, " steps"]:
        """Number of examples in each batch."""
        return np.diff(self.border)

    sizes = items

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
