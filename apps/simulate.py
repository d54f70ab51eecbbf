"""Simulated clips: features, sound and mouth crops made by rule, to try every program without anyone's data.

A clip's two modalities follow one slow latent path (speech), each seen through its own fixed random matrix, plus noise;
the matrices have a half in common, as encoders trained on both modalities bring them near each other.
A fake breaks that bond: in a stretch of the clip the audio follows another path ("local"), or it runs late ("shifted"),
or it belongs to another clip altogether ("swapped").

One coordinate of the path opens the mouth in the crops, as it is seen, and makes the sound loud, as it is heard. Heard
by itself, a fake's loudness is like a real clip's, without a jump where a stretch starts or ends.

Fakes also bear the shortcut of the real data sets: their sound starts with a short digital silence, by default of
27 ms on average, that of real clips with 1 ms. Its features are those of silence (one vector) and of speech, in the
proportion of their lengths in each frame of 40 ms. Nothing else tells the classes apart, save jumps in a local fake's
audio features at its stretch's ends, deep in their noise; and no method's result is built in.

A corpus is written as npz files, or as feature shards laid out as launch.paper wants real ones: to see the paper's
story in minutes. The shards stand in for AV-Deepfake1M and FakeAVCeleb: every other clip is a fake whose sound starts
with a short silence and leaves the picture for a stretch. The second set's stretches are longer, its noise is lower.
Only what the run reads is written: trimmed, the test sets alone; crops, for those and for training on the first set.
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
PATH_MEMORY = 0.8  # of the path, from one frame to the next
SHIFT = 6  # frames that a shifted fake's audio runs late
FAKE_KINDS = ("local", "shifted", "swapped")
SILENCE_SPREAD = 0.003  # seconds, standard deviation of the silence before a fake's sound
SILENCE_OF_REAL = 0.001  # seconds, mean of an exponential distribution

STEEPNESS = 1.5  # of the opening against the latent path
LOUDNESS = 0.1  # root mean square of the sound of an open mouth; full scale = 1
QUIET = 0.35  # of that, with the mouth shut: never silent, so that exact zeros are leading silence alone
BREATH = 0.2  # share of noise in the sound's power
PITCH = (90.0, 220.0)  # Hz, lowest and highest mean of a clip
WANDER, WANDER_RATE = 0.1, 0.5  # how far the pitch strays from that mean, relative, and how often, Hz
OVERTONE = 0.7  # amplitude of a harmonic, against that of the one below

CROP = RAGGED["crops"][1][0]  # pixels, side of a crop
SKIN = (120.0, 200.0)  # grey level, darkest and lightest clip
SHADE = 0.3  # how much darker skin is at the crop's corners
HALF_WIDTH = (18.0, 24.0)  # pixels, of the mouth, narrowest and widest clip
SHUT, OPEN = 1.0, 14.0  # pixels, half the mouth's height
LIP, LIP_TONE = 5.0, 0.75  # pixels of thickness; their level against the skin's
CAVITY = 25.0  # grey level of the mouth's inside
GRAIN = 6  # grey levels, most that the sensor's noise adds or takes


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


# --- features --------------------------------------------------------------------------------------------------------


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


# --- sound and mouth crops, from how far the mouth is open in each frame ---------------------------------------------


def opening(path: Float[np.ndarray, "T K"]) -> Float[np.ndarray, " T"]:
    """How far the mouth is open on a latent path, from 0 to 1: a smooth function of its first coordinate."""
    return 1 / (1 + np.exp(-STEEPNESS * path[:, 0]))


def draw_sound(opened: Float[np.ndarray, " T"], silence: float, rng: np.random.Generator) -> Int16[np.ndarray, " S"]:
    """Sound at 16 kHz, 640 samples a frame, as loud as the mouth is open.

    A pulse train whose pitch wanders about the clip's own, and noise; its first `silence` seconds are exact zeros.
    """
    seconds = np.arange(len(opened) * SAMPLES_PER_FRAME) / SAMPLE_RATE
    # A frame's opening is that of its middle.
    loudness = np.interp(seconds * FRAME_RATE - 0.5, np.arange(len(opened)), QUIET + (1 - QUIET) * opened)
    noise = rng.standard_normal(len(seconds), np.float32)
    source = np.sqrt(1 - BREATH) * _pulses(_pitch(seconds, rng)) + np.sqrt(BREATH) * noise
    sound = (LOUDNESS * FULL_SCALE * loudness * source).clip(-FULL_SCALE, FULL_SCALE - 1)
    sound[: round(silence * SAMPLE_RATE)] = 0
    return sound.astype(np.int16)


def draw_crops(opened: Float[np.ndarray, " T"], rng: np.random.Generator) -> UInt8[np.ndarray, "T 96 96"]:
    """Grey crops at 25 Hz: lips on shaded skin round a dark mouth that is open so far, and a sensor's noise."""
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
    """A clip's pitch in Hz at each moment."""
    mean = rng.uniform(*PITCH)
    start = rng.uniform(0, 2 * np.pi)
    return mean * (1 + WANDER * np.sin(2 * np.pi * WANDER_RATE * seconds + start))


