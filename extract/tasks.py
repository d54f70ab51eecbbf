"""Array jobs: which of how many tasks this process is."""

import os
from collections.abc import Mapping

from extract.schema import InputError


def this_task(index: int | None, count: int | None, environment: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """Index, from 0, and number of tasks: as given, else as SLURM's job array or a launcher's RANK says, else 0 of 1.

    Raises:
      InputError: only one of the two is known, or the index is not below the count.
    """
    if index is None and count is None:
        index, count = _from_environment(environment)
    if index is None or count is None:
        raise InputError("of --task_index and --task_count, give both or none")
    if not 0 <= index < count:
        raise InputError(f"task {index} of {count}: --task_index counts from 0 to one below --task_count")
    return index, count


def _from_environment(environment: Mapping[str, str]) -> tuple[int | None, int | None]:
    try:
        if "SLURM_ARRAY_TASK_ID" in environment:
            first, step = (int(environment.get(f"SLURM_ARRAY_TASK_{name}", d)) for name, d in (("MIN", 0), ("STEP", 1)))
            return (int(environment["SLURM_ARRAY_TASK_ID"]) - first) // step, int(environment["SLURM_ARRAY_TASK_COUNT"])
        if "RANK" in environment:
            return int(environment["RANK"]), int(environment["WORLD_SIZE"])
    except (KeyError, ValueError) as error:
        raise InputError(
            f"the environment's job array is incomplete ({error}); give --task_index and --task_count"
        ) from None
    return 0, 1
