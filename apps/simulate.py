"""Simulated clips: features, sound and mouth crops made by rule, to try every program without real data.

Both modalities of a clip follow one slow latent path (speech), each observed through its own fixed random matrix, plus
noise. The two matrices have a correlation of one half, since encoders trained on both modalities map them close to each
other. A fake breaks this correspondence: its audio follows a different path in one segment ("local"), is late
("shifted"), or belongs to a different clip ("swapped").

One coordinate of the path opens the mouth in the crops and makes the sound loud. On its own, the loudness of a fake is
like a real clip's, without a jump at the borders of a segment.

Fakes also have the shortcut of the real data sets: their sound starts with a short digital silence, by default of
27 ms on average, against 1 ms in real clips. In each frame of 40 ms, the audio features mix a vector for silence with
speech in proportion to their durations. The only other difference between the classes is a jump in a local fake's audio
features at the borders of its segment, far below the noise. No method's result is built in.

A corpus is written as npz files, or as feature shards in the layout that launch.paper expects, which reproduces the
paper's story in minutes. The shards represent AV-Deepfake1M and FakeAVCeleb: every other clip is a fake whose sound
starts with a short silence and departs from the picture for one segment. The second data set has longer segments and
less noise. Only what the run reads is written: trimmed shards only for the test sets, crops only for the test sets and
for training on the first data set.
"""

import csv
import dataclasses
import os
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32, Int16, UInt8

from avh_shards import ClipMeta, UserError, leading_silence
from avh_shards.clip import FRAME_RATE, FULL_SCALE, SAMPLE_RATE, SAMPLES_PER_FRAME
from avh_shards.clip_list import shift_segments
from avh_shards.format import RAGGED, SIMULATED, Variant
from avh_shards.paths import FilePath, as_path, atomic_write, locked
from avh_shards.silence import first_sound, frames_of_silence
from extract.store.shard import ClipFeatures, ShardWriter, StoredClip

LATENT = 24  # dimensions of the path
SHARED = 0.5  # correlation of the two modalities' matrices
PATH_MEMORY = 0.8  # correlation of the path between consecutive frames
SHIFT = 6  # frames by which a shifted fake's audio is late
FAKE_KINDS = ("local", "shifted", "swapped")
SILENCE_SPREAD = 0.003  # seconds, standard deviation of the silence before a fake's sound
SILENCE_OF_REAL = 0.001  # seconds, mean of an exponential distribution

STEEPNESS = 1.5  # slope of the sigmoid from the latent path to the mouth's opening
LOUDNESS = 0.1  # root mean square of the sound of an open mouth; full scale = 1
QUIET = 0.35  # loudness of a shut mouth relative to an open one; never 0, so only leading silence has exact zeros
BREATH = 0.2  # share of noise in the sound's power
PITCH = (90.0, 220.0)  # Hz, lowest and highest mean of a clip
WANDER, WANDER_RATE = 0.1, 0.5  # relative deviation of the pitch from this mean, and its frequency in Hz
OVERTONE = 0.7  # amplitude of a harmonic relative to the one below

CROP = RAGGED["crops"][1][0]  # pixels, side of a crop
SKIN = (120.0, 200.0)  # grey level of the skin, darkest and lightest clip
SHADE = 0.3  # relative darkening of the skin at the crop's corners
HALF_WIDTH = (18.0, 24.0)  # pixels, half the mouth's width, narrowest and widest clip
SHUT, OPEN = 1.0, 14.0  # pixels, half the mouth's height
LIP, LIP_TONE = 5.0, 0.75  # thickness of the lips in pixels; their grey level relative to the skin's
CAVITY = 25.0  # grey level of the mouth's inside
GRAIN = 6  # grey levels, maximum deviation by sensor noise


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Parameters of a simulated corpus."""

    train: int = 40  # clips, all real unless `fakes`
    val: int = 10  # clips, all real unless `fakes`
    test: int = 40  # clips, half of them fake
    fakes: bool = False  # whether half of the training and validation clips are fake, too
    kinds: tuple[str, ...] = FAKE_KINDS
    stretch: float = 1 / 3  # share of a clip in which the audio of a local fake follows a different path
    frames: tuple[int, int] = (60, 140)  # shortest and longest clip
    width: int = 1024  # feature width
    noise: float = 4.0  # standard deviation, for a signal of 1: hard enough for the poolings to differ
    silence: float = 0.027  # seconds before a fake's sound, on average; 0 = no clip starts with silence
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class SimulatedClip:
    """A clip as extraction would return it, untrimmed."""

    visual: Float[np.ndarray, "T D"]
    audio: Float[np.ndarray, "T D"]
    waveform: Int16[np.ndarray, " S"]  # at 16 kHz, 640 samples per frame
    crops: UInt8[np.ndarray, "T 96 96"]  # grey
    segments: tuple[tuple[float, float], ...]  # fake segments, in seconds


# --- features --------------------------------------------------------------------------------------------------------


def simulate_clip(name: str, kind: str, corpus: Corpus) -> SimulatedClip:
    """Simulates a clip, reproducibly for the same name, kind and corpus.

    Args:
      name: name of the clip, which seeds its random numbers.
      kind: "real" or one of FAKE_KINDS.
      corpus: parameters of the corpus.
    """
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
    """Draws the duration of a clip's leading silence in seconds, a whole number of samples."""
    seconds = rng.normal(corpus.silence, SILENCE_SPREAD) if fake else rng.exponential(SILENCE_OF_REAL)
    return round(max(seconds, 0.0) * SAMPLE_RATE) / SAMPLE_RATE


