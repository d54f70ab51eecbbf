"""What a process may use of its machine: GPUs, TPU chips, cores and a cache, found without claiming devices."""

import importlib.util
import itertools
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

# Variables with a process's rank on its machine and the number of processes there. The innermost launcher comes first.
LOCAL_RANKS = (
    ("LOCAL_RANK", "LOCAL_WORLD_SIZE"),  # torchrun
    ("OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),  # Open MPI
    ("MPI_LOCALRANKID", "MPI_LOCALNRANKS"),  # PMI
)
QUERY_SECONDS = 60  # a driver that is loaded first takes seconds


def local_rank(environment: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """Returns this process's rank on its machine and how many processes its launcher started there.

    Recognised are torchrun, mpirun (Open MPI or a PMI) and srun; a process without a launcher is rank 0 of 1.

    Args:
      environment: environment variables.
    """
    try:
        for rank, count in LOCAL_RANKS:
            if rank in environment:
                own = int(environment[rank])
                return own, max(int(environment.get(count, 1)), own + 1)
        if "SLURM_STEP_ID" in environment:  # a batch script has the other variables too, although it runs once
            own = int(environment.get("SLURM_LOCALID", 0))
            return own, max(_tasks_here(environment), own + 1)
    except ValueError:  # not numbers: no launcher wrote them
        pass
    return 0, 1


def _tasks_here(environment: Mapping[str, str]) -> int:
    """Returns the number of a SLURM step's tasks on this node."""
    by_node = []
    listed = environment.get("SLURM_STEP_TASKS_PER_NODE", environment.get("SLURM_NTASKS_PER_NODE", "1"))
    for part in listed.split(","):  # "8(x3),4": three nodes with eight tasks, one with four
        tasks, _, nodes = part.rstrip(")").partition("(x")
        by_node += [int(tasks)] * int(nodes or 1)
    node = int(environment.get("SLURM_NODEID", 0))
    return by_node[min(node, len(by_node) - 1)]


def own_cores(environment: Mapping[str, str] = os.environ) -> int:
    """Returns the number of cores for this process: its share of those that its launcher's processes have here.

    Args:
      environment: environment variables.
    """
    cores = len(os.sched_getaffinity(0))
    _, processes = local_rank(environment)
    # srun and mpirun usually bind each process to its own cores; torchrun leaves all cores to all.
    shared = "LOCAL_WORLD_SIZE" in environment or cores == os.cpu_count()
    return max(1, cores // processes) if shared else cores


def user_cache(environment: Mapping[str, str] = os.environ) -> Path:
    """Returns this project's folder in the user's cache, which need not exist."""
    return Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "avh-align-jax"


def visible_gpus(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Returns the NVIDIA GPUs that a process may use, each as CUDA_VISIBLE_DEVICES names it.

    Args:
      environment: environment variables.
    """
    listed = environment.get("CUDA_VISIBLE_DEVICES")
    if listed is not None:
        names = [name.strip() for name in listed.split(",")]
        return list(itertools.takewhile(lambda name: name not in ("", "-1"), names))  # CUDA ignores the rest
    try:
        query = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=QUERY_SECONDS)  # noqa: S607
        count = sum(line.startswith("GPU ") for line in query.stdout.splitlines())
    except (OSError, subprocess.TimeoutExpired):  # not installed, as in some containers
        count = len(list(Path("/dev").glob("nvidia[0-9]*")))
    return [str(number) for number in range(count)]


def tpu_chips(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Returns the TPU chips that a process may use, each as TPU_VISIBLE_CHIPS names it.

    Args:
      environment: environment variables.
    """
    if importlib.util.find_spec("libtpu") is None:
        return []
    if listed := environment.get("TPU_VISIBLE_CHIPS"):
        return listed.split(",")
    files = [*Path("/dev").glob("accel[0-9]*")] or [*Path("/dev/vfio").glob("[0-9]*")]
    return [str(number) for number in range(len(files))]
