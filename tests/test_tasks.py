"""Which task of a job array this is."""

import hypothesis
import pytest
from hypothesis import strategies as st

from extract.schema import InputError
from extract.shard_set import tasks_shards
from extract.tasks import this_task


@pytest.mark.parametrize(
    ("environment", "task"),
    [
        ({}, (0, 1)),
        ({"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "8"}, (3, 8)),
        ({"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_COUNT": "8", "SLURM_ARRAY_TASK_MIN": "1"}, (0, 8)),
        (
            {f"SLURM_ARRAY_TASK_{k}": v for k, v in {"ID": "14", "COUNT": "3", "MIN": "10", "STEP": "2"}.items()},
            (2, 3),
        ),
        ({"RANK": "2", "WORLD_SIZE": "4"}, (2, 4)),
    ],
)
def test_the_environment_tells_the_task(environment, task):
    assert this_task(None, None, environment) == task
    assert this_task(1, 5, environment) == (1, 5)  # flags come first


@pytest.mark.parametrize(
    ("index", "count", "environment", "reason"),
    [
        (2, None, {}, "give both or none"),
        (None, 2, {"RANK": "0", "WORLD_SIZE": "1"}, "give both or none"),
        (2, 2, {}, "task 2 of 2"),
        (-1, 2, {}, "task -1 of 2"),
        (0, 0, {}, "task 0 of 0"),
        (None, None, {"SLURM_ARRAY_TASK_ID": "1"}, "SLURM_ARRAY_TASK_COUNT"),
        (None, None, {"RANK": "0"}, "WORLD_SIZE"),
        (None, None, {"RANK": "x", "WORLD_SIZE": "2"}, "--task_index"),
    ],
)
def test_a_task_that_cannot_be_is_told(index, count, environment, reason):
    with pytest.raises(InputError, match=reason):
        this_task(index, count, environment)


@hypothesis.given(st.integers(0, 50), st.integers(1, 9))
def test_every_shard_has_one_task(shards, count):
    dealt = [shard for index in range(count) for shard in tasks_shards(range(shards), index, count)]
    assert sorted(dealt) == list(range(shards))