def _with_silence(audio: Float[np.ndarray, "T D"], seconds: float, corpus: Corpus) -> Float[np.ndarray, "T D"]:
    """Mixes silence into the features of the first frames, in proportion to its duration."""
    share = np.clip(seconds * FRAME_RATE - np.arange(len(audio)), 0, 1)[:, None]
    silence = np.random.default_rng((corpus.seed, 2)).standard_normal(corpus.width) * audio.std()
    return (1 - share) * audio + share * silence


def _path(frames: int, rng: np.random.Generator) -> Float[np.ndarray, "T K"]:
    """Draws a stationary first-order autoregressive path of variance 1."""
    return _walk(rng.standard_normal((frames, LATENT)))


def _walk(steps: Float[np.ndarray, "T K"]) -> Float[np.ndarray, "T K"]:
    """Returns the path with the given steps."""
    path = steps.copy()
    for t in range(1, len(steps)):
        path[t] = PATH_MEMORY * path[t - 1] + np.sqrt(1 - PATH_MEMORY**2) * steps[t]
    return path


def _steps(path: Float[np.ndarray, "T K"]) -> Float[np.ndarray, "T K"]:
    """Returns the steps of a path, the inverse of `_walk`."""
    steps = path.copy()
    steps[1:] = (path[1:] - PATH_MEMORY * path[:-1]) / np.sqrt(1 - PATH_MEMORY**2)
    return steps


def _without_jumps(
    heard: Float[np.ndarray, "T K"], seen: Float[np.ndarray, "T K"], start: int, stop: int
) -> Float[np.ndarray, "T K"]:
    """Returns the path with the steps of `heard` in start:stop and the steps of `seen` elsewhere.

    All these steps are independent, so the result is distributed like any path. It glides into the heard path and,
    after the segment, back into the seen one.
    """
    steps = _steps(seen)
    steps[start:stop] = _steps(heard[start:stop])
    return _walk(steps)


def _observed(
    latent: Float[np.ndarray, "T K"], modality: int, corpus: Corpus, rng: np.random.Generator
) -> Float[np.ndarray, "T D"]:
    """Returns noisy observations of a path through the modality's own matrix."""
    common, own = (
        np.random.default_rng((corpus.seed, n)).standard_normal((LATENT, corpus.width)) for n in (3, modality)
    )
    mixing = (np.sqrt(SHARED) * common + np.sqrt(1 - SHARED) * own) / np.sqrt(LATENT)
    return latent @ mixing + corpus.noise * rng.standard_normal((len(latent), corpus.width))


def _standardised(features: Float[np.ndarray, "T D"]) -> Float[np.ndarray, "T D"]:
    """Scales each frame to mean 0 and variance 1."""
    features = (features - features.mean(axis=1, keepdims=True)) / features.std(axis=1, keepdims=True)
    return features.astype(np.float32)


# --- sound and mouth crops, from how far the mouth is open in each frame ---------------------------------------------


def opening(path: Float[np.ndarray, "T K"]) -> Float[np.ndarray, " T"]:
    """Returns how far the mouth is open, from 0 to 1: a smooth function of the path's first coordinate."""
    return 1 / (1 + np.exp(-STEEPNESS * path[:, 0]))


def draw_sound(opened: Float[np.ndarray, " T"], silence: float, rng: np.random.Generator) -> Int16[np.ndarray, " S"]:
    """Draws sound at 16 kHz, 640 samples per frame, whose loudness follows the mouth's opening.

    The sound is a pulse train, whose pitch wanders about the clip's mean, plus noise.

    Args:
      opened: how far the mouth is open in each frame, from 0 to 1.
      silence: seconds of exact zeros at the start.
      rng: source of the random numbers.
    """
    seconds = np.arange(len(opened) * SAMPLES_PER_FRAME) / SAMPLE_RATE
    # The opening of a frame refers to the middle of the frame.
    loudness = np.interp(seconds * FRAME_RATE - 0.5, np.arange(len(opened)), QUIET + (1 - QUIET) * opened)
    noise = rng.standard_normal(len(seconds), np.float32)
    source = np.sqrt(1 - BREATH) * _pulses(_pitch(seconds, rng)) + np.sqrt(BREATH) * noise
    sound = (LOUDNESS * FULL_SCALE * loudness * source).clip(-FULL_SCALE, FULL_SCALE - 1)
    sound[: round(silence * SAMPLE_RATE)] = 0
    return sound.astype(np.int16)


