"""A process's share of its machine (rank, cores, GPUs, TPU chips) by imitated environments and drivers."""

import os

import pytest

from avh_shards import machine
from avh_shards.machine import local_rank, own_cores, tpu_chips, visible_gpus


def srun(rank: int, tasks: str, node: int = 0) -> dict[str, str]:
    names = ("SLURM_STEP_ID", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE", "SLURM_NODEID")
    return dict(zip(names, map(str, (0, rank, tasks, node)), strict=True))


TORCHRUN = {"LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "8"}
OPEN_MPI = {"OMPI_COMM_WORLD_LOCAL_RANK": "1", "OMPI_COMM_WORLD_LOCAL_SIZE": "4"}
RANKS = {
    "no launcher": ({}, (0, 1)),
    "torchrun": (TORCHRUN, (3, 8)),
    "a rank set by hand": ({"LOCAL_RANK": "3"}, (3, 4)),
    "Open MPI": (OPEN_MPI, (1, 4)),
    "PMI": ({"MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}, (1, 2)),
    "srun, one task a node": (srun(0, "1(x2)", node=1), (0, 1)),
    "srun, eight tasks a node": (srun(5, "8(x2)", node=1), (5, 8)),
    "srun, unequal nodes": (srun(0, "8(x2),1,4", node=2), (0, 1)),
    "srun, last node": (srun(3, "8(x2),1,4", node=3), (3, 4)),
    "srun --ntasks-per-node": (
        {"SLURM_STEP_ID": "0", "SLURM_LOCALID": "1", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NODEID": "1"},
        (1, 2),
    ),
    "a batch script": ({"SLURM_LOCALID": "0", "SLURM_NTASKS_PER_NODE": "8"}, (0, 1)),
    "torchrun, started by srun": (srun(0, "1(x2)") | TORCHRUN, (3, 8)),
    "Open MPI, its daemons started by srun": (srun(0, "1(x2)") | OPEN_MPI, (1, 4)),
    "no numbers": ({"LOCAL_RANK": "x"}, (0, 1)),
}


@pytest.mark.parametrize("case", RANKS)
def test_a_launchers_processes_know_their_rank_on_the_machine(case):
    environment, wanted = RANKS[case]
    assert local_rank(environment) == wanted


@pytest.mark.parametrize(
    ("environment", "cores", "wanted"),
    [
        ({}, 208, 208),
        (TORCHRUN, 208, 26),
        (TORCHRUN, 104, 13),  # of a job with half of the machine
        (TORCHRUN, 4, 1),
        (srun(5, "8"), 208, 26),
        (srun(5, "8"), 26, 26),  # srun has bound the task to its own cores
    ],
)
def test_processes_of_a_launcher_share_the_cores(monkeypatch, environment, cores, wanted):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    monkeypatch.setattr(os, "cpu_count", lambda: 208)
    assert own_cores(environment) == wanted


@pytest.mark.parametrize(
    ("listed", "wanted"),
    [
        ("", []),
        ("-1", []),
        ("3", ["3"]),
        ("0, 2", ["0", "2"]),
        ("1,-1,2", ["1"]),
        ("GPU-8,MIG-1", ["GPU-8", "MIG-1"]),
    ],
)
def test_cuda_visible_devices_names_the_gpus(listed, wanted):
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": listed}) == wanted


def test_the_driver_counts_the_gpus(tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'GPU 0: A (UUID: GPU-1)\n  MIG 1g.10gb Device 0: B\nGPU 1: A (UUID: GPU-2)'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert visible_gpus({}) == ["0", "1"]
    program.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'; exit 9\n")
    assert visible_gpus({}) == []


def test_device_files_count_what_no_driver_counts(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(machine, "Path", lambda path: tmp_path / path.removeprefix("/"))
    assert visible_gpus({}) == []
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for name in ("nvidia0", "nvidia5", "nvidiactl", "vfio/0", "vfio/1", "vfio/vfio"):
        file = tmp_path / "dev" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    assert visible_gpus({}) == ["0", "1"]
    assert tpu_chips({}) == []  # other devices use vfio, too
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    assert tpu_chips({}) == ["0", "1"]
    (tmp_path / "dev" / "accel0").touch()
    assert tpu_chips({}) == ["0"]
    assert tpu_chips({"TPU_VISIBLE_CHIPS": "2,3"}) == ["2", "3"]
