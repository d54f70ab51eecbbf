"""Simulated clips: features, sound and mouth crops made by rule, to try every program without anyone's data.

A clip's two modalities follow one slow latent path (speech), each seen through its own fixed random matrix, plus noise;
the matrices have a half in common, as encoders trained on both modalities bring them near each other.
A fake breaks that bond: in a stretch of the clip the audio follows another path ("local"), or it runs late ("shifted"),
or it belongs to another clip altogether ("swapped").

One coordinate of the path opens the mouth in the crops, as it is seen, and makes the sound loud, as it is heard
(apps/simulate/media.py). Heard by itself, a fake's loudness is like a real clip's, without a jump where a
stretch starts or ends.

Fakes also bear the shortcut of the real data sets: their sound starts with a short digital silence, by default of
27 ms on average, that of real clips with 1 ms. Its features are those of silence (one vector) and of speech, in the
proportion of their lengths in each frame of 40 ms. Nothing else tells the classes apart, save jumps in a local fake's
audio features at its stretch's ends, deep in their noise; and no method's result is built in.
"""

import csv
import dataclasses
import os
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int16, UInt8

from apps.simulate.media import draw_crops, draw_sound, opening
from avh_shards.clip import FRAME_RATE, SAMPLE_RATE
from avh_shards.format import SIMULATED
from avh_shards.paths import atomic_write

LATENT = 24  # dimensions of the path
SHARED = 0.5  # correlation of the two modalities' matrices
PATH_MEMORY = 0.8  # of the path, from one frame to the next
SHIFT = 6  # frames that a shifted fake's audio runs late
FAKE_KINDS = ("local", "shifted", "swapped")
SILENCE_SPREAD = 0.003  # seconds, standard deviation of the silence before a fake's sound
SILENCE_OF_REAL = 0.001  # seconds, mean of an exponential distribution


@dataclasses.dataclass(frozen=True)
class Corpus:
    """What a simulated corpus is like."""

    train: int = 40  # clips, all real unless `fakes`
    val: int = 10
    test: int = 40  # half of them fake
    fakes: bool = False  # half of the training and validation clips fake, too
    kinds: tuple[str, ...] = FAKE_KINDS
    stretch: float = 1 / 3  # of a clip, in which the audio of a local fake follows another path
    frames: tuple[int, int] = (60, 140)  # shortest and longest clip
    width: int = 1024
    noise: float = 4.0  # standard deviation, against a signal of 1: hard enough that the poolings differ
    silence: float = 0.027  # seconds before a fake's sound, on average; 0 = no clip starts with silence
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class SimulatedClip:
    """A clip as it would come out of the extraction, untrimmed."""

    visual: Float[np.ndarray, "T D"]
    audio: Float[np.ndarray, "T D"]
    waveform: Int16[np.ndarray, " S"]  # at 16 kHz, 640 samples a frame
    crops: UInt8[np.ndarray, "T 96 96"]  # grey
    segments: tuple[tuple[float, float], ...]  # fake stretches, in seconds