def _pulses(pitch: Float[np.ndarray, " S"]) -> Float[np.ndarray, " S"]:
    """A harmonic sound of variance 1: the sum over k of OVERTONE**k sin(k phase), in closed form."""
    phase = 2 * np.pi * np.cumsum(pitch) / SAMPLE_RATE
    variance = OVERTONE**2 / (1 - OVERTONE**2) / 2
    return OVERTONE * np.sin(phase) / (1 - 2 * OVERTONE * np.cos(phase) + OVERTONE**2) / np.sqrt(variance)


def _ellipses(
    x: Float32[np.ndarray, " P"], half_width: float, half_height: Float[np.ndarray, " T"]
) -> Float32[np.ndarray, "T P P"]:
    """How much of each pixel lies in an ellipse about the middle, from 0 to 1, for one ellipse a frame."""
    height = half_height.astype(np.float32)[:, None, None]
    distance = (x / np.float32(half_width)) ** 2 + (x[:, None] / height) ** 2
    # Near the upper and lower rim, pixels from it: edges move by parts of a pixel, as a camera's do.
    return ((1 - distance) * (height / 2) + np.float32(0.5)).clip(0, 1)


# --- a corpus as npz files -------------------------------------------------------------------------------------------


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


# --- two corpora as shards -------------------------------------------------------------------------------------------

# Seconds of silence before a fake's sound. The real sets' 30 ms are lost on RawNet2, whose filters' middle starts 32 ms
# into the clip: it learns them with many more clips than there are here.
LEADING_SILENCE = 0.06
# Clips of two to four seconds: of longer ones the first second, which MDS can tell, weighs less in their scores.
BOTH = Corpus(fakes=True, kinds=("local",), frames=(50, 100), width=256, silence=LEADING_SILENCE)
CORPORA = {
    "av_deepfake1m": dataclasses.replace(BOTH, train=240, val=60, test=160, stretch=0.25, noise=3.2),
    "fakeavceleb": dataclasses.replace(BOTH, train=200, val=40, test=120, stretch=0.5, noise=2.8),
}
# Training that suits so small a corpus and little time, as flags of launch.paper. MDS, of 80 million parameters, is a
# sixteenth as wide here and sees small pictures: as released it would take hours.
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
TRAINED_WITH_CROPS = "av_deepfake1m"  # the one whose crops launch.paper trains on
CLIPS_PER_SHARD = 64


def simulate(root: str | os.PathLike) -> None:
    """Writes ROOT/<data set>/<untrimmed, trimmed>/<train, val, test>/features-*.h5, and a file of flags to train by.

    Trimmed, there is `test` alone. All hold waveforms; the sets to train on but av_deepfake1m's hold no crops.

    Raises:
      UserError: ROOT holds something already, or another run is writing to it.
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
    """Writes a split in all variants in which it is read."""
    variants = list(Variant) if split == "test" else [Variant.UNTRIMMED]
    store = ("waveform", "crops") if split == "test" or dataset == TRAINED_WITH_CROPS else ("waveform",)
    for shard, start in enumerate(range(0, len(names), CLIPS_PER_SHARD)):
        clips = [_stored(name, kind, CORPORA[dataset]) for name, kind in names[start : start + CLIPS_PER_SHARD]]
        for variant in variants:
            trimmed = variant is Variant.TRIMMED
            _write(root / dataset / variant.value / split, shard, trimmed, [clip[trimmed] for clip in clips], store)


def _stored(name: str, kind: str, corpus: Corpus) -> tuple[StoredClip, StoredClip]:
    """A clip untrimmed and trimmed, as the extraction would store it."""
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
