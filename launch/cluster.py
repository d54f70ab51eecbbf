"""Flags of commands that run as one of several processes on a cluster."""

from absl import flags

from avh_shards import UserError
from jax_avh.parallel import join_processes

DISTRIBUTED = flags.DEFINE_boolean("distributed", False, "Run as one of several processes on a cluster.")
COORDINATOR = flags.DEFINE_string(
    "coordinator_address", None, "host:port of process 0; detected on Cloud TPU and SLURM."
)
PROCESSES = flags.DEFINE_integer("num_processes", None, "Number of processes; detected on Cloud TPU and SLURM.")
PROCESS = flags.DEFINE_integer("process_id", None, "Index of this process, from 0; detected on Cloud TPU and SLURM.")


def join() -> None:
    """Joins this process to the others if the flags say so; call it before anything uses a device.

    Raises:
      UserError: flags of the cluster are given without --distributed, or the others cannot be found.
    """
    if DISTRIBUTED.value:
        join_processes(COORDINATOR.value, PROCESSES.value, PROCESS.value)
    elif given := [flag.name for flag in (COORDINATOR, PROCESSES, PROCESS) if flag.value is not None]:
        raise UserError(f"--{given[0]}: needs --distributed; add it, or leave out the flags of the cluster")
