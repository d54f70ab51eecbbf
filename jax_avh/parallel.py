"""Processes and what they do together, the device mesh and shardings; no other module builds meshes or shardings."""

import contextlib
import contextvars
import functools
import itertools
import os
import secrets
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, TypeVar, cast

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from avh_shards import UserError
from avh_shards.machine import local_rank, user_cache, visible_gpus
from avh_shards.paths import FilePath
from avh_shards.text import one_line, warn

DATA_AXIS = "data"
BY_DEVICE = PartitionSpec(DATA_AXIS)
SEEN = ".seen-"  # start of the name of the file by which processes check that they share a folder
SEEN_WITHIN = 3  # seconds in which it must appear: network file systems are not instant
PATIENCE = 30 * 24 * 3600  # seconds in which every process must reach a common point; their shares may differ

T = TypeVar("T")

_meetings = itertools.count()
_target: contextvars.ContextVar[str] = contextvars.ContextVar("platform", default="")


def keep_to_cpu() -> None:
    """Keeps JAX off GPUs and TPUs unless JAX_PLATFORMS names them; call it before anything uses a device."""
    if not os.environ.get("JAX_PLATFORMS"):
        jax.config.update("jax_platforms", "cpu")


def keep_programs() -> None:
    """Keeps compiled programs in the user's cache, for later runs; call it after `join_processes`.

    JAX_COMPILATION_CACHE_DIR names another folder, and JAX_ENABLE_COMPILATION_CACHE=false switches the cache off.
    Programs for CPUs are only kept where the user names a folder: XLA was seen to crash on those that it had kept.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ or target_platform() == "cpu":
        return
    folder = user_cache() / "programs"
    with contextlib.suppress(OSError):  # a home that cannot be written costs compilations, not the run
        folder.mkdir(parents=True, exist_ok=True)
        jax.config.update("jax_compilation_cache_dir", str(folder))


def join_processes(coordinator: str | None = None, processes: int | None = None, process: int | None = None) -> None:
    """Joins this process to the others of the run; call it before anything uses a device.

    On Cloud TPU and under SLURM or Open MPI, JAX detects all three arguments. A process that is the only one on its
    machine uses all GPUs there, one of several the GPU of its rank; JAX_LOCAL_DEVICE_IDS overrides this. Prints a
    warning on stderr if GPUs of the machine stay idle.

    Args:
      coordinator: host:port of process 0.
      processes: number of processes.
      process: index of this process, from 0.

    Raises:
      UserError: no cluster was found and not all arguments were given, or the other processes do not answer.
    """
    given = coordinator, processes, process
    if any(value is not None for value in given) and None in given:
        raise UserError("--coordinator_address, --num_processes and --process_id belong together; give all three")
    if process is not None and processes is not None and not 0 <= process < processes:
        raise UserError(f"--process_id={process}: must be from 0 to --num_processes - 1 = {processes - 1}")
    try:
        jax.distributed.initialize(coordinator, processes, process, _own_gpus())
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"--distributed: {one_line(error)}; outside Cloud TPU, SLURM and Open MPI, give "
            "--coordinator_address=HOST:PORT, --num_processes and --process_id"
        ) from error


def _own_gpus() -> list[int] | None:
    """Returns the indices of this process's GPUs among those it sees; empty for all, None if the user chose them.

    JAX by itself gives a single GPU to a process that SLURM or Open MPI started, even to the only one on its machine.
    """
    if os.environ.get("JAX_LOCAL_DEVICE_IDS"):  # read by JAX
        return None
    rank, processes = local_rank()
    visible = len(visible_gpus())
    takes_all = processes == 1 or 0 < visible < processes  # fewer: each process sees only GPUs of its own
    used = processes * visible if takes_all else processes
    found = max(visible, int(os.environ.get("SLURM_GPUS_ON_NODE") or 0))
    if rank == 0 and used < found:
        warn(
            f"only {used} of {found} GPUs of this machine are used; start one process per GPU "
            f"(srun --ntasks-per-node={found}) or one per machine that sees all GPUs, or set JAX_LOCAL_DEVICE_IDS"
        )
    return [] if takes_all else [rank]


def this_process() -> tuple[int, int]:
    """Returns the index of this process and the number of processes: 0 and 1 unless it has joined others."""
    return (jax.process_index(), jax.process_count()) if jax.distributed.is_initialized() else (0, 1)


def together(action: Callable[[], T], subject: str) -> T:
    """Runs an action in every process, which may take each a different time, and waits until all have ended it.

    Args:
      action: what this process does.
      subject: subject of the message in the processes that have no error of their own: a flag, a file.

    Returns:
      The action's result in this process.

    Raises:
      UserError, OSError: the action failed in at least one process, with its own message there.
    """
    result, error = None, None
    try:
        result = action()
    except (UserError, OSError) as found:
        error = found
    _, processes = this_process()
    if processes > 1:
        from orbax.checkpoint.multihost import sync_global_processes  # takes a second to import

        # How long a collective on the devices, such as the next one, waits for the late depends on the platform.
        sync_global_processes(f"together-{next(_meetings)}", timeout=PATIENCE, processes=set(range(processes)))
        failed = np.flatnonzero(multihost_utils.process_allgather(np.array(error is not None)))
        if failed.size and error is None:
            error = UserError(f"{subject}: {_named(failed)} failed; see the message there")
    if error is not None:
        raise error
    return cast(T, result)


def check_shared(folder: FilePath, given: str) -> None:
    """Checks that every process sees what the first one writes in a folder.

    Args:
      folder: the folder, which exists.
      given: the flag that names it, with its value.

    Raises:
      UserError: a process does not; all processes raise it.
    """
    lead = jax.process_index() == 0
    token = secrets.randbits(31)
    if lead:
        (folder / f"{SEEN}{token:08x}").touch()
    token = int(multihost_utils.broadcast_one_to_all(np.array(token, np.int32)))  # after the lead has written
    file = folder / f"{SEEN}{token:08x}"
    give_up = time.monotonic() + SEEN_WITHIN
    while not (seen := file.exists()) and time.monotonic() < give_up:
        time.sleep(0.1)
    blind = np.flatnonzero(~multihost_utils.process_allgather(np.array(seen)))
    if lead:
        file.unlink(missing_ok=True)
    if blind.size:
        raise UserError(
            f"{given}: {_named(blind)} {'does' if blind.size == 1 else 'do'} not see what process 0 writes there; give "
            "a folder that all processes see (on NFS, Filestore, gs://, ...)"
        )


def _named(processes: np.ndarray) -> str:
    return f"process{'es' if len(processes) > 1 else ''} {', '.join(map(str, processes))}"


def make_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """Returns the mesh: devices along one data-parallel axis, with the devices of each process adjacent.

    Args:
      devices: the devices; None = all of all processes.
    """
    devices = sorted(devices or jax.devices(), key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(devices), (DATA_AXIS,), axis_types=(AxisType.Auto,))


def target_platform() -> str:
    """Returns the platform that programs are compiled for: "cpu", "gpu" or "tpu"."""
    return _target.get() or jax.default_backend()


@contextlib.contextmanager
def compiling_for(platform: str) -> Iterator[None]:
    """Compiles the programs that the block traces for a platform that this machine need not have."""
    before = _target.set(platform)
    try:
        yield
    finally:
        _target.reset(before)


def by_device(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of batches and features, where each device holds its own part of the leading axis."""
    return NamedSharding(mesh, BY_DEVICE)


