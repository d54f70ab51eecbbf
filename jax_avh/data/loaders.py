"""Loaders, which put the batches of an epoch on the devices, and the choice of where features are kept between epochs.

A loader yields batches in the form that the compiled loop of training takes: a tuple of one batch, read when it is due
(`StreamingLoader`), or many batches that the loop gathers from features that stay on the devices (`DeviceLoader`). Both
yield the same batches. The second needs as many streams of clips on each device, so that no device needs features of
another.

Letters: S streams, N clips, D feature width, F frames of the longest stream, P with padding around it.
"""

import abc
import dataclasses
import functools
import os
import resource
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from avh_shards import UserError
from avh_shards.clip import offsets
from jax_avh.config import Config
from jax_avh.data.batches import (
    PADDING,
    ExampleBatch,
    ExampleBatches,
    Examples,
    FrameBatch,
    FrameBatches,
    FrameStream,
    Seed,
    frame_batches,
    frame_streams,
    pass_order,
    prefetched,
    read_parts,
)
from jax_avh.data.source import PAIRED_FEATURES, Source
from jax_avh.parallel import is_imagined, on_own_part, own_devices, put_parts, put_rows, run_on_own_parts

LOOP_STEPS = 100  # most steps of one compiled loop, so that losses arrive every few seconds
SHARE = 0.6  # share of a host's memory that features may take; the rest is for the computation
DEVICE_SHARE = 0.92  # share of an accelerator's memory that features and a step may take
GIGABYTE = 1e9
STATIC = {"static": True}  # metadata of a field that is a constant of compiled programs

Batch = FrameBatch | ExampleBatch


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DeviceBatches:
    """Consecutive batches of features on the devices, each gathered when a compiled loop asks for it.

    All arrays are sharded by streams.
    """

    visual: Float[Any, "S F D"]  # in the source's order
    audio: Float[Any, "S F D"]
    row: Int[Any, "S P"]  # row of the features of each frame, and of the padding around the stream; -1 = none
    place: Int[Any, "S P"]  # place of its clip
    label: Int[Any, "S P"]
    border: Int[Any, "S borders"]  # borders of the batches
    steps: int = dataclasses.field(metadata=STATIC)
    chunk_frames: int = dataclasses.field(metadata=STATIC)
    tau: int = dataclasses.field(metadata=STATIC)
    mesh: Mesh = dataclasses.field(metadata=STATIC)

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, index: int | Int[Array, ""]) -> FrameBatch:
        """Gathers a batch, one chunk of each stream."""
        size, tau = self.chunk_frames, self.tau

        def own_chunks(index: Int[Array, ""], part: tuple[Array, ...]) -> FrameBatch:
            visual, audio, row, place, label, border = part
            start, end = border[:, index], border[:, index + 1]
            row, place, label = (
                jax.vmap(lambda frames, start: jax.lax.dynamic_slice_in_dim(frames, start, size + 2 * tau))(x, start)
                for x in (row, place, label)
            )
            return FrameBatch(
                visual=_rows(visual, row[:, tau : tau + size]),
                audio=_rows(audio, row),
                clip=place,
                weight=(start[:, None] + jnp.arange(size)[None] < end[:, None]).astype(jnp.float32),
                label=label[:, tau : tau + size],
            )

        part = self.visual, self.audio, self.row, self.place, self.label, self.border
        return on_own_part(self.mesh, own_chunks)(jnp.asarray(index), part)


def _rows(features: Float[Array, "S F D"], row: Int[Array, "S T"]) -> Float[Array, "S T D"]:
    """Returns rows of each stream's features; zeros where there is none."""
    streams, frames, width = features.shape
    first = np.arange(streams, dtype=np.int32)[:, None] * frames
    found = jnp.take(features.reshape(-1, width), row + first, axis=0, mode="clip")
    return jnp.where(row[..., None] >= 0, found, jnp.zeros((), features.dtype))


Batches = tuple[Batch] | DeviceBatches  # consecutive batches of one compiled loop: len(), [index]


class Epoch(NamedTuple):
    """One pass over a source."""

    frames: Int[np.ndarray, " steps"]  # frames, or examples, in the batch of each step
    items: Int[np.ndarray, " steps"]  # items that the loss of each batch sums over: frames, whole clips or examples
    batches: Iterator[Batches]  # from the requested step on