def clip_names(split: str, count: int, corpus: Corpus) -> list[tuple[str, str]]:
    """(name, kind) of a split's clips: every other one a fake, of the kinds in turn."""
    fakes = corpus.fakes or split == "test"
    kinds = (corpus.kinds[index // 2 % len(corpus.kinds)] if fakes and index % 2 else "real" for index in range(count))
    return [(f"{split}/c{index:03d}", kind) for index, kind in enumerate(kinds)]


def simulate_corpus(root: str | os.PathLike, corpus: Corpus) -> None:
    """Writes `<split>.csv` (path, label, category, identity) and `<split>/cNNN.npz` under `root`.

    The features (visual, audio) carry a mark, `simulated`, which follows them into shards and all that is made of them.
    """
    for split, count in (("train", corpus.train), ("val", corpus.val), ("test", corpus.test)):
        (Path(root) / split).mkdir(parents=True, exist_ok=True)
        rows = [("path", "label", "category", "identity")]
        for index, (name, kind) in enumerate(clip_names(split, count, corpus)):
            clip = simulate_clip(name, kind, corpus)
            with atomic_write(Path(root) / f"{name}.npz") as temporary, temporary.open("wb") as file:
                np.savez(file, visual=clip.visual, audio=clip.audio, **{SIMULATED: True})
            rows.append((f"{name}.mp4", str(int(kind != "real")), kind, f"{split}-{index:03d}"))
        with atomic_write(Path(root) / f"{split}.csv") as temporary, temporary.open("w", newline="") as file:
            csv.writer(file).writerows(rows)


def simulate_clip(name: str, kind: str, corpus: Corpus) -> SimulatedClip:
    """A clip; the same for the same name, kind and corpus."""
    key = (corpus.seed, zlib.crc32(name.encode()))
    rng = np.random.default_rng(key)
    media_rng = np.random.default_rng((*key, 1))
    frames = int(rng.integers(*corpus.frames, endpoint=True))
    path = _path(frames + SHIFT, rng)
    seen = path[SHIFT:]
    heard = path[SHIFT:].copy()
    start, stop = (0, frames) if kind in ("shifted", "swapped") else (frames // 4, 0)
    if kind == "local":
        stop = start + max(round(corpus.stretch * frames), 1)
        heard[start:stop] = _path(stop - start, rng)
    elif kind == "shifted":
        heard = path[:-SHIFT]
    elif kind == "swapped":
        heard = _path(frames, rng)
    visual, audio = (_observed(latent, modality, corpus, rng) for modality, latent in enumerate((seen, heard)))
    silence = _silence(kind != "real", corpus, rng) if corpus.silence else 0.0
    segments = () if kind == "real" else ((start / FRAME_RATE, stop / FRAME_RATE),)
    return SimulatedClip(
        visual=_standardised(visual),
        audio=_standardised(_with_silence(audio, silence, corpus)),
        waveform=draw_sound(opening(_without_jumps(heard, seen, start, stop)), silence, media_rng),
        crops=draw_crops(opening(seen), media_rng),
        segments=segments,
    )


def _silence(fake: bool, corpus: Corpus, rng: np.random.Generator) -> float:
    """Seconds of a clip's leading silence, a whole number of samples."""
    seconds = rng.normal(corpus.silence, SILENCE_SPREAD) if fake else rng.exponential(SILENCE_OF_REAL)
    return round(max(seconds, 0.0) * SAMPLE_RATE) / SAMPLE_RATE


def _with_silence(audio: Float[np.ndarray, "T D"], seconds: float, corpus: Corpus) -> Float[np.ndarray, "T D"]:
    """Features whose first frames are, in part, silence's."""
    share = np.clip(seconds * FRAME_RATE - np.arange(len(audio)), 0, 1)[:, None]
    silence = np.random.default_rng((corpus.seed, 2)).standard_normal(corpus.width) * audio.std()
    return (1 - share) * audio + share * silence


def _path(frames: int, rng: np.random.Generator) -> Float[np.ndarray, "T K"]:
    """A stationary first-order autoregressive path of variance 1."""
    return _walk(rng.standard_normal((frames, LATENT)))


def _walk(steps: Float[np.ndarray, "T K"]) -> Float[np.ndarray, "T K"]:
    """The path of such steps."""
    path = steps.copy()
    for t in range(1, len(steps)):
        path[t] = PATH_MEMORY * path[t - 1] + np.sqrt(1 - PATH_MEMORY**2) * steps[t]
    return path


def _steps(path: Float[np.ndarray, "T K"]) -> Float[np.ndarray, "T K"]:
    """The steps of a path."""
    steps = path.copy()
    steps[1:] = (path[1:] - PATH_MEMORY * path[:-1]) / np.sqrt(1 - PATH_MEMORY**2)
    return steps


def _without_jumps(
    heard: Float[np.ndarray, "T K"], seen: Float[np.ndarray, "T K"], start: int, stop: int
) -> Float[np.ndarray, "T K"]:
    """A path of the heard one's steps in the stretch start:stop and the seen one's elsewhere.

    All of them independent of each other, so that it is distributed like any path. It glides into the heard path and,
    after the stretch, back into the seen one.
    """
    steps = _steps(seen)
    steps[start:stop] = _steps(heard[start:stop])
    return _walk(steps)


def _observed(
    latent: Float[np.ndarray, "T K"], modality: int, corpus: Corpus, rng: np.random.Generator
) -> Float[np.ndarray, "T D"]:
    """A path mixed by the modality's own matrix, and noised."""
    common, own = (
        np.random.default_rng((corpus.seed, n)).standard_normal((LATENT, corpus.width)) for n in (3, modality)
    )
    mixing = (np.sqrt(SHARED) * common + np.sqrt(1 - SHARED) * own) / np.sqrt(LATENT)
    return latent @ mixing + corpus.noise * rng.standard_normal((len(latent), corpus.width))


def _standardised(features: Float[np.ndarray, "T D"]) -> Float[np.ndarray, "T D"]:
    """Each frame of mean 0 and variance 1."""
    features = (features - features.mean(axis=1, keepdims=True)) / features.std(axis=1, keepdims=True)
    return features.astype(np.float32)
