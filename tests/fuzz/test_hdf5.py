"""Fuzzing of shards and score files: bytes changed anywhere, and structures changed with the HDF5 library."""

import random
import tempfile
from pathlib import Path

import h5py
import numpy as np
import pytest

from avh_shards import ClipMeta, UserError, open_shard
from extract.store.shard import ClipFeatures, ShardWriter, StoredClip
from jax_avh.scores import ScoreTable, open_scores, write_scores
from tests.fuzz.campaign import campaign

NAMES = (
    "clips/path",
    "clips/offset",
    "clips/label",
    "segments/value",
    "segments/offset",
    "visual",
    "audio",
    "waveform",
)
ATTRIBUTES = ("format", "version", "frame_rate", "width", "trimmed", "settings", "seconds", "encoder", "method")


def write_originals(folder: Path) -> list[Path]:
    """Returns a shard and a score file, and both with text of variable length, as older versions wrote it."""
    clips = (ClipMeta("a.mp4", 0, "real"), ClipMeta("ü/b.mp4", 1, "fake", segments=((0.1, 0.2),)))
    attributes = {"encoder": "test", "weights_sha256": "0", "width": 4, "trimmed": False, "settings": "{}"}
    frames = np.ones((3, 4), np.float32)
    stored = [StoredClip(clip, ClipFeatures(frames, frames), np.ones(99, np.int16)) for clip in clips]
    ShardWriter(folder, "float16", attributes, ("waveform",)).write(0, clips, stored)
    scores = ScoreTable("avh_align", clips, np.array([0, 3, 6]), np.ones(6, np.float32), np.ones(2, np.float32), {})
    write_scores(scores, folder / "scores.h5")
    paths = [folder / "features-00000.h5", folder / "scores.h5"]
    for path in list(paths):
        older = path.with_name(f"older-{path.name}")
        older.write_bytes(path.read_bytes())
        with h5py.File(older, "r+") as file:
            for name in ("path", "category", "split", "identity"):
                values = file[f"clips/{name}"].asstr()[:]
                del file[f"clips/{name}"]
                file.create_dataset(f"clips/{name}", data=values.astype(object), dtype=h5py.string_dtype())
        paths.append(older)
    return paths


def change_bytes(data: bytearray, rng: random.Random) -> bytearray:
    """Changes some bytes, mostly in the structures at the front, or cuts, zeroes or repeats a stretch."""
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        at = rng.randrange(min(len(data), rng.choice((512, 4096, len(data)))))
        kind = rng.randrange(6)
        if kind == 0:
            data[at] = rng.randrange(256)
        elif kind == 1:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 2:
            data[at : at + 8] = rng.choice((0, 1, 2**31, 2**40, 2**64 - 1, at, len(data))).to_bytes(8, "little")
        elif kind == 3:
            stretch = rng.choice((8, 64, 512))
            data[at : at + stretch] = bytes(len(data[at : at + stretch]))
        elif kind == 4:
            other = rng.randrange(len(data))
            data[at : at + 64] = data[other : other + len(data[at : at + 64])].ljust(len(data[at : at + 64]), b"\0")
        else:
            del data[max(at, 100) :]
    return data


def change_structure(path: Path, rng: random.Random) -> None:
    """Changes an intact file with the HDF5 library: the result is valid HDF5, but not valid for this project."""
    with h5py.File(path, "r+") as file:
        for _ in range(rng.choice((1, 1, 2, 3))):
            name, attribute = rng.choice(NAMES), rng.choice(ATTRIBUTES)
            values = (
                np.zeros(0),
                np.full(3, -1, np.int64),
                np.array([0, 2**62, 6]),
                np.array([[np.nan, 1.0]]),
                np.ones((3, 4), complex),
                np.array(["a", "a"], object),
                np.array([b"\xff", b"b"]),
                b"x",
                h5py.Empty("f4"),
                1.5,
                "[" * rng.choice((1, 9999)),
                np.ones((2, 2, 2), np.float16),
                True,
            )
            value = rng.choice(values)
            kind = rng.randrange(5)
            if kind == 0:
                file.attrs[attribute] = value
            elif kind == 1 and name in file:
                del file[name]
            elif kind == 2:
                if name in file:
                    del file[name]
                target = rng.choice((h5py.SoftLink("/"), h5py.SoftLink(f"/{name}"), h5py.ExternalLink("x.h5", "/x")))
                file[name] = target
            elif kind == 3:
                if name in file:
                    del file[name]
                file[name] = value
            else:
                file.attrs.pop(attribute, None)


def attempt(number: int) -> None:
    """Damages one of the files and reads it with every reader."""
    rng = random.Random(number)
    with tempfile.TemporaryDirectory() as folder:
        path = rng.choice(write_originals(Path(folder)))
        if number % 2:
            change_structure(path, rng)
        else:
            path.write_bytes(change_bytes(bytearray(path.read_bytes()), rng))
        refused = []
        for read in (open_shard, open_scores):
            try:
                read(path)
            except UserError as error:
                refused.append(error)
        if len(refused) == 2:  # no file is both
            raise refused[0]


def test_damaged_files_are_read_or_refused():
    outcomes = campaign(attempt, 40)
    assert outcomes["refused"] > 10


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_ten_thousand_damaged_files_are_read_or_refused():
    outcomes = campaign(attempt, 10_000)
    assert outcomes["refused"] > 1000
