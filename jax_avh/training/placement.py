"""Where a run keeps its features: on the devices, in host memory, or in the shards; and why."""

import os
import resource
from typing import NamedTuple

import jax
from jax.sharding import Mesh

from extract.schema import InputError
from jax_avh.config import Config
from jax_avh.data import Batching, FeatureSource
from jax_avh.methods import METHODS
from jax_avh.training.resident import Resident
from jax_avh.training.state import halo
from jax_avh.training.streamed import Streamed

Feed = Streamed | Resident  # the steps of a source, wherever its features are
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
      InputError: features that do not fit the devices' memory.
    """
    size = Size(train.nbytes + val.nbytes, train.local and val.local, len(train.shards) + len(val.shards))
    placement, reason = choose(config.data.placement, size, measure(mesh))
    learns = METHODS[config.method.name].training
    batching = Batching(config.data.batch_frames, learns.whole_clips, config.data.batch_clips)
    layout = batching, halo(config), mesh
    if placement == "device":
        feeds = [Resident(source, *layout, config.train.checkpoint_steps) for source in (train, val)]
    else:
        held = (source.in_memory() if placement == "host" else source for source in (train, val))
        feeds = [Streamed(source, *layout) for source in held]
    return *feeds, f"features: {placement} ({reason})"


def choose(placement: str, size: Size, memory: Memory) -> tuple[str, str]:
    """The placement, and why."""
    fits_devices, fits_host = size.nbytes <= SHARE * memory.devices, size.nbytes <= SHARE * memory.host
    amount, where = f"{size.nbytes / GIGABYTE:.2f} GB", "devices' memory" if memory.accelerators else "memory"
    if placement == "device" and not fits_devices:
        raise InputError(
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
