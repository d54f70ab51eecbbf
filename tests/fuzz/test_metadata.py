"""Fuzzing of data sets' metadata: each returns clips or a one-line error."""

import json
import random
import tempfile
from pathlib import Path

import pytest

from extract.datasets import read_dataset
from tests.extract.datasets.test_datasets import AV1M, FAVC, LAV, plant
from tests.fuzz.campaign import campaign
from tests.fuzz.damage import damaged
from tests.fuzz.test_lists import check_clips

SETS = [("av_deepfake1m", AV1M), ("lavdf", LAV), ("fakeavceleb", FAVC)]
VALUES = [
    None,
    True,
    0,
    -1,
    2**70,
    1e308,
    float("nan"),
    "",
    "x",
    "../a.mp4",
    "a\ud800",
    "é\u200b",
    [],
    [[]],
    {},
    [[2, 1]],
]


def read_damaged_metadata(number: int) -> None:
    """Reads a data set after damage to the bytes or the values of one file."""
    chance = random.Random(number)
    name, files = chance.choice(SETS)
    file = chance.choice(sorted(files))
    content = files[file]
    if not isinstance(content, str) and chance.random() < 0.5:
        content = with_other_values(content, chance)
    content = content if isinstance(content, str) else json.dumps(content)
    content = content.encode("utf-8", "surrogatepass")
    with tempfile.TemporaryDirectory() as folder:
        root = plant(Path(folder), files | {file: content if chance.random() < 0.2 else damaged(content, chance)})
        check_clips(read_dataset(name, root), root)


def with_other_values(content: object, chance: random.Random) -> object:
    """Replaces some of the values at any depth by others."""
    if chance.random() < 0.03:
        return chance.choice(VALUES)
    if isinstance(content, dict):
        return {name: with_other_values(value, chance) for name, value in content.items() if chance.random() < 0.99}
    if isinstance(content, list):
        return [with_other_values(value, chance) for value in content]
    return content


def test_damaged_metadata():
    assert campaign(read_damaged_metadata, 200).keys() == {"read", "refused"}


@pytest.mark.slow
def test_many_damaged_metadata():
    campaign(read_damaged_metadata, 10_000)
