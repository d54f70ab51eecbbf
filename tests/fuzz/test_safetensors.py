"""Fuzzing of .safetensors weights: changed headers, notes and bytes, read on both sides."""

import contextlib
import json
import random
import tempfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from avh_shards import UserError
from avh_shards.weights import pack_notes
from extract.convert.weights import convert_weights
from jax_avh.inference import load_detector
from tests.fuzz.campaign import campaign

KINDS = {
    "avh_align": {"head": "mlp", "modality": "both", "normalised": "true"},
    "avh_sup": {"head": "linear", "modality": "both", "normalised": "true"},
    "rawnet2": {"samples": "64600"},
    "mds": {"image": "32", "width_multiplier": "0.01"},
    "avad": {"windows": "50", "tau": "15", "boundary": "zeros", "sync_head": "linear", "sync_width": "8"}
    | {"sync_modality": "both", "sync_normalised": "true"},
}
ODD = [
    "",
    "0",
    "-1",
    "1",
    "64",
    "9" * 12,
    "9" * 30,
    "9" * 5000,
    "1e309",
    "nan",
    "x",
    "\x1b[2J",
    "audio",
    "linear",
    "mask",
]
SHAPES = [(1, 16), (1,), (512, 8), (1, 200), (1, 2048), (1, 200_000), (3,), (0,), (1, 0), (1, 1, 1)]


def weights(draw: random.Random) -> bytes:
    """Returns a file, mostly of the linear network, else of arrays and notes that do not match."""
    linear = {"head.weight": np.ones((1, 16), np.float32), "head.bias": np.ones(1, np.float32)}
    if draw.random() < 0.4:
        return safetensors.numpy.save(linear, pack_notes({"method": "avh_sup"} | KINDS["avh_sup"]))
    names = draw.sample(
        ["head.weight", "head.bias", "visual_proj.weight", "proj.weight", "lin1.weight", "first_bn.bias"], 2
    )
    kinds = [np.float32] * 6 + [np.float64, np.int64, np.uint8, np.float16]
    arrays = {name: np.ones(draw.choice(SHAPES), draw.choice(kinds)) for name in names}
    if draw.random() < 0.2:
        arrays = {name: array * np.nan if array.dtype.kind == "f" else array for name, array in arrays.items()}
    method = draw.choice(["avh_sup", "avh_align", *KINDS, "x"])
    notes = {"method": method} | KINDS.get(method, {})
    for name in draw.choices(sorted(notes), k=draw.randrange(3)):
        notes[name] = draw.choice(ODD)
    return safetensors.numpy.save(arrays | (linear if draw.random() < 0.5 else {}), pack_notes(notes))


def changed(content: bytes, draw: random.Random) -> bytes:
    """Returns the file with a rewritten header or some changed bytes."""
    length = int.from_bytes(content[:8], "little")
    if draw.random() < 0.3:
        header = json.loads(content[8 : 8 + length])
        entry = header[draw.choice(sorted(header))]
        field = draw.choice([*entry, "shape"])
        entry[field] = draw.choice(
            [[0, 64], [64, 0], [2**62, 4], [-1], [2**64], "F32", "BF16", "F8_E4M3", "{", None, []]
        )
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + content[8 + length :]
    data = bytearray(content)
    for _ in range(draw.choice([0, 1, 1, 3])):
        data[draw.choice([draw.randrange(8), draw.randrange(len(data))])] = draw.randrange(256)
    return bytes(data[: draw.choice([len(data)] * 9 + [draw.randrange(len(data))])])


def attempt(number: int) -> None:
    """Reads a file as the weights of a detector, and converts it; the first file declares a layer of gigabytes."""
    draw = random.Random(number)
    wide = safetensors.numpy.save({"visual_proj.weight": np.zeros((1, 800_000), np.uint8)})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "w.safetensors"
        content = weights(draw)
        path.write_bytes((changed(content, draw) if draw.random() < 0.7 else content) if number else wide)
        with contextlib.suppress(UserError):
            convert_weights(path, path.with_suffix(draw.choice([".pt", ".ckpt", ".pth"])))
        load_detector(path)


def test_random_files_are_read_or_refused():
    outcomes = campaign(attempt, 100)
    assert min(outcomes["read"], outcomes["refused"]) > 5


@pytest.mark.slow
def test_many_random_files_are_read_or_refused():
    campaign(attempt, 10_000)
