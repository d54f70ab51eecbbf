"""Benchmark of scoring and evaluating a test set, against straightforward PyTorch in the same run.

python -m benchmarks.evaluation
python -m benchmarks.evaluation --scored_clips=1000000    # only the evaluation, of simulated scores of four methods
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import jax
import numpy as np
import safetensors.torch
import torch
from flax import nnx

from avh_shards import ClipMeta
from avh_shards.clip import FRAME_RATE, offsets, write_clip_table
from avh_shards.format import SHARD_FORMAT, SHARD_VERSION, shard_name
from benchmarks.straightforward_training import Network, unit
from jax_avh.evaluation.metrics import bootstrap_intervals
from jax_avh.inference import score_shards
from jax_avh.models.alignment import AlignmentNetwork
from jax_avh.models.weights import save_weights
from jax_avh.report.results import write_results
from jax_avh.scores import POOLINGS, ScoreTable, open_scores, write_scores

WIDTH = 1024
CLIPS_PER_SHARD = 500
SIMULATED_METHODS = ("avh_align", "avh_sup", "factor", "avad_sliding")
SIMULATED_CATEGORIES = ("real", "fake_audio", "fake_visual", "fake_both")
LONG = 50_000  # frames of the sequence from which every clip is cut


def main() -> None:
    """Parses the flags and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=10_000)
    parser.add_argument("--frames", type=int, default=220, help="frames per clip")
    parser.add_argument("--straightforward_clips", type=int, default=500, help="clips scored by the baseline")
    parser.add_argument("--scored_clips", type=int, help="only evaluate simulated scores of that many clips")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.scored_clips:
            evaluate_simulated(Path(folder), arguments.scored_clips, arguments.frames)
            return
        compare(Path(folder), arguments.clips, arguments.frames, arguments.straightforward_clips)


def compare(folder: Path, clips: int, frames: int, few: int) -> None:
    """Creates a corpus and prints the measurements on it."""
    make_corpus(folder, clips, frames, few)
    save_weights(AlignmentNetwork(WIDTH, rngs=nnx.Rngs(0)), folder / "w.safetensors")
    started = time.perf_counter()
    theirs = list(straightforward(folder))
    seconds = time.perf_counter() - started
    print(f"{clips} clips of {frames} frames, width {WIDTH}; {jax.devices()[0].device_kind}")
    print("| | seconds | frames/s | ratio |\n|---|---|---|---|")
    slow = few * frames / seconds
    print(f"| straightforward scoring, {few} clips | {seconds:.1f} | {slow:.0f} | 1.0 |")
    started = time.perf_counter()
    table = score_shards(folder / "shards", folder / "s.h5", weights=folder / "w.safetensors")
    scored = time.perf_counter() - started
    speed = clips * frames / scored
    print(f"| our scoring | {scored:.1f} | {speed:.0f} | {speed / slow:.1f} |")
    started = time.perf_counter()
    write_results([folder / "s.h5"], folder / "results")
    evaluated = time.perf_counter() - started
    print(f"| our evaluation, report included | {evaluated:.1f} | | |")
    print(f"| both | {scored + evaluated:.1f} | {clips * frames / (scored + evaluated):.0f} | |")
    again = open_scores(folder / "s.h5")
    label = np.array([clip.label for clip in again.clips])
    started = time.perf_counter()
    bootstrap_intervals(label, again.clip)
    print(f"| 1,000 resamples of the clips | {time.perf_counter() - started:.2f} | | |")
    print(f"\nlargest difference of clip scores: {np.abs(np.array(theirs) - table.clip[:few]).max():.1e}")


def evaluate_simulated(folder: Path, clips: int, frames: int) -> None:
    """Runs the command on simulated score files of four methods and prints the seconds and memory that it takes."""
    files = [make_scores(folder / f"{method}.h5", method, clips, frames) for method in SIMULATED_METHODS]
    command = [sys.executable, "-m", "launch.evaluate", f"--scores={','.join(map(str, files))}"]
    started = time.perf_counter()
    subprocess.run([*command, f"--output={folder / 'results'}"], check=True)  # noqa: S603
    seconds = time.perf_counter() - started
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    cores = used.ru_utime + used.ru_stime
    print(f"\n{len(files)} methods, {clips} clips of about {frames} frames:")
    print(f"{seconds:.0f} s, {cores:.0f} s of processor time, {used.ru_maxrss / 2**20:.1f} GiB at most")
    for file in sorted((folder / "results").iterdir()):
        print(f"{file.name}: {file.stat().st_size / 1e6:.1f} MB")


