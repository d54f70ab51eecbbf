"""Benchmark of `launch.detect` on one video of ten seconds, stage by stage, with weights of the official sizes.

Every run is a fresh process. With --repository, another version of this project takes turns.

python -m benchmarks.detect
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
REPEATS = 3
VIDEO_SECONDS = 10
UNUSED = {f"decoder.layers.{n}.fc1.weight": (1024, 18_000) for n in range(9)}  # as large as the official decoder
STAGES = {
    "imports": "imports",
    "fold": "detector: weights read, programs that fold them compiled",
    "encoder": "encoder: weights read, checked and hashed",
    "models": "models of faces and landmarks: read",
    "prepare": "video: decoded, faces and landmarks found, mouths cropped",
    "encode": "features: encoded",
    "compile": "scores: compiled",
    "score": "scores: computed",
    "page": "page: written",
}


def main() -> None:
    """Prints a table for each version; in the processes that it starts, measures one run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repository", type=Path, default=ROOT, help="folder of another version, to compare with")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)  # video, encoder's and detector's weights
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(*map(Path, arguments.measure))))
        return
    with tempfile.TemporaryDirectory() as folder:
        files = make_files(Path(folder))
        print(", ".join(f"{file.name} {file.stat().st_size / 1e6:.0f} MB" for file in files), f"{os.cpu_count()} cores")
        runs: dict[Path, list[dict]] = {version: [] for version in (arguments.repository, ROOT)}
        for _ in range(REPEATS):
            for version, done in runs.items():
                done.append(run_of(version, files))
    for version, done in runs.items():
        print("", version, "", "| stage | seconds | processor seconds |\n|---|---|---|", sep="\n")
        for stage in (*STAGES, "whole"):
            wall, used = (min(run[stage][kind] for run in done) for kind in (0, 1))  # other load affects it least
            print(f"| {STAGES.get(stage, 'the whole command')} | {wall:.2f} | {used:.2f} |")
        parts = {name: min(run["parts"][name] for run in done) for name in done[0]["parts"]}
        print("\nThe preparation:", ", ".join(f"{name} {spent:.2f} s" for name, spent in parts.items()))


def make_files(folder: Path) -> tuple[Path, Path, Path]:
    """Writes a video of real pictures and sound, and random weights in the form and size of the official ones."""
    import numpy as np
    import torch
    from flax import nnx

    from apps.demo import fetch_clips
    from extract.avhubert import AVHubertConfig, random_avhubert
    from extract.avhubert.checkpoint import CONFIG_NAMES, FINE_TUNED_PREFIX
    from extract.media import read_audio, read_video
    from jax_avh.models.alignment import NETWORKS
    from jax_avh.models.weights import save_weights
    from tests.media import write_media

    source = fetch_clips()["jwpIntro"]
    frames, sound = read_video(source), read_audio(source)
    there_and_back = [*frames, *frames[::-1]][: 25 * VIDEO_SECONDS]
    heard = np.resize(sound, 16_000 * VIDEO_SECONDS)[None]
    video = write_media(folder / "video.mp4", there_and_back, sound=heard)
    config = AVHubertConfig.large()
    named = random_avhubert(config).state_dict()
    weights = {f"{FINE_TUNED_PREFIX}{name}": value for name, value in named.items()}
    weights |= {name: torch.zeros(shape) for name, shape in UNUSED.items()}
    sizes = {name: getattr(config, field) for field, name in CONFIG_NAMES.items()}
    torch.save({"cfg": {"model": {"w2v_args": {"model": sizes}}}, "model": weights}, folder / "encoder.pt")
    save_weights(NETWORKS["mlp"](config.width, rngs=nnx.Rngs(0)), folder / "detector.safetensors")
    return video, folder / "encoder.pt", folder / "detector.safetensors"


def run_of(version: Path, files: tuple[Path, Path, Path]) -> dict:
    """Measures a version's stages in one process, and its whole command in another."""
    environment = os.environ | {"PYTHONPATH": str(version)}

    def output(*arguments: object) -> str:
        command = [sys.executable, *map(str, arguments)]
        done = subprocess.run(command, env=environment, cwd=version, check=True, capture_output=True)  # noqa: S603
        return done.stdout.decode()

    stages = json.loads(output("-P", __file__, "--measure", *files))
    video, encoder, detector = files
    with tempfile.TemporaryDirectory() as pages:
        before = os.times()
        output("-m", "launch.detect", video, f"--avhubert={encoder}", f"--weights={detector}", f"--pages={pages}")
        after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return stages | {"whole": (after.elapsed - before.elapsed, used)}


def measure(video: Path, avhubert: Path, weights: Path) -> dict:
    """Detects as `launch.detect` does; returns the wall-clock and processor seconds of each stage."""
    seconds: dict = {}

    @contextlib.contextmanager
    def stage(name: str) -> Iterator[None]:
        started = time.perf_counter(), time.process_time()
        yield
        seconds[name] = time.perf_counter() - started[0], time.process_time() - started[1]

    with stage("imports"):
        import launch.detect  # noqa: F401
    from avh_shards import ClipMeta
    from avh_shards.format import Variant
    from extract.avhubert.encoder import Encoder
    from extract.face.landmarks import detector, predictor
    from extract.prepare import PrepareSettings, cut_clip, read_clip
    from jax_avh.data.source import source_of_clip
    from jax_avh.inference import load_detector
    from jax_avh.parallel import keep_to_cpu
    from jax_avh.report.video import Verdict, write_video_page

    keep_to_cpu()
    with stage("fold"):
        scorer = load_detector(weights)
        scorer._scorer  # noqa: B018
    with stage("encoder"):
        encoder = Encoder(avhubert)
    with stage("models"):
        detector()
        predictor()
    with stage("prepare"):
        read = read_clip(ClipMeta(video.name), video.parent, PrepareSettings())
        clip = cut_clip(read, Variant.UNTRIMMED)
    with stage("encode"):
        ((_, features),) = encoder.encode([clip])
    source = source_of_clip(clip.meta, features.visual, features.audio)
    with stage("first"):
        scorer.score(source)
    with stage("score"):
        frame, _ = scorer.score(source)
    seconds["compile"] = tuple(first - again for first, again in zip(seconds["first"], seconds["score"], strict=True))
    with stage("page"):
        write_video_page(video.with_suffix(".html"), video, Verdict(str(video), worst_second=(0.0, 1.0)), frame)
    return seconds | {"parts": read.seconds}


if __name__ == "__main__":
    main()
