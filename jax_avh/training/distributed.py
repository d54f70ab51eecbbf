"""Many processes as one run, by jax.distributed."""

import jax

from avh_shards import UserError, one_line


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
    if process is not None and not 0 <= process < processes:
        raise UserError(f"--process_id={process}: must be from 0 to --num_processes - 1 = {processes - 1}")
    try:
        jax.distributed.initialize(coordinator, processes, process)
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"--distributed: {one_line(error)}; outside of Cloud TPU, SLURM and Open MPI give "
            "--coordinator_address=HOST:PORT, --num_processes and --process_id"
        ) from error