def make_scores(path: Path, method: str, clips: int, frames: int) -> Path:
    """Writes scores as of AV-Deepfake1M: a quarter of the clips is real; frames of fake segments score higher."""
    rng = np.random.default_rng(0)
    kind = np.arange(clips) % len(SIMULATED_CATEGORIES)
    lengths = rng.integers(frames // 2, frames * 3 // 2, clips)
    offset = offsets(lengths)
    first = rng.integers(0, lengths - 8)
    score = np.random.default_rng(len(method)).standard_normal(int(offset[-1]), np.float32)
    fake = np.flatnonzero(kind)
    score[(offset[fake] + first[fake])[:, None] + np.arange(8)] += 2
    metas = []
    for n, (category, start) in enumerate(zip(kind.tolist(), (first / FRAME_RATE).tolist(), strict=True)):
        segments = ((start, start + 8 / FRAME_RATE),) if category else ()
        name = SIMULATED_CATEGORIES[category]
        metas.append(ClipMeta(f"test/{n:07d}.mp4", int(category > 0), name, segments=segments))
    clip = np.asarray(POOLINGS["logsumexp"](score, offset))
    attributes: dict[str, object] = {"dataset": "simulated scores", "pooling": "logsumexp"}
    write_scores(ScoreTable(method, tuple(metas), offset, score, clip, attributes), path)
    return path


def make_corpus(folder: Path, clips: int, frames: int, few: int) -> None:
    """Writes float16 shards of all clips, and float32 npz files of the first `few`.

    The audio of a fake comes from another position than its video.
    """
    rng = np.random.default_rng(0)
    long = rng.standard_normal((2, LONG, WIDTH), np.float32).astype(np.float16)
    (folder / "shards").mkdir()
    (folder / "npz").mkdir()
    for shard, first in enumerate(range(0, clips, CLIPS_PER_SHARD)):
        numbers = range(first, min(first + CLIPS_PER_SHARD, clips))
        starts = rng.integers(0, LONG - frames, (2, len(numbers)))
        starts[1, ::2] = starts[0, ::2]
        metas = [ClipMeta(f"c{n:05d}.mp4", n % 2) for n in numbers]
        with h5py.File(folder / "shards" / shard_name(shard), "w") as file:
            attributes = {"format": SHARD_FORMAT, "version": SHARD_VERSION, "frame_rate": FRAME_RATE, "width": WIDTH}
            file.attrs.update(attributes | {"encoder": "rule", "weights_sha256": "unknown", "trimmed": False})
            write_clip_table(file, metas, offsets([frames] * len(numbers)))
            for source, name, begins in zip(long, ("visual", "audio"), starts, strict=True):
                data = file.create_dataset(name, (len(numbers) * frames, WIDTH), np.float16)
                for place, start in enumerate(begins):
                    data[place * frames : (place + 1) * frames] = source[start : start + frames]
        for n, (v, a) in zip(numbers, starts.T, strict=True):
            if n < few:
                clip = {"visual": long[0, v : v + frames], "audio": long[1, a : a + frames]}
                arrays: dict[str, Any] = {name: values.astype(np.float32) for name, values in clip.items()}
                np.savez(folder / "npz" / f"c{n:05d}.npz", **arrays)


@torch.no_grad()
def straightforward(folder: Path) -> Iterator[float]:
    """Yields clip scores, computed file by file, with all frames of a clip in one batch."""
    network = Network(WIDTH)
    network.load_state_dict(safetensors.torch.load_file(folder / "w.safetensors"))
    for file in sorted((folder / "npz").iterdir()):
        with np.load(file, allow_pickle=False) as clip:
            visual, audio = (torch.from_numpy(unit(clip[name])) for name in ("visual", "audio"))
        scores = network.mlp(torch.cat([network.visual_proj(visual), network.audio_proj(audio)], dim=-1))
        yield float(torch.logsumexp(-scores[:, 0], dim=0))


if __name__ == "__main__":
    main()
