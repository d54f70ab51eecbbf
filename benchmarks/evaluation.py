"""Benchmark of scoring and evaluating a test set, against straightforward PyTorch in the same run.

python -m benchmarks.evaluation
"""

import argparse
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
from jax_avh.scores import open_scores

WIDTH = 1024
CLIPS_PER_SHARD = 500
LONG = 50_000  # frames of the sequence from which every clip is cut


def main() -> None:
    """Parses the flags and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=10_000)
    parser.add_argument("--frames", type=int, default=220, help="frames per clip")
    parser.add_argument("--straightforward_clips", type=int, default=500, help="clips scored by the baseline")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
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