@dataclasses.dataclass(frozen=True)
class Loader(abc.ABC):
    """Base class of loaders, which put the batches of a source on the devices."""

    source: Source
    mesh: Mesh
    batches: Callable[[Seed | None], FrameBatches | ExampleBatches]  # (seed, epoch) -> batches of a pass

    def epoch(self, seed: Seed | None, first_step: int = 0) -> Epoch:
        """Returns a pass over the source.

        Args:
          seed: (seed, epoch), which determine the order; None = the source's own order.
          first_step: step at which the batches start.
        """
        batches = self.batches(seed)
        return Epoch(batches.sizes, batches.items, self.on_devices(batches, first_step))

    @abc.abstractmethod
    def on_devices(self, batches: Any, first: int) -> Iterator[Batches]:
        """Yields the batches of a pass, on the devices, from step `first` on."""


Loaders = tuple[Loader, Loader, str]  # for training, for validation; a phrase that says where their data is kept


class StreamingLoader(Loader):
    """Loader that reads each batch from the shards or from host memory when it is due; features may be of any size."""

    def on_devices(self, batches: FrameBatches | ExampleBatches, first: int) -> Iterator[tuple[Batch]]:
        """See Loader."""
        return ((put_parts(self.mesh, batch),) for batch in prefetched(batches, self.source.local, first))


@dataclasses.dataclass(frozen=True)
class DeviceLoader(Loader):
    """Loader that keeps all features on the devices, sharded, so that many steps run in one compiled loop."""

    visual: Float[Any, "S F D"]
    audio: Float[Any, "S F D"]
    loop_steps: int  # most steps of one loop

    def on_devices(self, batches: FrameBatches, first: int) -> Iterator[DeviceBatches]:
        """See Loader; loops end at the same steps wherever the pass starts."""
        row, place, label = self._index(batches)
        own = slice(batches.own.start, batches.own.stop)
        while first < len(batches):
            end = min(first - first % self.loop_steps + self.loop_steps, len(batches))
            if batches.whole_clips and end - first < self.loop_steps:
                end = first + 1  # their number changes with the order, and each would compile a new program
            yield DeviceBatches(
                visual=self.visual,
                audio=self.audio,
                row=row,
                place=place,
                label=label,
                border=put_parts(self.mesh, batches.border[own, first : end + 1].astype(np.int32)),
                steps=end - first,
                chunk_frames=batches.chunk_frames,
                tau=batches.tau,
                mesh=self.mesh,
            )
            first = end

    def _index(self, batches: FrameBatches) -> tuple[Int[Any, "S P"], Int[Any, "S P"], Int[Any, "S P"]]:
        """Returns row, place and label of every frame of the streams, and of the padding that batches may reach.

        The host sends only the order of the clips, because an epoch may be shorter than sending the frames would take.
        """
        assert len(batches.streams) == batches.chunks
        streams = [batches.streams[chunk] for chunk in batches.own]
        clips = max(len(stream.order) for stream in batches.streams)

        def of_clips(values: Callable[[FrameStream], np.ndarray]) -> Int[np.ndarray, "S N"]:
            return np.stack([np.pad(values(s), (0, clips - len(s.order))) for s in streams]).astype(np.int32)

        begin = offsets(self.source.lengths)  # row of the first frame of each clip
        ordered = (
            of_clips(lambda stream: self.source.lengths[stream.order]),
            of_clips(lambda stream: begin[stream.order] - begin[stream.first_place]),
            of_clips(lambda stream: self.source.labels[stream.order]),
            np.array([stream.first_place for stream in streams], np.int32),
        )
        sizes = self.visual.shape[1], batches.tau, batches.chunk_frames
        return run_on_own_parts(self.mesh, _frames_of_clips, sizes, put_parts(self.mesh, ordered))