def own_devices(mesh: Mesh) -> range:
    """Returns the positions of this process's devices on the mesh."""
    own = [place for place, device in enumerate(mesh.devices) if device.process_index == jax.process_index()]
    assert own == list(range(own[0], own[-1] + 1))
    return range(own[0], own[-1] + 1)


def is_imagined(mesh: Mesh) -> bool:
    """Returns whether programs can only be compiled for the mesh, because this machine lacks its devices."""
    return type(mesh.devices.flat[0].client).__name__ == "CompileOnlyPyClient"


# On a mesh of imagined devices, the functions below return the arrays' shapes, dtypes and shardings, from which the
# same programs are compiled.


def put_parts(mesh: Mesh, parts: Any) -> Any:
    """Puts arrays on the mesh, sharded along the leading axis.

    Args:
      mesh: the devices.
      parts: a tree of arrays that hold this process's parts; the leading axis has as many elements per own device.
    """
    own = len(own_devices(mesh))

    def put(part: Any) -> Any:
        shape = (len(part) // own * mesh.size, *part.shape[1:])
        if is_imagined(mesh):
            return jax.ShapeDtypeStruct(shape, part.dtype, sharding=by_device(mesh))
        return jax.make_array_from_process_local_data(by_device(mesh), part, shape)

    return jax.tree.map(put, parts)


def put_rows(mesh: Mesh, shape: tuple[int, ...], dtype: DTypeLike, read: Callable[[int, int], np.ndarray]) -> Any:
    """Puts an array on the mesh, sharded along the leading axis; each process reads the rows of its own devices.

    Args:
      mesh: the devices.
      shape: shape of the array; its rows must be a multiple of the devices.
      dtype: dtype of the array.
      read: (first, last) -> these rows.
    """
    if is_imagined(mesh):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=by_device(mesh))
    own = shape[0] // mesh.size

    def part(index: Any) -> np.ndarray:
        start = index[0].start or 0
        return read(start, start + own)

    return jax.make_array_from_callback(shape, by_device(mesh), part)


def put_copies(mesh: Mesh, arrays: Any) -> Any:
    """Copies arrays to every device of the mesh; every process must have all of them."""
    whole = NamedSharding(mesh, PartitionSpec())

    def put(array: Any) -> Any:
        if is_imagined(mesh):
            return jax.ShapeDtypeStruct(np.shape(array), array.dtype, sharding=whole)
        return jax.make_array_from_process_local_data(whole, np.asarray(array), np.shape(array))

    return jax.tree.map(put, arrays)


def on_own_part(mesh: Mesh, function: Callable) -> Callable:
    """Maps function(whole, part) over the devices: `whole` is the same on all, `part` is each device's own shard.

    The results of the devices are concatenated along the leading axis.
    """
    return jax.shard_map(function, mesh=mesh, in_specs=(PartitionSpec(), BY_DEVICE), out_specs=BY_DEVICE)


@functools.cache  # so that equal arguments share a program, and nothing is hashed at each call
def compile_on_own_parts(mesh: Mesh, function: Callable, graph: Hashable) -> Callable:
    """Returns function(graph, whole, part) as a compiled function of (whole, part); see `on_own_part`."""
    return jax.jit(on_own_part(mesh, functools.partial(function, graph)))


def run_on_own_parts(mesh: Mesh, function: Callable, graph: Hashable, part: Any) -> Any:
    """Runs function(graph, (), part) on every device's own shard; on imagined devices, it describes the result."""
    compiled = compile_on_own_parts(mesh, function, graph)
    if not is_imagined(mesh):
        return compiled((), part)
    return jax.tree.map(
        lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=by_device(mesh)),
        jax.eval_shape(compiled, (), part),
    )
