"""Runs of `launch.extract` on small clips, and a comparison of their results."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

from avh_shards import open_shard
from avh_shards.format import list_shards
from tests.conftest import TESTDATA
from tests.forks import Forked, forks


def make_media(folder: Path, clips: int, source: Path = TESTDATA) -> Path:
    """Creates a folder of roi clips c0, c1, ..., and returns a clip list that also names a missing one."""
    folder.mkdir()
    for k in range(clips):
        for suffix in ("_roi.mp4", ".wav"):
            shutil.copy(source / f"{('s4', 'st48', 'trim')[k % 3]}{suffix}", folder / f"c{k}{suffix}")
    clip_list = folder.with_suffix(".csv")
    clip_list.write_text("path\n" + "".join(f"c{k}.mp4\n" for k in range(clips + 1)))
    return clip_list


def start_extract(
    media: Path, avhubert: Path, output: object, cluster: str = "none", **flags: object
) -> Forked | subprocess.Popen:
    """Starts the command on such a folder, with two clips per shard."""
    flags = {"clips": media.with_suffix(".csv"), "media": media, "avhubert": avhubert, "output": output} | flags
    flags |= {"input": "roi", "clips_per_shard": 2, "cluster": cluster}
    arguments = [f"--{name}={value}" for name, value in flags.items()]
    errors = media.with_suffix(".err")  # kept in pytest's folder for failed runs
    if cluster == "none":
        return forks().start("extract", *arguments, stderr=errors)
    with errors.open("a") as file:  # Ray needs a separate process
        return subprocess.Popen(
            [sys.executable, "-m", "launch.extract", *arguments], stdout=subprocess.DEVNULL, stderr=file
        )


def assert_same_set(one, other) -> None:
    """Asserts that two folders hold the same shards, bit for bit, and the same failures."""
    names = [path.name for path in list_shards(one)]
    assert names == [path.name for path in list_shards(other)]
    for a, b in ((open_shard(one / name), open_shard(other / name)) for name in names):
        assert repr(a.clips) == repr(b.clips)  # NaN equals nothing
        for name in ("visual", "audio", "offset"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
        assert {k: v for k, v in a.attributes.items() if k != "seconds"} == {
            k: v for k, v in b.attributes.items() if k != "seconds"
        }
    assert (one / "failures.jsonl").read_text() == (other / "failures.jsonl").read_text()
    assert not list(other.glob(".features*.part"))
