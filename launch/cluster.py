"""Flags of commands that run as one of several processes on a cluster."""

from absl import flags

from jax_avh.parallel import join_processes
from launch import command

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
    command.check_needed(DISTRIBUTED, COORDINATOR, PROCESSES, PROCESS)
    if DISTRIBUTED.value:
        join_processes(COORDINATOR.value, PROCESSES.value, PROCESS.value)