def draw_crops(opened: Float[np.ndarray, " T"], rng: np.random.Generator) -> UInt8[np.ndarray, "T 96 96"]:
    """Draws grey crops at 25 Hz: shaded skin, lips around a dark mouth as open as `opened`, and sensor noise."""
    skin = rng.uniform(*SKIN)
    half_width = rng.uniform(*HALF_WIDTH)
    x = np.arange(CROP, dtype=np.float32) - (CROP - 1) / 2
    shade = skin * (1 - SHADE * (x**2 + x[:, None] ** 2) / (2 * x[0] ** 2))
    half_height = SHUT + (OPEN - SHUT) * opened
    lips = _ellipses(x, half_width + LIP, half_height + LIP)
    inside = _ellipses(x, half_width, half_height)
    picture = shade * (1 - (1 - LIP_TONE) * lips)
    picture += inside * (CAVITY - picture)
    picture += rng.integers(-GRAIN, GRAIN, picture.shape, np.int8, endpoint=True)
    return picture.astype(np.uint8)


def _pitch(seconds: Float[np.ndarray, " S"], rng: np.random.Generator) -> Float[np.ndarray, " S"]:
    """Draws a clip's pitch in Hz at each sample."""
    mean = rng.uniform(*PITCH)
    start = rng.uniform(0, 2 * np.pi)
    return mean * (1 + WANDER * np.sin(2 * np.pi * WANDER_RATE * seconds + start))


def _pulses(pitch: Float[np.ndarray, " S"]) -> Float[np.ndarray, " S"]:
    """Returns a harmonic sound of variance 1: the sum over k of OVERTONE**k sin(k phase), in closed form."""
    phase = 2 * np.pi * np.cumsum(pitch) / SAMPLE_RATE
    variance = OVERTONE**2 / (1 - OVERTONE**2) / 2
    return OVERTONE * np.sin(phase) / (1 - 2 * OVERTONE * np.cos(phase) + OVERTONE**2) / np.sqrt(variance)


def _ellipses(
    x: Float32[np.ndarray, " P"], half_width: float, half_height: Float[np.ndarray, " T"]
) -> Float32[np.ndarray, "T P P"]:
    """Returns the share of each pixel inside a centred ellipse, for one ellipse per frame."""
    height = half_height.astype(np.float32)[:, None, None]
    distance = (x / np.float32(half_width)) ** 2 + (x[:, None] / height) ** 2
    # The product approximates the distance in pixels near the upper and lower rim: as in a camera, edges move by
    # fractions of a pixel.
    return ((1 - distance) * (height / 2) + np.float32(0.5)).clip(0, 1)


# --- a corpus as npz files -------------------------------------------------------------------------------------------


