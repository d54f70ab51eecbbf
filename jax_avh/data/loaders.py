"""Loaders, which put the batches of an epoch on the devices, and the choice of where features are kept between epochs.

A loader yields batches in the form that the compiled loop of training takes: a tuple of one batch, read when it is due
(`StreamingLoader`), or many batches that the loop gathers from features that stay on the devices (`DeviceLoader`). Both
yield the same batches.
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
    frame_stream,
    pass_order,
    prefetched,
)
from jax_avh.data.source import PAIRED_FEATURES, Source
from jax_avh.parallel import DATA_AXIS, is_imagined, on_own_part, own_devices, put_copies, put_parts, put_rows

LOOP_STEPS = 100  # most steps of one compiled loop, so that losses arrive every few seconds
SHARE = 0.6  # share of a memory that features may take; the rest is for the computation
GIGABYTE = 1e9
STATIC = {"static": True}  # metadata of a field that is a constant of compiled programs

Batch = FrameBatch | ExampleBatch


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DeviceBatches:
    """Consecutive batches of features on the devices, each gathered when a compiled loop asks for it.

    A batch is gathered by index: every device looks up the rows that it holds, so that only data of the batch's size
    moves between devices. (A slice of the sharded features would first copy all of them to every device.)
    """

    visual: Float[Array, "F D"]  # sharded over the devices, in the source's order
    audio: Float[Array, "F D"]
    row: Int[Array, " S"]  # row of the features of each frame of the stream and of the padding around it; -1 = none
    place: Int[Array, " S"]  # place of its clip in the stream
    label: Int[Array, " S"]
    border: Int[Array, "borders"]  # borders of the batches in the stream
    steps: int = dataclasses.field(metadata=STATIC)
    chunk_frames: int = dataclasses.field(metadata=STATIC)
    tau: int = dataclasses.field(metadata=STATIC)
    mesh: Mesh = dataclasses.field(metadata=STATIC)

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, index: int | Int[Array, ""]) -> FrameBatch:
        """Gathers a batch, one chunk per device."""
        size, tau = self.chunk_frames, self.tau

        def own_chunk(stream: tuple[Array, ...], part: tuple[Array, Array]) -> FrameBatch:
            row, place, label, start, end = stream
            rows = self._chunks(row, start)
            own = jax.lax.axis_index(DATA_AXIS)
            # One device holds each row and all others zeros, so the sum over devices is the row, bit for bit.
            found = jnp.concatenate([_own_rows(rows[:, tau : tau + size], part[0]), _own_rows(rows, part[1])], axis=1)
            features = jax.lax.psum_scatter(found, DATA_AXIS, tiled=True)
            weight = (start + own * size + jnp.arange(size) < end).astype(jnp.float32)
            clip, label = (self._chunks(values, start)[own] for values in (place, label))
            return FrameBatch(
                features[:, :size], features[:, size:], clip[None], weight[None], label[None, tau : tau + size]
            )

        stream = self.row, self.place, self.label, self.border[index], self.border[index + 1]
        return on_own_part(self.mesh, own_chunk)(stream, (self.visual, self.audio))

    def _chunks(self, stream: Int[Array, " S"], start: Int[Array, ""]) -> Int[Array, "C L"]:
        """Returns a batch's part of the stream in chunks, each with its halo."""
        size, tau = self.chunk_frames, self.tau
        part = jax.lax.dynamic_slice_in_dim(stream, start, self.mesh.size * size + 2 * tau)
        starts = range(0, self.mesh.size * size, size)
        return jnp.stack([part[begin : begin + size + 2 * tau] for begin in starts])


def _own_rows(row: Int[Array, "C T"], part: Float[Array, "F D"]) -> Float[Array, "C T D"]:
    """Returns the rows of the sharded features that this device holds, and zeros for all others."""
    local = row - jax.lax.axis_index(DATA_AXIS) * len(part)
    here = (local >= 0) & (local < len(part))
    return jnp.where(here[..., None], jnp.take(part, local, axis=0, mode="clip"), jnp.zeros((), part.dtype))


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
        return Epoch(np.diff(batches.border), batches.items, self.on_devices(batches, first_step))

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

    visual: Float[Array, "F D"]
    audio: Float[Array, "F D"]
    loop_steps: int  # most steps of one loop

    def on_devices(self, batches: FrameBatches, first: int) -> Iterator[DeviceBatches]:
        """See Loader; loops end at the same steps wherever the pass starts."""
        row, place, label = put_copies(self.mesh, self._index(batches))
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
                border=put_copies(self.mesh, batches.border[first : end + 1].astype(np.int32)),
                steps=end - first,
                chunk_frames=batches.chunk_frames,
                tau=batches.tau,
                mesh=self.mesh,
            )
            first = end

    def _index(self, batches: FrameBatches) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns row, place and label of every frame of a stream, and of the padding that batches may reach around it.

        Their length is the same for every order of the clips, because each length would compile a new program.
        """
        stream, lengths = batches.stream, self.source.lengths
        begin = offsets(lengths)[stream.order]  # row of the first frame of each clip
        row = np.arange(stream.frames) + np.repeat(begin - stream.border[:-1], lengths[stream.order])
        index = row, stream.places(0, stream.frames), stream.labels(0, stream.frames)
        around = (batches.tau, self.mesh.size * batches.chunk_frames + batches.tau)
        row, place, label = (np.pad(x, around, constant_values=PADDING).astype(np.int32) for x in index)
        return row, place, label


def stream_frames(source: Source, mesh: Mesh, frames: int, tau: int, **cut: Any) -> StreamingLoader:
    """Returns a loader that reads a source's frames batch by batch; arguments as for `frame_batches`."""
    return StreamingLoader(source, mesh, functools.partial(_cut, source, mesh, frames, tau, **cut))


