"""Fuzzing of npz files: changed members, headers and bytes, read as features and as landmarks."""

import contextlib
import io
import random
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from avh_shards import UserError
from extract.convert.npz import read_npz
from extract.face.landmarks import GivenPoints
from extract.store.shard import check_features
from tests.fuzz.campaign import campaign

WIDTH = 8
FORMS = ["<f4", "<f2", ">f8", "<i8", "|b1", "|O", "<U3", "<U99999999", "|V0", "<c16", "<M8[s]", "x", [("a", "<f4")], 3]
SIZES = [0, 1, 2, 5, 8, 68, -1, 2**31, 2**40, 2**63, True, 1.5, "x"]


def header(draw: random.Random) -> bytes:
    """Returns the header of an array, mostly a valid one."""
    shape = draw.choice([(5, WIDTH), (5, 68, 2), tuple(draw.choice(SIZES) for _ in range(draw.randrange(4)))])
    fields = {"descr": draw.choice(["<f4", "<f8", *FORMS]), "fortran_order": draw.choice([False, True]), "shape": shape}
    text = (
        draw.choice([repr(fields)] * 8 + ["(" * 5000, "{}", "[]*9**9", repr(fields)[:-3]]).encode() + b" " * 9 + b"\n"
    )
    length = draw.choice([len(text)] * 9 + [0, 9, 60000])
    version = draw.choice([1, 1, 1, 2, 3, 9])
    return b"\x93NUMPY" + bytes([version, 0]) + length.to_bytes(2 if version == 1 else 4, "little") + text


def member(draw: random.Random) -> bytes:
    if draw.random() < 0.2:
        return header(draw) + draw.randbytes(draw.choice([160, 320, 2720, 5440, 3]))
    buffer = io.BytesIO()
    shape = draw.choice([(5, WIDTH)] * 9 + [(3, WIDTH), (5, 68, 2)])
    np.save(buffer, np.random.default_rng(draw.randrange(9)).random(shape).astype(draw.choice(["<f4", "<f2", "<f8"])))
    return buffer.getvalue()


def archive(draw: random.Random) -> bytes:
    buffer = io.BytesIO()
    methods = [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED] * 5 + [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2]
    with zipfile.ZipFile(buffer, "w", draw.choice(methods)) as file:
        for name in draw.choice([("visual", "audio", "landmarks")] * 5 + [("visual",), ("audio", "visual", "x")]):
            file.writestr(draw.choice([f"{name}.npy"] * 9 + [name]), member(draw))
    return buffer.getvalue()


def attempt(number: int) -> None:
    """Reads a file as features, then as landmarks."""
    draw = random.Random(number)
    content = bytearray(archive(draw))
    for _ in range(draw.choice([0, 0, 0, 0, 1, 2, 5])):
        content[draw.randrange(len(content))] = draw.randrange(256)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.npz"
        path.write_bytes(content[: draw.choice([len(content)] * 9 + [draw.randrange(len(content))])])
        with contextlib.suppress(UserError):
            GivenPoints(path)
        reason = check_features(read_npz(path, WIDTH)[0], WIDTH, "float16")
    if reason:
        raise UserError(reason)


def test_random_files_are_read_or_refused():
    outcomes = campaign(attempt, 200)
    assert min(outcomes["read"], outcomes["refused"]) > 10


@pytest.mark.slow
def test_many_random_files_are_read_or_refused():
    campaign(attempt, 10_000)
