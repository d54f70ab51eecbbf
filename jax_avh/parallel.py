"""Processes, the device mesh, and where arrays are on it: the one place that builds meshes and shardings."""

import functools
from collections.abc import Callable, Hashable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from avh_shards import UserError
from avh_shards.text import one_line

DATA_AXIS = "data"
BY_DEVICE = PartitionSpec(DATA_AXIS)


def join_processes(coordinator: str | None = None, processes: int | None = None, process: int | None = None) -> None:
    """Joins this process to the others of the run; it must come before anything else asks for a device.

    Args:
      coordinator: host:port of process 0. On Cloud TPU and under SLURM or Open MPI, all three are found by themselves.
      processes: number of processes.
      process: number of this one, from 0.

    Raises:
      UserError: no cluster was found and not all three were given, or the others do not answer.
    """
    given = coordinator, processes, process
    if any(value is not None for value in given) and None in given:
        raise UserError("--coordinator_address, --num_processes and --process_id belong together; give all three")
    if process is not None and processes is not None and not 0 <= process < processes:
        raise UserError(f"--process_id={process}: must be from 0 to --num_processes - 1 = {processes - 1}")
    try:
        jax.distributed.initialize(coordinator, processes, process)
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"--distributed: {one_line(error)}; outside of Cloud TPU, SLURM and Open MPI give "
            "--coordinator_address=HOST:PORT, --num_processes and --process_id"
        ) from error


def make_mesh() -> Mesh:
    """Lays all devices along one axis, those of a process side by side: training is data parallel."""
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(devices), (DATA_AXIS,), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of the state: every device holds all of it."""
    return NamedSharding(mesh, PartitionSpec())


def by_device(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of batches and features: each device holds its own part of the leading axis."""
    return NamedSharding(mesh, BY_DEVICE)


def own_devices(mesh: Mesh) -> range:
    """Returns the places on the mesh of this process's devices."""
    own = [place for place, device in enumerate(mesh.devices) if device.process_index == jax.process_index()]
    assert own == list(range(own[0], own[-1] + 1))
    return range(own[0], own[-1] + 1)


def put_parts(mesh: Mesh, parts: Any) -> Any:
    """Puts arrays on the mesh of which each process has the parts of its own devices (leading axis: one a device)."""
    return jax.tree.map(
        lambda part: jax.make_array_from_process_local_data(by_device(mesh), part, (mesh.size, *part.shape[1:])), parts
    )


def put_copies(mesh: Mesh, arrays: Any) -> Any:
    """Puts arrays on every device that every process has whole."""
    return jax.tree.map(
        lambda array: jax.make_array_from_process_local_data(replicated(mesh), np.asarray(array), np.shape(array)),
        arrays,
    )


def on_own_part(mesh: Mesh, function: Callable) -> Callable:
    """Runs function(whole, part) on every device at once: `whole` is the same on all, of `part` each has its own.

    What it returns is put together along the leading axis, a part for each device.
    """
    return jax.shard_map(function, mesh=mesh, in_specs=(PartitionSpec(), BY_DEVICE), out_specs=BY_DEVICE)


@functools.cache  # so that equal ones share their programs, and nothing is hashed at each call
def compile_on_own_parts(mesh: Mesh, function: Callable, graph: Hashable) -> Callable:
    """Returns function(graph, whole, part) as a compiled function of (whole, part): see on_own_part."""
    return jax.jit(on_own_part(mesh, functools.partial(function, graph)))