def hold_frames(
    source: Source, mesh: Mesh, frames: int, tau: int, loop_steps: int = LOOP_STEPS, **cut: Any
) -> DeviceLoader:
    """Puts a source's features on the devices, and returns their loader.

    Args:
      source: the clips.
      mesh: the devices.
      frames: frames of a batch.
      tau: audio frames of halo on each side of a chunk.
      loop_steps: most steps of one compiled loop, up to LOOP_STEPS.
      cut: further arguments of `frame_batches`.
    """
    assert source.lengths.sum() < 2**31  # frame numbers are int32
    visual, audio = (_on_devices(frame_stream(source), name, mesh) for name in PAIRED_FEATURES)
    batches = functools.partial(_cut, source, mesh, frames, tau, **cut)
    return DeviceLoader(source, mesh, batches, visual, audio, min(loop_steps, LOOP_STEPS))


def _cut(source: Source, mesh: Mesh, frames: int, tau: int, seed: Seed | None, **cut: Any) -> FrameBatches:
    return frame_batches(frame_stream(source, seed), frames, tau, **cut, chunks=mesh.size, own=own_devices(mesh))


def _on_devices(stream: FrameStream, name: str, mesh: Mesh) -> Float[Array, "F D"]:
    """Returns all features of a stream, sharded by rows; each process reads the rows of its own devices."""
    shape = (-(-stream.frames // mesh.size) * mesh.size, stream.source.width)
    return put_rows(mesh, shape, stream.source.dtype, functools.partial(stream.features, name))


def stream_examples(examples: Examples, mesh: Mesh, size: int, full_only: bool = False) -> StreamingLoader:
    """Returns a loader of batches of `size` examples; arguments as for `ExampleBatches`."""

    def batches(seed: Seed | None) -> ExampleBatches:
        order = pass_order(len(examples.clip), seed)
        return ExampleBatches(examples, order, size, full_only, mesh.size, own_devices(mesh))

    return StreamingLoader(examples.source, mesh, batches)


# --- where features are kept -----------------------------------------------------------------------------------------


class FeatureSize(NamedTuple):
    """Size of the features of a run."""

    nbytes: int
    local: bool  # whether they are files of this machine
    shards: int


class Memory(NamedTuple):
    """Available memory in bytes."""

    devices: int  # of all devices of the mesh together
    host: int
    accelerators: bool  # whether the devices have memory of their own


def frame_loaders(config: Config, mesh: Mesh, train: Source, val: Source, *, tau: int, whole_clips: bool) -> Loaders:
    """Builds the loaders of frames, with the features where the configuration says or where they fit.

    Args:
      config: the run's settings.
      mesh: the devices.
      train: the clips to train on.
      val: the clips to validate on.
      tau: audio frames that training needs on each side of a visual frame.
      whole_clips: whether each batch ends with a clip.

    Returns:
      The loaders of both sources, and a phrase with the placement and its reason.

    Raises:
      UserError: the features do not fit the devices' memory, which the configuration asks for.
    """
    size = FeatureSize(train.nbytes + val.nbytes, train.local and val.local, len(train.shards) + len(val.shards))
    placement, reason = choose_placement(config.data.placement, size, measure_memory(mesh))
    load = stream_frames
    if placement == "device":
        load = functools.partial(hold_frames, loop_steps=config.train.checkpoint_steps or LOOP_STEPS)
    if placement == "host":
        train, val = train.in_memory(), val.in_memory()
    cut = {"whole_clips": whole_clips, "clips": config.data.batch_clips}
    train_loader, val_loader = (load(source, mesh, config.data.batch_frames, tau, **cut) for source in (train, val))
    return train_loader, val_loader, f"features: {placement} ({reason})"


def choose_placement(placement: str, size: FeatureSize, memory: Memory) -> tuple[str, str]:
    """Chooses where to keep the features.

    Args:
      placement: the setting: "stream", "host", "device", or "auto" to choose by size.
      size: size of the features.
      memory: available memory.

    Returns:
      The placement, and the reason as a phrase.

    Raises:
      UserError: the setting is "device", but the features do not fit there.
    """
    fits_devices = size.nbytes <= SHARE * memory.devices
    fits_host = size.nbytes <= SHARE * memory.host
    amount = f"{size.nbytes / GIGABYTE:.2f} GB"
    if placement == "device" and not fits_devices:
        where = "devices' memory" if memory.accelerators else "memory"
        raise UserError(
            f"--config.data.placement=device: {amount} of features do not fit into {SHARE:.0%} of the {where} "
            f"({memory.devices / GIGABYTE:.2f} GB); use host or stream"
        )
    if placement != "auto":
        return placement, f"as asked, {amount}"
    if memory.accelerators and fits_devices:
        return "device", f"{amount} fit into the devices' {memory.devices / GIGABYTE:.2f} GB"
    if not size.local:
        return "stream", f"{amount} at a URL"
    if not fits_host:
        return "stream", f"{amount} are too much for the host's {memory.host / GIGABYTE:.2f} GB"
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if size.shards > descriptors / 2:
        return "stream", f"more shards than half of the {descriptors} files that a process may open"
    return "host", f"{amount} in local files, {memory.host / GIGABYTE:.2f} GB of memory"


def measure_memory(mesh: Mesh) -> Memory:
    """Measures the memory of this machine and of the mesh's devices; that of imagined devices counts as unlimited."""
    if is_imagined(mesh):
        return Memory(sys.maxsize, sys.maxsize, accelerators=True)
    host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" not in stats:  # the devices are the host's own cores
        return Memory(host, host, accelerators=False)
    return Memory(stats["bytes_limit"] * mesh.size, host, accelerators=True)
