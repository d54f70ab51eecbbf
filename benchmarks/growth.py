"""Benchmark of training streamed from one, ten and a hundred times the data: speed and host memory.

python -m benchmarks.growth
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.training import make_config, make_corpus, measure

BATCH_FRAMES, STEPS = 1024, 4  # frames per batch, and batches in the smallest corpus
FACTORS = (1, 10, 100)


def main() -> None:
    """Prints the table, or creates or measures one corpus in a separate process, whose memory counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path, help="folder of the corpus to create or measure")
    parser.add_argument("--make", type=int, help="frames of the corpus to create")
    arguments = parser.parse_args()
    if arguments.make:
        make_corpus(arguments.corpus, arguments.make, "float16")
    elif arguments.corpus:
        print(json.dumps(measure_corpus(arguments.corpus)))
    else:
        compare()


def compare() -> None:
    """Creates and measures each corpus and prints the table."""
    print("| frames | frames/s | change from the first | peak resident memory, MiB |\n|---|---|---|---|")
    first = None
    for factor in FACTORS:
        with tempfile.TemporaryDirectory() as folder:
            in_own_process(f"--make={factor * STEPS * BATCH_FRAMES}", f"--corpus={folder}")
            speed, memory = json.loads(in_own_process(f"--corpus={folder}"))
        first = first or speed
        print(
            f"| {factor * STEPS * BATCH_FRAMES} | {speed:.0f} | {speed / first - 1:+.1%} | {memory:.0f} |", flush=True
        )


def measure_corpus(folder: Path) -> tuple[float, float]:
    """Returns frames per second, without the first steps, and the peak resident memory of this process in MiB."""
    repeats = max(1, 24 // len(list((folder / "npz").iterdir())))
    seconds = [measure(make_config(folder, BATCH_FRAMES, "float32", "stream"))[1] for _ in range(repeats)]
    return BATCH_FRAMES / min(seconds), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def in_own_process(*flags: str) -> str:
    """Runs this program in a separate process and returns what it prints."""
    command = [sys.executable, "-m", "benchmarks.growth", *flags]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout  # noqa: S603


if __name__ == "__main__":
    main()