def clip_names(split: str, count: int, corpus: Corpus) -> list[tuple[str, str]]:
    """Returns (name, kind) of a split's clips; if it has fakes, every other clip is one, of each kind in turn."""
    fakes = corpus.fakes or split == "test"
    kinds = (corpus.kinds[index // 2 % len(corpus.kinds)] if fakes and index % 2 else "real" for index in range(count))
    return [(f"{split}/c{index:03d}", kind) for index, kind in enumerate(kinds)]


def simulate_corpus(root: str | os.PathLike, corpus: Corpus) -> None:
    """Writes `<split>.csv` (path, label, category, identity) and `<split>/cNNN.npz` under `root`.

    The features (visual, audio) are marked as `simulated`, and shards and results derived from them keep this mark.

    Args:
      root: the folder.
      corpus: parameters of the corpus.
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


# --- two corpora as shards -------------------------------------------------------------------------------------------

# Seconds of silence before a fake's sound. The 30 ms of the real data sets would be too short for RawNet2, whose
# filters are first centred 32 ms into the clip: to detect so little, it needs many more clips than are simulated.
LEADING_SILENCE = 0.06
# Clips of two to four seconds: in longer ones, the first second, which MDS can classify, has less weight in the score.
BOTH = Corpus(fakes=True, kinds=("local",), frames=(50, 100), width=256, silence=LEADING_SILENCE)
CORPORA = {
    "av_deepfake1m": dataclasses.replace(BOTH, train=240, val=60, test=160, stretch=0.25, noise=3.2),
    "fakeavceleb": dataclasses.replace(BOTH, train=200, val=40, test=120, stretch=0.5, noise=2.8),
}
# Flags of launch.paper that suit a corpus this small and little time. MDS (80 million parameters) is a sixteenth as
# wide and sees small pictures: as released, it would take hours.
FLAGS = """\
--config.data.batch_frames=256
--avh_align.optimizer.learning_rate=1e-3
--avh_align.train.epochs=6
--avh_align.train.early_stop=2
--avh_sup.optimizer.learning_rate=3e-4
--avh_sup.train.epochs=24
--avh_sup.train.early_stop=24
--avh_sup-linear.optimizer.learning_rate=1e-2
--avh_sup-linear.train.epochs=30
--rawnet2.method.samples=8000
--rawnet2.data.batch_examples=8
--rawnet2.train.epochs=3
--mds.method.image=32
--mds.method.width_multiplier=0.0625
--mds.optimizer.learning_rate=0.015
--mds.optimizer.schedule=cosine
--mds.optimizer.warmup_epochs=2
--mds.train.epochs=32
--mds.train.early_stop=8
--avad.train.epochs=20
"""
FLAG_FILE = "paper.flags"
TRAINED_WITH_CROPS = "av_deepfake1m"  # data set whose training crops are written
CLIPS_PER_SHARD = 64


def simulate(root: str | os.PathLike) -> None:
    """Writes ROOT/<data set>/<untrimmed, trimmed>/<train, val, test>/features-*.h5, and a file of training flags.

    Trimmed shards are written only for `test`. All shards hold waveforms; of the training and validation shards, only
    av_deepfake1m's hold crops.

    Args:
      root: the folder ROOT, which must be empty or missing.

    Raises:
      UserError: ROOT is not empty, or another run is writing to it.
    """
    output = as_path(root)
    lock = output / ".lock"
    with locked(output, lock):
        if any(path != lock for path in output.iterdir()):
            raise UserError(f"--output={output}: is not an empty folder; name a new one")
        for dataset, corpus in CORPORA.items():
            for split, count in (("train", corpus.train), ("val", corpus.val), ("test", corpus.test)):
                _simulate_split(output, dataset, split, clip_names(f"{dataset}/{split}", count, corpus))
        with atomic_write(output / FLAG_FILE) as temporary:
            temporary.write_text(FLAGS)


def _simulate_split(root: FilePath, dataset: str, split: str, names: list[tuple[str, str]]) -> None:
    """Writes a split in all variants that launch.paper reads."""
    variants = list(Variant) if split == "test" else [Variant.UNTRIMMED]
    store = ("waveform", "crops") if split == "test" or dataset == TRAINED_WITH_CROPS else ("waveform",)
    for shard, start in enumerate(range(0, len(names), CLIPS_PER_SHARD)):
        clips = [_stored(name, kind, CORPORA[dataset]) for name, kind in names[start : start + CLIPS_PER_SHARD]]
        for variant in variants:
            trimmed = variant is Variant.TRIMMED
            _write(root / dataset / variant.value / split, shard, trimmed, [clip[trimmed] for clip in clips], store)


def _stored(name: str, kind: str, corpus: Corpus) -> tuple[StoredClip, StoredClip]:
    """Simulates a clip and returns it untrimmed and trimmed, as extraction would store it."""
    clip = simulate_clip(name, kind, corpus)
    split = name.split("/")[1]
    label = int(kind != "real")
    speaker = name.replace("/", "-")
    meta = ClipMeta(f"{name}.mp4", label, kind, split, speaker, leading_silence(clip.waveform), 0, clip.segments)
    return _from_frame(clip, meta, 0), _from_frame(clip, meta, frames_of_silence(first_sound(clip.waveform)))


def _from_frame(clip: SimulatedClip, meta: ClipMeta, start: int) -> StoredClip:
    segments = shift_segments(meta.segments, start / FRAME_RATE)
    meta = dataclasses.replace(meta, trimmed_frames=start, segments=segments)
    features = ClipFeatures(clip.visual[start:], clip.audio[start:])
    return StoredClip(meta, features, clip.waveform[start * SAMPLES_PER_FRAME :], clip.crops[start:])


def _write(folder: FilePath, shard: int, trimmed: bool, clips: list[StoredClip], store: tuple[str, ...]) -> None:
    width = clips[0].features.visual.shape[1]
    attributes = {"encoder": "simulated", "weights_sha256": SIMULATED, "width": width, "trimmed": trimmed}
    writer = ShardWriter(folder, "float16", attributes | {"settings": "{}"}, store)
    writer.write(shard, [clip.meta for clip in clips], clips)