def _frames_of_clips(sizes: tuple[int, int, int], _: tuple, ordered: tuple[Array, ...]) -> tuple[Array, Array, Array]:
    """Expands the clips of streams, in their order, to row, place and label of each frame and of the padding around.

    Args:
      sizes: frames of the longest stream, of a halo and of a chunk.
      _: nothing.
      ordered: lengths, first rows and labels of each stream's clips [S, N], and the stream's first place [S].
    """
    room, tau, chunk_frames = sizes

    def of_stream(
        length: Int[Array, " N"], first: Int[Array, " N"], label: Int[Array, " N"], first_place: Int[Array, ""]
    ) -> tuple[Array, Array, Array]:
        clip = jnp.repeat(jnp.arange(len(length), dtype=jnp.int32), length, total_repeat_length=room)
        end = jnp.cumsum(length, dtype=jnp.int32)
        frame = jnp.arange(room, dtype=jnp.int32)
        rows = first[clip] + frame - (end - length)[clip]
        around = (tau, chunk_frames + tau)
        rows, place, label = (
            jnp.pad(jnp.where(frame < end[-1], x, PADDING), around, constant_values=PADDING)
            for x in (rows, first_place + clip, label[clip])
        )
        return rows, place, label

    return jax.vmap(of_stream)(*ordered)


def stream_frames(source: Source, mesh: Mesh, frames: int, tau: int, **cut: Any) -> StreamingLoader:
    """Returns a loader that reads a source's frames batch by batch; arguments as for `hold_frames`."""
    return StreamingLoader(source, mesh, functools.partial(_cut, source, mesh, frames, tau, **cut))


def hold_frames(
    source: Source, mesh: Mesh, frames: int, tau: int, loop_steps: int = LOOP_STEPS, streams: int = 1, **cut: Any
) -> DeviceLoader:
    """Puts a source's features on the devices, and returns their loader.

    Args:
      source: the clips.
      mesh: the devices.
      frames: frames of a batch.
      tau: audio frames of halo on each side of a chunk.
      loop_steps: most steps of one compiled loop, up to LOOP_STEPS.
      streams: number of streams, a multiple of the devices.
      cut: further arguments of `frame_batches`.
    """
    ordered = frame_streams(source, count=streams)
    room = max(stream.frames for stream in ordered)
    assert streams % mesh.size == 0
    assert streams // mesh.size * room < 2**31  # rows are int32

    def on_devices(name: str) -> Float[Any, "S F D"]:
        def read(first: int, last: int) -> Float[np.ndarray, "s F D"]:
            features = np.zeros((last - first, room, source.width), source.dtype)
            read_parts([(stream, name, 0, rows) for stream, rows in zip(ordered[first:last], features, strict=True)])
            return features

        return put_rows(mesh, (streams, room, source.width), source.dtype, read)

    visual, audio = map(on_devices, PAIRED_FEATURES)
    batches = functools.partial(_cut, source, mesh, frames, tau, streams=streams, **cut)
    return DeviceLoader(source, mesh, batches, visual, audio, min(loop_steps, LOOP_STEPS))


def _cut(
    source: Source, mesh: Mesh, frames: int, tau: int, seed: Seed | None, streams: int = 1, **cut: Any
) -> FrameBatches:
    chunks = mesh.size if streams == 1 else streams
    own, each = own_devices(mesh), chunks // mesh.size
    own = range(own.start * each, own.stop * each)
    return frame_batches(frame_streams(source, seed, streams), frames, tau, **cut, chunks=chunks, own=own)


def stream_examples(examples: Examples, mesh: Mesh, size: int, full_only: bool = False) -> StreamingLoader:
    """Returns a loader of batches of `size` examples; arguments as for `ExampleBatches`."""

    def batches(seed: Seed | None) -> ExampleBatches:
        order = pass_order(len(examples.clip), seed)
        return ExampleBatches(examples, order, size, full_only, mesh.size, own_devices(mesh))

    return StreamingLoader(examples.source, mesh, batches)


# --- where features are kept -----------------------------------------------------------------------------------------


class FeatureSize(NamedTuple):
    """Size of the features of a run, and of a step."""

    nbytes: int
    local: bool  # whether they are files of this machine
    shards: int
    streams: int = 1  # streams of clips
    step: int = 0  # further bytes that a step takes, on all devices


class Memory(NamedTuple):
    """Available memory in bytes, on the machine that has the least of it, and what else limits the placement."""

    devices: int  # of all devices of the mesh together; 0 = unknown
    host: int
    accelerators: bool  # whether the devices have memory of their own
    count: int = 1  # number of devices
    files: int = 1024  # files that a process may open


