"""Tests that the files of an older version can be read, resumed and reproduced; see reference.py."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from avh_shards import open_shard
from avh_shards.format import list_shards
from jax_avh.scores import open_scores
from jax_avh.training.logging import read_metrics
from tests import reference
from tests.conftest import TESTDATA

OLD = TESTDATA / "reference"
UNLIKE = ("frames_per_second", "examples_per_second", "seconds", "prepare_seconds", "created_by")


@pytest.fixture
def old(tmp_path):
    """Returns a copy of the older version's files."""
    return Path(shutil.copytree(OLD, tmp_path / "old"))


def assert_alike(one: object, other: object, tolerance: float) -> None:
    """Asserts equality in everything except paths and the last digits of numbers."""
    if isinstance(one, dict):
        assert isinstance(other, dict)
        assert list(one) == list(other)
        for name in one:
            if name not in UNLIKE:
                assert_alike(one[name], other[name], tolerance)
    elif isinstance(one, list):
        assert isinstance(other, list)
        assert len(one) == len(other)
        for pair in zip(one, other, strict=True):
            assert_alike(*pair, tolerance)
    elif isinstance(one, float):
        assert other == pytest.approx(one, rel=tolerance, abs=tolerance, nan_ok=True)
    elif isinstance(one, str) and "/shards/" in one:
        assert Path(one).parts[-2:] == Path(other).parts[-2:]
    else:
        assert type(one) is type(other)
        assert one == other


def assert_same_curve(old: Path, new: Path) -> None:
    assert_alike(read_metrics(old / "metrics.jsonl"), read_metrics(new / "metrics.jsonl"), 1e-6)


def test_extraction_is_reproduced(old, tmp_path):
    reference.extract(tmp_path / "new", _folder(tmp_path / "scratch"))
    for state in ("untrimmed", "trimmed"):
        names = [path.name for path in list_shards(old / "extracted" / state)]
        assert names == [path.name for path in list_shards(tmp_path / "new" / state)]
        for name in names:
            one, other = (open_shard(root / state / name) for root in (old / "extracted", tmp_path / "new"))
            assert repr(one.clips) == repr(other.clips)  # NaN equals nothing
            for array in ("visual", "audio", "offset"):
                np.testing.assert_array_equal(getattr(one, array), getattr(other, array))
            assert_alike(dict(one.attributes), dict(other.attributes), 0)
        failures = [
            json.loads((root / state / "failures.jsonl").read_text()) for root in (old / "extracted", tmp_path / "new")
        ]
        assert [failure["path"] for failure in failures] == ["c3.mp4"] * 2


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


@pytest.mark.parametrize("name", reference.KILLED)
def test_killed_runs_resume(old, name):
    epochs = read_metrics(old / "trained" / name / "metrics.jsonl")[-1]["epoch"]  # epoch 0 comes before training
    reference.train(old / "killed" / name, old / "shards", reference.KILLED[name] | {"train.epochs": epochs})
    assert_same_curve(old / "trained" / name, old / "killed" / name)
    results = [json.loads((old / part / name / "result.json").read_text()) for part in ("trained", "killed")]
    assert_alike(*results, 1e-6)


@pytest.mark.parametrize(
    "method", [pytest.param(m, marks=[pytest.mark.slow] if m == "rawnet2" else []) for m in reference.CURVES]
)
def test_training_is_reproduced(old, tmp_path, method):
    reference.curve(method, tmp_path / "run", old / "shards", old / "trained" / "align" / "best.safetensors")
    assert_same_curve(old / "trained" / method, tmp_path / "run")


def test_the_losses_of_rawnet2_before_training_are_reproduced(old, tmp_path):
    """Its examples, first weights and loss; its steps, which take long to compile, are in the slow test above."""
    settings = reference.CURVES["rawnet2"] | {"method": "rawnet2", "train.epochs": 0}
    reference.train(tmp_path / "run", old / "shards", settings)
    before, after = (read_metrics(run / "metrics.jsonl") for run in (old / "trained" / "rawnet2", tmp_path / "run"))
    assert_alike(before[:1], after, 1e-6)


def test_scores_are_reproduced(old, tmp_path):
    weights = {name: old / "trained" / name / "best.safetensors" for name in reference.KILLED}
    reference.score(tmp_path, old / "shards", weights)
    for path in (old / "scores").iterdir():
        one, other = open_scores(path), open_scores(tmp_path / path.name)
        assert repr(one.clips) == repr(other.clips)  # NaN equals nothing
        for name in ("frame", "clip"):
            before, after = getattr(one, name), getattr(other, name)
            if before is None:
                assert after is None
            else:
                np.testing.assert_allclose(after, before, rtol=1e-6, atol=1e-6)


def test_evaluation_is_reproduced(old, tmp_path):
    reference.evaluate(tmp_path, old / "scores")
    one, other = (json.loads((root / "metrics.json").read_text()) for root in (old / "results", tmp_path))
    assert other.pop("references") == []  # has been added since
    assert_alike(one, other, 1e-9)
    one, other = ((root / "clips.csv").read_text() for root in (old / "results", tmp_path))
    assert one == other


def test_an_audit_is_reproduced(old, tmp_path):
    reference.audit(tmp_path, old / "shards")
    one, other = (json.loads((root / "audit.json").read_text()) for root in (old / "audit", tmp_path))
    assert_alike(one, other, 1e-9)
