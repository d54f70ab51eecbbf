"""Training streamed from one, ten and a hundred times the data: frames a second, and memory of the host.

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

BATCH_FRAMES, STEPS = 1024, 4  # of the smallest corpus
FACTORS = (1, 10, 100)


def main() -> None:
    """Prints the table; or, in a process of its own whose memory counts, makes or measures one corpus."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path, help="folder of the corpus to make or to measure")
    parser.add_argument("--make", type=int, help="its frames")
    arguments = parser.parse_args()
    if arguments.make:
        make_corpus(arguments.corpus, arguments.make, "float16")
    elif arguments.corpus:
        print(json.dumps(measure_corpus(arguments.corpus)))
    else:
        compare()


def compare() -> None:
    """Prints the table."""
    print("| frames | frames/s | against the first | most resident memory, MiB |\n|---|---|---|---|")
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
    """Frames a second without the first step, and the most resident memory of this process, MiB."""
    repeats = max(1, 24 // len(list((folder / "npz").iterdir())))
    seconds = [measure(make_config(folder, BATCH_FRAMES, "float32", "stream"))[1] for _ in range(repeats)]
    return BATCH_FRAMES / min(seconds), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def in_own_process(*flags: str) -> str:
    """What this program prints with some flags."""
    command = [sys.executable, "-m", "benchmarks.growth", *flags]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout  # noqa: S603


if __name__ == "__main__":
    main()