def frame_loaders(
    config: Config, mesh: Mesh, train: Source, val: Source, *, tau: int, whole_clips: bool, step_bytes: int
) -> Loaders:
    """Builds the loaders of frames, with the features where the configuration says or where they fit.

    Args:
      config: the run's settings.
      mesh: the devices.
      train: the clips to train on.
      val: the clips to validate on.
      tau: audio frames that training needs on each side of a visual frame.
      whole_clips: whether each batch ends with a clip.
      step_bytes: further memory that a step takes, on all devices.

    Returns:
      The loaders of both sources, and a phrase with the placement and its reason.

    Raises:
      UserError: the features do not fit the devices or their memory, which the configuration asks for.
    """
    shards, local = len(train.shards) + len(val.shards), train.local and val.local
    size = FeatureSize(train.nbytes + val.nbytes, local, shards, config.data.streams, step_bytes)
    placement, reason = choose_placement(config.data.placement, size, measure_memory(mesh))
    load = stream_frames
    if placement == "device":
        load = functools.partial(hold_frames, loop_steps=config.train.checkpoint_steps or LOOP_STEPS)
    if placement == "host":
        train, val = train.in_memory(), val.in_memory()
    cut = {"whole_clips": whole_clips, "clips": config.data.batch_clips, "streams": config.data.streams}
    train_loader, val_loader = (load(source, mesh, config.data.batch_frames, tau, **cut) for source in (train, val))
    return train_loader, val_loader, f"features: {placement} ({reason})"


def choose_placement(placement: str, size: FeatureSize, memory: Memory) -> tuple[str, str]:
    """Chooses where to keep the features.

    Args:
      placement: the setting: "stream", "host", "device", or "auto" to choose by size.
      size: size of the features and of a step.
      memory: available memory.

    Returns:
      The placement, and the reason as a phrase.

    Raises:
      UserError: the setting is "device", but the features do not fit there, or a stream would be on several devices.
    """
    divided = size.streams % memory.count == 0
    share = DEVICE_SHARE if memory.accelerators else SHARE
    fits_devices = size.nbytes + size.step <= share * memory.devices
    fits_host = size.nbytes <= SHARE * memory.host
    amount = f"{size.nbytes / GIGABYTE:.2f} GB"
    if placement == "device" and not divided:
        raise UserError(
            f"--config.data.placement=device: {memory.count} devices would have to exchange every batch; "
            f"set --config.data.streams={memory.count} (or a multiple), or use host or stream"
        )
    if placement == "device" and memory.devices and not fits_devices:
        where = "devices' memory" if memory.accelerators else "memory"
        raise UserError(
            f"--config.data.placement=device: {amount} of features and {size.step / GIGABYTE:.2f} GB of a step "
            f"do not fit into {share:.0%} of the {where} ({memory.devices / GIGABYTE:.2f} GB); use host or stream"
        )
    if placement != "auto":
        return placement, f"as asked, {amount}"
    if memory.accelerators and fits_devices:
        if divided:
            return "device", f"{amount} fit into the devices' memory"
        amount += f", which would fit into the devices with --config.data.streams={memory.count}"
    if not size.local:
        return "stream", f"at a URL, {amount}"
    if not fits_host:
        return "stream", f"too much for the host's {memory.host / GIGABYTE:.2f} GB, {amount}"
    if size.shards > memory.files / 2:
        return "stream", f"more shards than half of the {memory.files} files that a process may open"
    return "host", f"local files, {memory.host / GIGABYTE:.2f} GB of memory, {amount}"


def measure_memory(mesh: Mesh) -> Memory:
    """Measures the memory of the machines and of the mesh's devices; that of imagined devices counts as unlimited.

    All processes get the same answer, that of the smallest machine, so that they choose the same placement.
    """
    if is_imagined(mesh):
        return Memory(sys.maxsize, sys.maxsize, accelerators=True, count=mesh.size)
    accelerators = mesh.devices.flat[0].platform != "cpu"
    host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    # A CPU's devices share the host's memory.
    device = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit", 0) if accelerators else host // mesh.size
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    own = np.array([device, host, min(files, 2**31)], np.int64)
    least = multihost_utils.process_allgather(own).reshape(-1, len(own)).min(axis=0).tolist()
    return Memory(least[0] * mesh.size, least[1], accelerators, mesh.size, least[2])
