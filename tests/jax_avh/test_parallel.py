"""Which GPUs a process takes when it joins others, under imitated launchers."""

import os
import subprocess
import sys

import jax
import pytest

from jax_avh.parallel import compiling_for, join_processes, keep_programs
from tests.runs import free_port

NODE = {"CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7"}
ONE_GPU = {"CUDA_VISIBLE_DEVICES": "0"}  # what SLURM shows a task that is bound to its own GPU


def srun(rank: int, tasks: int) -> dict[str, str]:
    """Returns the environment of a task on the second of two nodes, as far as it is read."""
    step = {"SLURM_STEP_ID": "0", "SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "node[1-2]", "SLURM_NODEID": "1"}
    count = {"SLURM_STEP_TASKS_PER_NODE": f"{tasks}(x2)", "SLURM_NTASKS": str(2 * tasks)}
    return step | count | {"SLURM_LOCALID": str(rank), "SLURM_PROCID": str(tasks + rank), "SLURM_GPUS_ON_NODE": "8"}


def open_mpi(rank: int, tasks: int) -> dict[str, str]:
    return {"OMPI_COMM_WORLD_LOCAL_RANK": str(rank), "OMPI_COMM_WORLD_LOCAL_SIZE": str(tasks)}


ALL = []  # JAX restricts nothing


@pytest.mark.parametrize("cluster", [(), ("node1:1234", 2, 1)])
@pytest.mark.parametrize(
    ("environment", "wanted", "warning"),
    [
        pytest.param(NODE, ALL, "", id="no launcher"),
        pytest.param(srun(0, 1) | NODE, ALL, "", id="srun, one task a node"),
        pytest.param(srun(5, 8) | NODE, [5], "", id="srun, a task per GPU"),
        pytest.param(srun(5, 8) | ONE_GPU, ALL, "", id="srun, a task per GPU and bound to it"),
        pytest.param(srun(0, 1) | ONE_GPU, ALL, "only 1 of 8 GPUs", id="srun, one task that sees one GPU"),
        pytest.param(srun(0, 2) | NODE, [0], "only 2 of 8 GPUs", id="srun, too few tasks"),
        pytest.param(srun(1, 2) | NODE, [1], "", id="the first task on a node warns for all"),
        pytest.param(srun(1, 2) | {"CUDA_VISIBLE_DEVICES": ""}, [1], "", id="srun, GPUs of another kind"),
        pytest.param(open_mpi(0, 1) | NODE, ALL, "", id="Open MPI, one process a node"),
        pytest.param(open_mpi(3, 8) | NODE, [3], "", id="Open MPI, a process per GPU"),
        pytest.param(srun(0, 1) | NODE | {"JAX_LOCAL_DEVICE_IDS": "2,3"}, None, "", id="the user's choice"),
    ],
)
def test_one_process_takes_all_gpus_of_its_machine_and_each_of_several_its_own(
    monkeypatch, capsys, cluster, environment, wanted, warning
):
    joined = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *arguments: joined.append(arguments))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    join_processes(*cluster)
    assert joined == [(*(cluster or (None, None, None)), wanted)]
    printed = capsys.readouterr().err
    assert printed.startswith(f"warning: {warning}") if warning else not printed


@pytest.mark.parametrize("user", [{}, {"JAX_LOCAL_DEVICE_IDS": "2,3"}])
def test_jax_restricts_the_only_task_of_a_node_to_no_gpu(user):
    """Joins a SLURM job of one task in earnest; JAX's own detection would take only the first GPU."""
    code = "import jax; from jax_avh.parallel import join_processes; join_processes(); "
    code += "print(jax.process_count(), jax._src.xla_bridge.CUDA_VISIBLE_DEVICES.value)"
    step = srun(0, 1) | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_STEP_NODELIST": "localhost", **NODE}
    port = {"JAX_COORDINATOR_PORT": str(free_port())}
    process = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **step, **port, **user}, capture_output=True, text=True
    )
    assert process.stdout == f"1 {user.get('JAX_LOCAL_DEVICE_IDS', 'all')}\n", process.stderr


@pytest.mark.parametrize(
    ("platform", "chosen", "kept"),
    [("gpu", None, True), ("tpu", None, True), ("cpu", None, False), ("gpu", "/elsewhere", False)],
)
def test_programs_are_kept_for_accelerators_unless_the_user_says_where(tmp_path, monkeypatch, platform, chosen, kept):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if chosen:
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", chosen)
    try:
        with compiling_for(platform):
            keep_programs()
        found = jax.config.jax_compilation_cache_dir
    finally:
        jax.config.update("jax_compilation_cache_dir", None)
    assert found == (str(tmp_path / "avh-align-jax" / "programs") if kept else None)
    assert found is None or os.access(found, os.W_OK)


def test_a_cache_that_cannot_be_made_costs_no_run(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    (tmp_path / "file").touch()
    with compiling_for("gpu"):
        keep_programs()
    assert not jax.config.jax_compilation_cache_dir
