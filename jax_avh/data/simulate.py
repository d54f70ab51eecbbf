"""Simulated feature corpora, in the official npz layout: to try every program without anyone's data.

A clip's two modalities follow one slow latent path (speech), each seen through its own fixed random matrix, plus noise.
A fake breaks that bond: in a stretch of the clip the audio follows another path ("local"), or it runs late ("shifted"),
or it belongs to another clip altogether ("swapped"). Fakes also bear the shortcut of the real data sets: their first
audio frames are silence, the same vector in every clip.
"""

import csv
import dataclasses
import os
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import Float

from extract.schema import whole_file

LATENT = 24  # dimensions of the path
MEMORY = 0.8  # of the path, from one frame to the next
SILENT_FRAMES = 2  # at the start of a fake: 80 ms
SHIFT = 6  # frames that a shifted fake's audio runs late
KINDS = ("local", "shifted", "swapped")


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Sizes of a simulated corpus."""

    train: int = 40  # real clips
    val: int = 10  # real clips
    test: int = 40  # half of them fake
    frames: tuple[int, int] = (60, 140)  # shortest and longest clip
    width: int = 1024
    noise: float = 4.0  # standard deviation, against a signal of 1: hard enough that the poolings differ
    silence: bool = True  # whether fakes start with the shortcut
    seed: int = 0


def simulate_corpus(root: str | os.PathLike, corpus: Corpus) -> None:
    """Writes `<split>.csv` (path, label, category, identity) and `<split>/cNNN.npz` (visual, audio) under `root`."""
    for split, count in (("train", corpus.train), ("val", corpus.val), ("test", corpus.test)):
        (Path(root) / split).mkdir(parents=True, exist_ok=True)
        rows = [("path", "label", "category", "identity")]
        for index in range(count):
            fake = split == "test" and index % 2
            kind = KINDS[index // 2 % len(KINDS)] if fake else "real"
            name = f"{split}/c{index:03d}"
            visual, audio = simulate_clip(name, kind, corpus)
            np.savez(Path(root) / f"{name}.npz", visual=visual, audio=audio)
            rows.append((f"{name}.mp4", int(fake), kind, f"id{index:05d}"))
        with whole_file(Path(root) / f"{split}.csv") as temporary, temporary.open("w", newline="") as file:
            csv.writer(file).writerows(rows)


def simulate_clip(name: str, kind: str, corpus: Corpus) -> tuple[Float[np.ndarray, "T D"], Float[np.ndarray, "T D"]]:
    """Visual and audio features of one clip; the same for the same name, kind and corpus."""
    rng = np.random.default_rng((corpus.seed, zlib.crc32(name.encode())))
    frames = int(rng.integers(*corpus.frames, endpoint=True))
    path = _path(frames + SHIFT, rng)
    seen, heard = path[SHIFT:], path[SHIFT:].copy()
    if kind == "local":
        start, stop = frames // 4, frames // 4 + frames // 3
        heard[start:stop] = _path(stop - start, rng)
    elif kind == "shifted":
        heard = path[:-SHIFT]
    elif kind == "swapped":
        heard = _path(frames, rng)
    visual, audio = (_observed(latent, modality, corpus, rng) for modality, latent in enumerate((seen, heard)))
    if corpus.silence and kind != "real":
        audio[:SILENT_FRAMES] = np.random.default_rng((corpus.seed, 2)).standard_normal(corpus.width)
    return visual, audio


def _path(frames: int, rng: np.random.Generator) -> Float[np.ndarray, "T K"]:
    """A stationary first-order autoregressive path of variance 1."""
    steps = rng.standard_normal((frames, LATENT))
    path = steps.copy()
    for t in range(1, frames):
        path[t] = MEMORY * path[t - 1] + np.sqrt(1 - MEMORY**2) * steps[t]
    return path


def _observed(
    latent: Float[np.ndarray, "T K"], modality: int, corpus: Corpus, rng: np.random.Generator
) -> Float[np.ndarray, "T D"]:
    """Features of a path: mixed by the modality's own matrix, noised, each frame of mean 0 and variance 1."""
    fixed = np.random.default_rng((corpus.seed, modality))
    mixing = fixed.standard_normal((LATENT, corpus.width)) / np.sqrt(LATENT)
    features = latent @ mixing + corpus.noise * rng.standard_normal((len(latent), corpus.width))
    return (_standardised(features)).astype(np.float32)


def _standardised(features: Float[np.ndarray, "T D"]) -> Float[np.ndarray, "T D"]:
    return (features - features.mean(axis=1, keepdims=True)) / features.std(axis=1, keepdims=True)
