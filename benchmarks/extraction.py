"""Benchmark of the encoder and of preparation, against straightforward implementations in the same run.

python -m benchmarks.extraction
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from apps.demo import fetch_clips
from avh_shards import ClipMeta
from avh_shards.clip import FRAME_RATE
from avh_shards.format import Variant
from benchmarks import straightforward
from extract.avhubert import AVHubertConfig, random_avhubert
from extract.avhubert.encoder import RANDOM_ENCODER, Encoder, EncodeSettings
from extract.face.landmarks import detect_landmarks, tracked
from extract.media.decode import iterate_video
from extract.prepare import PreparedClip, PrepareSettings, prepare_clip
from extract.run.pool import PrepareTask, open_pool, prepare_all

REPEATS = 3


def main() -> None:
    """Parses the flags and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=9, help="clips for the encoder, 125 to 325 frames each")
    parser.add_argument("--batch_frames", type=int, default=EncodeSettings.batch_frames)
    arguments = parser.parse_args()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} CPU threads"
    print(f"torch {torch.__version__}, {device}")
    real = fetch_clips()
    prepared = [prepare_clip(ClipMeta(path.name), path.parent, PrepareSettings()) for path in real.values()]
    compare_encoders(make_clips(prepared, arguments.clips), arguments.batch_frames)
    compare_preparation(real)


def make_clips(prepared: list[PreparedClip], count: int) -> list[PreparedClip]:
    """Creates clips with lengths as in AV-Deepfake1M from concatenated real crops and sounds."""
    crops, audio = (np.concatenate([getattr(clip, name) for clip in prepared] * 2) for name in ("crops", "audio"))
    lengths = np.linspace(125, 325, count).astype(int)
    return [PreparedClip(ClipMeta(str(n)), crops[n : n + n], audio[n : n + n], np.zeros(1, np.int16)) for n in lengths]


def compare_encoders(clips: list[PreparedClip], batch_frames: int) -> None:
    """Prints the speed of the large model and the distance of its features from the straightforward ones."""
    plain = random_avhubert(AVHubertConfig.large()).to("cuda" if torch.cuda.is_available() else "cpu")
    straightforward.encode(plain, clips[0])
    wanted, seconds = timed(lambda: [straightforward.encode(plain, clip) for clip in clips])
    frames, places = sum(len(clip.audio) for clip in clips), {id(clip): n for n, clip in enumerate(clips)}
    header(f"encoder, large, {len(clips)} clips, {frames} frames", "largest difference", "least cosine")
    show("straightforward, float32, three passes", frames, seconds, seconds)
    for precision in ("float32", "bfloat16"):
        encoder = Encoder(RANDOM_ENCODER, EncodeSettings(precision, batch_frames))
        list(encoder.encode(clips[:1]))
        runs = [timed(lambda encoder=encoder: list(encoder.encode(clips))) for _ in range(REPEATS)]
        pairs = [(features[k], wanted[places[id(clip)]][k].numpy()) for clip, features in runs[0][0] for k in (0, 1)]
        difference = max(np.abs(a - b).max() for a, b in pairs)
        cosine = min(least_cosine(a, b) for a, b in pairs)
        show(f"ours, {precision}", frames, fastest(runs), seconds, f"{difference:.1e}", f"{cosine:.6f}")


def compare_preparation(real: dict[str, Path]) -> None:
    """Prints the speed from real files to network inputs, and the distance of tracked points from every frame's."""
    plain, seconds = timed(lambda: [straightforward.prepare(str(path)) for path in real.values()])
    task = PrepareTask(str(next(iter(real.values())).parent), PrepareSettings(), (Variant.UNTRIMMED,))
    clips = [ClipMeta(path.name) for path in real.values()]
    processes = torch.get_num_threads()
    with open_pool(task, processes) as pool:
        list(prepare_all(pool, clips * processes, task, processes))  # loads the models
        runs = [timed(lambda: list(prepare_all(pool, clips, task, processes))) for _ in range(REPEATS)]
    frames = sum(len(crops) for _, crops, _ in plain)
    errors = [tracking_error(path, points) for path, (points, *_) in zip(real.values(), plain, strict=True)]
    header(f"preparation, {len(real)} real clips, {frames} frames", "median distance", "95th percentile")
    show("straightforward, one process", frames, seconds, seconds)
    show(f"ours, tracked, {processes} processes", frames, fastest(runs), seconds, *percent(np.concatenate(errors)))
    print("\nDistances of tracked points from every frame's, relative to the distance of the outer eye corners:")
    print("; ".join(f"{name} {' and '.join(percent(error))}" for name, error in zip(real, errors, strict=True)))


def tracking_error(path: Path, every: np.ndarray) -> np.ndarray:
    """Returns the distances of tracked points from every frame's, relative to the distance of the outer eye corners."""
    points = detect_landmarks(iterate_video(path), tracked())
    eyes = np.linalg.norm(every[:, 36] - every[:, 45], axis=1)
    return (np.linalg.norm(points - every, axis=2) / eyes[:, None]).ravel()


def percent(error: np.ndarray) -> tuple[str, str]:
    """Formats the median and the 95th percentile of relative distances in per cent."""
    return tuple(f"{100 * np.percentile(error, q):.2f} %" for q in (50, 95))


def least_cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Returns the least cosine, over all frames, between two feature vectors of the same frame."""
    return float(((a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min())


def timed(work: Callable) -> tuple[object, float]:
    """Returns the result of some work and the seconds that it took."""
    started = time.perf_counter()
    result = work()
    return result, time.perf_counter() - started


def fastest(runs: list[tuple[object, float]]) -> float:
    """Returns the seconds of the fastest run, which other load on the machine affects least."""
    return min(seconds for _, seconds in runs)


def header(subject: str, *figures: str) -> None:
    """Prints the head of a table."""
    cells = [subject, "frames/s", "video-s/s", "ratio", *figures]
    print("", "| " + " | ".join(cells) + " |", "|---" * len(cells) + "|", sep="\n")


def show(name: str, frames: int, seconds: float, plain: float, *figures: str) -> None:
    """Prints one row of a table."""
    cells = [name, f"{frames / seconds:.0f}", f"{frames / seconds / FRAME_RATE:.1f}", f"{plain / seconds:.1f}"]
    print("| " + " | ".join([*cells, *(figures or ("", ""))]) + " |", flush=True)


if __name__ == "__main__":
    main()
