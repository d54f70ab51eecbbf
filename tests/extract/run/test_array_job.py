"""Task index and count in job arrays and under launchers."""

import hypothesis
import pytest
from hypothesis import strategies as st

from avh_shards import UserError
from extract.run.array_job import this_task
from extract.run.job import tasks_shards


def array(task: object, first: int = 0, last: int = 7, step: int = 1, count: int | None = None) -> dict[str, str]:
    """Returns the environment of one task of `sbatch --array=FIRST-LAST:STEP`."""
    values = {"ID": task, "MIN": first, "MAX": last, "STEP": step, "COUNT": count or len(range(first, last + 1, step))}
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in values.items()}


def srun(rank: int, ranks: int) -> dict[str, str]:
    names = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_ID")
    return dict(zip(names, map(str, (rank, ranks, ranks, 0)), strict=True))


def ranked(rank_name: str, count_name: str, **others: str):
    """Returns a function that builds the environment of a launcher's process."""
    return lambda rank, ranks: {rank_name: str(rank), count_name: str(ranks)} | others


BATCH = {"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_JOB_ID": "1"}  # a batch script, which runs once
LAUNCHERS = {
    "srun": srun,
    "srun in a batch script": lambda rank, ranks: BATCH | srun(rank, ranks),
    "srun --mpi=pmi2": lambda rank, ranks: srun(rank, ranks) | ranked("PMI_RANK", "PMI_SIZE")(rank, ranks),
    "srun --mpi=pmix": lambda rank, ranks: srun(rank, ranks) | {"PMIX_RANK": str(rank)},
    "Open MPI": ranked("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    "Open MPI in a batch script": ranked("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", **BATCH, PMIX_RANK="0"),
    "Open MPI, its daemons started by srun": ranked("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", **srun(1, 2)),
    "PMI": ranked("PMI_RANK", "PMI_SIZE"),
    "torchrun": ranked("RANK", "WORLD_SIZE"),
    "torchrun, started by srun": ranked("RANK", "WORLD_SIZE", **srun(1, 2)),
}


def assert_partition(tasks: list[tuple[int, int]]) -> None:
    """Checks that each shard is assigned to exactly one of these tasks."""
    dealt = [shard for index, count in tasks for shard in tasks_shards(range(23), index, count)]
    assert sorted(dealt) == list(range(23))


@pytest.mark.parametrize("ranks", [1, 2, 5])
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_launchers_processes_share_the_shards(launcher, ranks, capsys):
    tasks = [this_task(None, None, LAUNCHERS[launcher](rank, ranks)) for rank in range(ranks)]
    assert tasks == [(rank, ranks) for rank in range(ranks)]
    assert_partition(tasks)
    expected = capsys.readouterr().err
    assert expected.count(f" of {ranks}, counted from 0 (") == (ranks if ranks > 1 else 0)


@pytest.mark.parametrize("ranks", [None, 1, 3])
@pytest.mark.parametrize("count", [1, 8])
def test_an_arrays_tasks_share_the_shards(count, ranks, capsys):
    """Tasks run whole or split among processes. (`--array=0-7%2` has the variables of `--array=0-7`.)"""
    tasks = [
        this_task(None, None, array(task, 0, count - 1) | ({} if ranks is None else srun(rank, ranks)))
        for task in range(count)
        for rank in range(ranks or 1)
    ]
    assert len(set(tasks)) == count * (ranks or 1)
    assert_partition(tasks)
    assert f"task 0 of {count * (ranks or 1)}, counted from 0 (SLURM array" in capsys.readouterr().err


@pytest.mark.parametrize("part", [array(3, 3, 3), array(3, 3, 6, count=2), array(6, 3, 6, count=2), array(6, 0, 6, 2)])
def test_a_part_of_an_array_needs_the_number_of_tasks_of_the_whole(part, capsys):
    with pytest.raises(UserError, match="as --task_count"):
        this_task(None, None, part)
    task = int(part["SLURM_ARRAY_TASK_ID"])
    assert this_task(None, 8, part) == (task, 8)
    assert capsys.readouterr().err == f"task {task} of 8, counted from 0 (SLURM array, --task_count)\n"
    again = [this_task(None, 8, array(3, 3, 3)), *((index, 8) for index in (0, 1, 2, 4, 5, 6, 7))]
    assert_partition(again)


def test_an_array_that_counts_from_one_is_not_guessed_at():
    with pytest.raises(UserError, match="8 tasks from 1 to 8"):
        this_task(None, None, array(8, 1, 8))
    with pytest.raises(UserError, match="task 8 of 8"):
        this_task(None, 8, array(8, 1, 8))


def test_a_process_on_its_own_does_all(capsys):
    assert this_task(None, None, {}) == (0, 1)
    assert this_task(None, None, BATCH) == (0, 1)  # a batch script runs once, whatever SLURM_NTASKS says
    assert capsys.readouterr().err == ""


def test_flags_come_first(capsys):
    for environment in ({}, array(3), srun(1, 2), {"RANK": "x"}):
        assert this_task(1, 5, environment) == (1, 5)
    assert "task 1 of 5, counted from 0 (--task_index, --task_count)" in capsys.readouterr().err
    assert this_task(None, 2, srun(1, 2)) == (1, 2)


@pytest.mark.parametrize(
    ("index", "count", "environment", "reason"),
    [
        (2, None, {}, "give both"),
        (None, 2, {}, "no job array or launcher"),
        (None, 2, BATCH, "no job array or launcher"),
        (None, 2, {"RANK": "0", "WORLD_SIZE": "1"}, "give --task_index and --task_count"),
        (None, 8, srun(0, 2), "srun started 2 processes"),
        (None, 8, array(3) | srun(0, 2), "ambiguous"),
        (2, 2, {}, "task 2 of 2"),
        (-1, 2, {}, "task -1 of 2"),
        (0, 0, {}, "task 0 of 0"),
        (None, None, {"SLURM_ARRAY_TASK_ID": "1"}, "SLURM_ARRAY_TASK_COUNT"),
        (None, None, {"SLURM_PROCID": "1", "SLURM_NTASKS": "2"}, "SLURM_STEP_ID"),
        (None, None, {"PMIX_RANK": "0"}, "number of ranks"),
        (None, None, {"OMPI_COMM_WORLD_RANK": "0"}, "OMPI_COMM_WORLD_SIZE"),
        (None, None, {"PMI_RANK": "0"}, "PMI_SIZE"),
        (None, None, {"RANK": "0"}, "WORLD_SIZE"),
        (None, None, {"RANK": "x", "WORLD_SIZE": "2"}, "--task_index"),
        (None, None, {"RANK": "2", "WORLD_SIZE": "2"}, "task 2 of 2"),
    ],
)
def test_a_task_that_cannot_be_is_told(index, count, environment, reason):
    with pytest.raises(UserError, match=reason):
        this_task(index, count, environment)


@hypothesis.given(st.integers(0, 50), st.integers(1, 9))
def test_every_shard_has_one_task(shards, count):
    dealt = [shard for index in range(count) for shard in tasks_shards(range(shards), index, count)]
    assert sorted(dealt) == list(range(shards))
