"""The device mesh, and where arrays lie on it: the one place that builds shardings."""

from collections.abc import Callable
from typing import TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

DATA_AXIS = "data"
BY_DEVICE = PartitionSpec(DATA_AXIS)
Tree = TypeVar("Tree")


def make_mesh() -> Mesh:
    """All devices of all processes along one axis, those of a process side by side: training is data parallel."""
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(devices), (DATA_AXIS,), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """For the state: every device holds all of it."""
    return NamedSharding(mesh, PartitionSpec())


def by_device(mesh: Mesh) -> NamedSharding:
    """For batches and features: each device holds its own part of the leading axis."""
    return NamedSharding(mesh, BY_DEVICE)


def own_devices(mesh: Mesh) -> range:
    """Places on the mesh of this process's devices."""
    own = [place for place, device in enumerate(mesh.devices) if device.process_index == jax.process_index()]
    assert own == list(range(own[0], own[-1] + 1))
    return range(own[0], own[-1] + 1)


def put_parts(mesh: Mesh, parts: Tree) -> Tree:
    """Arrays of which each process has the parts of its own devices (leading axis: one a device)."""
    return jax.tree.map(
        lambda part: jax.make_array_from_process_local_data(by_device(mesh), part, (mesh.size, *part.shape[1:])), parts
    )


def put_copies(mesh: Mesh, arrays: Tree) -> Tree:
    """Arrays that every process has whole, and every device gets."""
    return jax.tree.map(
        lambda array: jax.make_array_from_process_local_data(replicated(mesh), np.asarray(array), np.shape(array)),
        arrays,
    )


def on_own_part(mesh: Mesh, function: Callable) -> Callable:
    """Runs function(whole, part) on every device at once: `whole` is the same on all, of `part` each has its own.

    What it returns is put together along the leading axis, a part for each device.
    """
    return jax.shard_map(function, mesh=mesh, in_specs=(PartitionSpec(), BY_DEVICE), out_specs=BY_DEVICE)
