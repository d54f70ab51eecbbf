"""Task index and count of this process in a job array or under a launcher."""

import os
import sys
from collections.abc import Mapping

from avh_shards import UserError

ARRAY = "SLURM_ARRAY_TASK_"
# Variables with a process's rank and the number of ranks. The innermost launcher comes first: srun may have started
# torchrun or mpirun itself, one on each node.
LAUNCHERS = {
    "torchrun": ("RANK", "WORLD_SIZE"),
    "Open MPI": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    "PMI": ("PMI_RANK", "PMI_SIZE"),
    "srun": ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
}
GIVE_BOTH = "give --task_index and --task_count"


def this_task(index: int | None, count: int | None, environment: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """Returns the index of this task and the number of tasks: the given ones, else the environment's, else 0 and 1.

    Recognised are SLURM arrays, processes started by srun, mpirun (Open MPI or a PMI) or torchrun, and combinations of
    the two, where each array task is split among its processes. An array must be complete, `--array=0-N`, because the
    number of tasks is otherwise unknown. To rerun part of an array, pass the original number of tasks as `count`; the
    index is then SLURM_ARRAY_TASK_ID. Prints the result and its origin on stderr.

    Args:
      index: index of this task, from 0; None takes it from the environment.
      count: number of tasks; None takes it from the environment.
      environment: environment variables.

    Raises:
      UserError: the environment is incomplete or ambiguous, or the index is out of range or given without a count.
    """
    if index is None:
        index, count, origin = _from_environment(count, environment)
    elif count is None:
        raise UserError("--task_index: needs --task_count; give both")
    else:
        origin = "--task_index, --task_count"
    if not 0 <= index < count:
        raise UserError(f"task {index} of {count}: index out of range; count tasks from 0 to --task_count - 1")
    if origin:
        print(f"task {index} of {count}, counted from 0 ({origin})", file=sys.stderr, flush=True)
    return index, count


def _from_environment(count: int | None, environment: Mapping[str, str]) -> tuple[int, int, str]:
    """Returns index, number of tasks and their origin ("" for a single process)."""
    try:
        rank, ranks, launcher = _rank(environment)
        if f"{ARRAY}ID" not in environment:
            if count not in (None, ranks):
                found = (
                    f"{launcher} started {ranks} processes" if launcher else "no job array or launcher sets the index"
                )
                raise UserError(f"--task_count={count}: {found}; {GIVE_BOTH}")
            return rank, ranks, launcher
        task = int(environment[f"{ARRAY}ID"])
        if count is not None:
            if ranks > 1:
                raise UserError(f"--task_count={count}: is ambiguous for {launcher} in a SLURM array; {GIVE_BOTH}")
            return task, count, "SLURM array, --task_count"
        tasks = _array_tasks(environment)
    except (KeyError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"the environment of a job array or launcher is incomplete ({error}); {GIVE_BOTH}") from None
    return task * ranks + rank, tasks * ranks, " x ".join(filter(None, ["SLURM array", launcher]))


def _array_tasks(environment: Mapping[str, str]) -> int:
    """Returns the number of tasks of a SLURM array after checking that they count from 0 without gaps."""
    tasks = int(environment[f"{ARRAY}COUNT"])
    last = int(environment.get(f"{ARRAY}MAX", tasks - 1))
    first, step = (int(environment.get(f"{ARRAY}{name}", value)) for name, value in (("MIN", 0), ("STEP", 1)))
    if (first, step, last) != (0, 1, tasks - 1):
        raise UserError(
            f"the SLURM array has {tasks} tasks from {first} to {last} instead of all of 0-N; give the number of tasks "
            "of the whole job as --task_count (SLURM_ARRAY_TASK_ID is then the index, from 0)"
        )
    return tasks


def _rank(environment: Mapping[str, str]) -> tuple[int, int, str]:
    """Returns rank, number of ranks and launcher; 0, 1 and "" for a single process.

    A SLURM batch script also has SLURM_PROCID=0 and perhaps SLURM_NTASKS=8, although it runs once; only processes
    started by srun have a SLURM_STEP_ID.
    """
    for launcher, (rank, ranks) in LAUNCHERS.items():
        if launcher == "srun" and "SLURM_STEP_ID" not in environment:
            if environment.get(rank, "0") != "0":
                raise KeyError("SLURM_STEP_ID")
        elif rank in environment:
            count = int(environment[ranks])
            return int(environment[rank]), count, launcher if count > 1 else ""
    if "PMIX_RANK" in environment:
        raise UserError(f"PMIX_RANK is set, but not the number of ranks; {GIVE_BOTH}")
    return 0, 1, ""
