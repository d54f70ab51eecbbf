"""Where a run keeps its features: on the devices, in host memory, or in the shards; and why."""

import os
import resource
from typing import NamedTuple

import jax
from flax import nnx
from jax.sharding import Mesh

from avh_shards import UserError
from jax_avh.config import Config
from jax_avh.data import Batching, FeatureSource, FrameBatches, frame_stream
from jax_avh.data.examples import ExampleBatches, Examples, shuffled
from jax_avh.methods import METHODS
from jax_avh.models.alignment import HIDDEN_WIDTHS
from jax_avh.parallel import own_devices
from jax_avh.training.resident import Resident
from jax_avh.training.streamed import Streamed

Feed = Streamed | Resident  # passes over a source, wherever its features are
SHARE = 0.6  # of a memory that features may take: the rest is for the computation
GIGABYTE = 1e9


class Size(NamedTuple):
    """Of the features of a run."""

    nbytes: int
    local: bool  # files of this machine
    shards: int


class Memory(NamedTuple):
    """What there is, in bytes."""

    devices: int  # all devices of the mesh together
    host: int
    accelerators: bool  # whether the devices have memory of their own


def place_features(config: Config, mesh: Mesh, train: FeatureSource, val: FeatureSource) -> tuple[Feed, Feed, str]:
    """Puts the features where the configuration says, or where they fit.

    Returns:
      The steps of both sources, and in words which placement and why.

    Raises:
      UserError: features that do not fit the devices' memory.
    """
    memory = measure(mesh)
    _check_batch(config, train.width, memory)
    size = Size(train.nbytes + val.nbytes, train.local and val.local, len(train.shards) + len(val.shards))
    placement, reason = choose(config.data.placement, size, memory)
    layout = batching(config), halo(config), mesh
    if placement == "device":
        feeds = [Resident(source, *layout, config.train.checkpoint_steps) for source in (train, val)]
    else:
        held = (source.in_memory() if placement == "host" else source for source in (train, val))
        feeds = [stream_frames(source, *layout) for source in held]
    return *feeds, f"features: {placement} ({reason})"


def _check_batch(config: Config, width: int, memory: Memory) -> None:
    """Raises an UserError if a batch's features and the hidden layers that training keeps are too much for memory."""
    pairs = (2 * halo(config) + 1) * sum(HIDDEN_WIDTHS[1:])
    needed = 4 * config.data.batch_frames * (2 * width + pairs)
    if needed > memory.devices:
        raise UserError(
            f"--config.data.batch_frames={config.data.batch_frames}: a step takes about {needed / GIGABYTE:.3g} GB, "
            f"more than the {memory.devices / GIGABYTE:.3g} GB of memory; lower it"
        )


def place_examples(
    config: Config, mesh: Mesh, network: nnx.Module, train: FeatureSource, val: FeatureSource
) -> tuple[Feed, Feed, str]:
    """Cuts the clips into examples, which are read when their turn is.

    Returns:
      The steps of both sources (of the first, full batches alone), and what there is of them in words.

    Raises:
      UserError: settings that do not fit the examples.
    """
    method = METHODS[config.method.name]
    if config.data.placement == "device":
        raise UserError(f"--config.data.placement=device: {method.name} reads its examples ahead; use auto")
    held = (source.in_memory() if source.local else source for source in (train, val))
    train_examples, val_examples = (method.examples(source, network) for source in held)
    if len(train_examples.clip) < config.data.batch_examples:
        raise UserError(
            f"{train.path}: gives {len(train_examples.clip)} examples, fewer than one batch; lower "
            f"--config.data.batch_examples={config.data.batch_examples}"
        )
    feeds = [
        stream_examples(examples, config.data.batch_examples, mesh, full_only=examples is train_examples)
        for examples in (train_examples, val_examples)
    ]
    return *feeds, f"examples: {len(train_examples.clip)} to train on, {len(val_examples.clip)} to validate on"


def batching(config: Config) -> Batching:
    """How frames make batches."""
    learns = METHODS[config.method.name].training
    return Batching(config.data.batch_frames, learns.whole_clips, config.data.batch_clips)


def halo(config: Config) -> int:
    """Audio frames on each side of a visual frame that training needs."""
    return 0 if METHODS[config.method.name].training.whole_clips else config.model.tau


def stream_frames(source: FeatureSource, batching: Batching, tau: int, mesh: Mesh) -> Streamed:
    """Passes over a source's frames."""

    def batches(seed: tuple[int, int] | None) -> FrameBatches:
        stream = frame_stream(source, seed)
        return FrameBatches(stream, batching.plan(stream), tau, mesh.size, own_devices(mesh))

    return Streamed(source, batches, mesh)


def stream_examples(examples: Examples, size: int, mesh: Mesh, full_only: bool = False) -> Streamed:
    """Passes over examples, so many in a batch."""

    def batches(seed: tuple[int, int] | None) -> ExampleBatches:
        return ExampleBatches(examples, shuffled(examples, seed), size, full_only, mesh.size, own_devices(mesh))

    return Streamed(examples.source, batches, mesh)


def choose(placement: str, size: Size, memory: Memory) -> tuple[str, str]:
    """The placement, and why."""
    fits_devices, fits_host = size.nbytes <= SHARE * memory.devices, size.nbytes <= SHARE * memory.host
    amount, where = f"{size.nbytes / GIGABYTE:.2f} GB", "devices' memory" if memory.accelerators else "memory"
    if placement == "device" and not fits_devices:
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
        return "stream", f"more shards than half of the {descriptors} files that may be open"
    return "host", f"{amount} in local files, {memory.host / GIGABYTE:.2f} GB of memory"


def measure(mesh: Mesh) -> Memory:
    """The memory of this machine and of the mesh's devices."""
    host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" not in stats:  # devices that are the host's own cores
        return Memory(host, host, accelerators=False)
    return Memory(stats["bytes_limit"] * mesh.size, host, accelerators=True)
