"""Benchmark of extraction on thousands of short clips: memory, file descriptors and the overhead per clip.

python -m benchmarks.many_clips --clips=2000
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import psutil
import torch

from tests import rules
from tests.media import tone, write_media

KINDS = 16  # different files, to which the clips are hard links
FRAMES = 12  # per clip
PER_SHARD = 50
WARM = 100  # clips after which memory should be flat


class Sample(NamedTuple):
    """The state of the run's processes at one moment."""

    clips: int  # clips written to shards
    memory: float  # MiB, resident memory of the command
    workers: float  # MiB, resident memory of its largest worker
    descriptors: int  # open descriptors of the command


def main() -> None:
    """Creates the clips, runs the command on them and prints the measurements."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=2000)
    count = parser.parse_args().clips
    with tempfile.TemporaryDirectory() as folder:
        command = prepare_run(Path(folder), count)
        started = time.perf_counter()
        samples = watch(command, Path(folder) / "out")
        seconds = time.perf_counter() - started
        summary = json.loads((Path(folder) / "out" / "extraction.json").read_text())
    assert summary["stored"] == count
    report(samples, summary, seconds)


def prepare_run(folder: Path, count: int) -> list[str]:
    """Creates clips of noise with a tone, their landmarks and tiny weights; returns the command that extracts them."""
    rng = np.random.default_rng(0)
    for kind in range(KINDS):
        picture = cv2.resize(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8), (320, 240))
        frames = [np.roll(picture, 3 * shift, axis=1) for shift in range(FRAMES)]
        write_media(folder / f"kind{kind}.mp4", frames, sound=tone(FRAMES / 25))
        points = rng.uniform(80, 160, (68, 2)) + np.arange(FRAMES)[:, None, None]
        np.savez(folder / f"kind{kind}.npz", landmarks=points)
    for name in ("media", "points"):
        (folder / name).mkdir()
    for clip in range(count):
        for name, suffix in (("media", ".mp4"), ("points", ".npz")):
            os.link(folder / f"kind{clip % KINDS}{suffix}", folder / name / f"c{clip:05d}{suffix}")
    (folder / "clips.csv").write_text("path\n" + "".join(f"c{clip:05d}.mp4\n" for clip in range(count)))
    torch.save(rules.encoder_checkpoint(False, rules.TINY_SETTINGS), folder / "tiny.pt")
    places = {"clips": "clips.csv", "media": "media", "landmarks": "points", "avhubert": "tiny.pt", "output": "out"}
    flags = {name: folder / place for name, place in places.items()} | {"clips_per_shard": PER_SHARD}
    return [sys.executable, "-m", "launch.extract", *(f"--{name}={value}" for name, value in flags.items())]


def watch(command: list[str], output: Path) -> list[Sample]:
    """Runs the command and samples its processes about five times a second."""
    samples = []
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)  # noqa: S603
    while process.poll() is None:
        try:
            samples.append(sample(psutil.Process(process.pid), output))
        except psutil.Error:  # the command has just ended
            continue
        time.sleep(0.2)
    assert process.returncode == 0
    return samples


def sample(process: psutil.Process, output: Path) -> Sample:
    """Samples the run's processes."""
    workers = [child.memory_info().rss / 2**20 for child in process.children()]
    done = PER_SHARD * len(list(output.glob("features-*.h5"))) if output.exists() else 0
    return Sample(done, process.memory_info().rss / 2**20, max(workers, default=0.0), process.num_fds())


def report(samples: list[Sample], summary: dict, seconds: float) -> None:
    """Prints the measurements."""
    warm = [s for s in samples if s.clips >= WARM]
    quarters = [np.median(part, axis=0) for part in np.array_split(np.array(warm), 4)]
    count = summary["clips"]
    spent = {stage: 1000 * value / count for stage, value in summary["seconds"].items() if stage != "wait"}
    cores = os.cpu_count()
    print(
        f"{count} clips of {FRAMES} frames, tiny model, {cores} cores: {seconds:.1f} s, {count / seconds:.1f} clips/s"
    )
    print(f"medians over the four quarters of the clips after the first {WARM}:")
    for name, column in {"MiB of the command": 1, "MiB of a worker": 2, "open descriptors": 3}.items():
        print(f"  {name:<20}", "  ".join(f"{quarter[column]:.0f}" for quarter in quarters))
    print("milliseconds per clip by stage:", ", ".join(f"{stage} {value:.1f}" for stage, value in spent.items()))
    overhead = 1000 * seconds * cores / count - sum(spent.values())
    print(f"core milliseconds per clip outside the stages, including the start of the command: {overhead:.1f}")


if __name__ == "__main__":
    main()
