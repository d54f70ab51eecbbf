"""Fuzzing of references: each is read, and then judges a video, or is a one-line error."""

import json
import random
import tempfile
from pathlib import Path

import numpy as np
import pytest

from jax_avh.reference import Calibration, Reference, read_reference, write_reference
from jax_avh.scores import RULES
from tests.fuzz.campaign import campaign
from tests.fuzz.damage import damaged
from tests.fuzz.test_metadata import with_other_values

ATTRIBUTES = {"method": "avh_align", "pooling": "mean", "weights_sha256": "b" * 64, "trimmed": False, "dataset": "é"}


def read_damaged_reference(number: int) -> None:
    """Reads a reference after damage to its bytes or values, and uses what could be read."""
    chance = random.Random(number)
    calibration = Calibration("platt", 7, 8, np.array([-1.5, 0.1]), np.array([0.0, 1.0]))
    scores = {name: np.arange(3, dtype=np.float32) for name in ("mean", "clip")}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "reference.json")
        write_reference(Reference(ATTRIBUTES, np.array([50, 50, 75]), scores, 2.0, calibration), path)
        if number % 2:
            content = with_other_values(json.loads(path.read_text()), chance)
            path.write_text(json.dumps(content), encoding="utf-8", errors="surrogatepass")
        if number % 2 == 0 or chance.random() < 0.2:
            path.write_bytes(damaged(path.read_bytes(), chance))
        reference = read_reference(path)
        if reference.frame_limit is not None and reference.own in RULES:
            line = reference.judge(np.zeros(50, np.float32)).line()
            assert line.isprintable()
        write_reference(reference, path)
        assert read_reference(path).attributes == reference.attributes


def test_damaged_references():
    assert campaign(read_damaged_reference, 50).keys() == {"read", "refused"}


@pytest.mark.slow
def test_many_damaged_references():
    campaign(read_damaged_reference, 10_000)
