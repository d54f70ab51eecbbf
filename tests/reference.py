"""Small outputs of every command, created alike by any version: `python -m tests.reference FOLDER` writes them.

testdata/reference contains the outputs of commit 74a2539, without pictures and pages, from shards of `apps/simulate`
with 8, 4 and 12 clips of width 8. test_reference.py reads, resumes and reproduces them.
"""

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from tests import rules
from tests.forks import forks
from tests.sets import make_media

CURVES = {  # trainings from scratch -> settings except the data
    "avh_align": {"data.batch_frames": 64, "optimizer.learning_rate": 1e-3, "train.epochs": 3},
    "avh_sup": {"data.batch_frames": 128, "optimizer.weight_decay": 1e-4, "train.epochs": 3},
    "rawnet2": {"method.samples": 3300, "data.batch_examples": 4, "train.epochs": 1},
    "avad": {"method.windows": 10, "data.batch_examples": 4, "train.epochs": 2},
}
LINEAR = {"method.head": "linear", "optimizer.learning_rate": 1e-2, "train.early_stop": 1000000}
KILLED = {  # runs that are killed within an epoch and finish after a restart
    "align": LINEAR | {"method": "avh_align", "data.batch_frames": 4, "train.checkpoint_steps": 2},
    "sup": LINEAR
    | {
        "method": "avh_sup",
        "data.batch_clips": 1,
        "train.checkpoint_steps": 2,
        "optimizer.weight_decay": 1e-3,
        "optimizer.plateau_factor": 0.5,
        "optimizer.plateau_patience": 1,
    },
}
SCORED = ("factor", "speech_forensics", "leading_silence", "leading_amplitude", "clip_length")


def launch(command: str, *flags: str) -> None:
    """Runs a command on one device and asserts that it succeeds."""
    environment = {"JAX_NUM_CPU_DEVICES": "1", "JAX_PLATFORMS": "cpu"}
    status, output = forks()(command, *flags, environment=environment)
    assert not status, output


def extract(folder: Path, scratch: Path) -> None:
    """Extracts the synthetic clips and a missing one with the tiny encoder, trimmed and untrimmed."""
    torch.save(rules.encoder_checkpoint(False, rules.TINY_SETTINGS), scratch / "tiny.pt")
    clips = make_media(scratch / "media", 3)
    flags = {"clips": clips, "media": scratch / "media", "avhubert": scratch / "tiny.pt", "output": folder}
    flags |= {"input": "roi", "trimmed": "both", "store": "waveform", "clips_per_shard": 2}
    launch("extract", *(f"--{name}={value}" for name, value in flags.items()))


def data_flags(shards: Path) -> list[str]:
    """Returns the flags of a training on these shards."""
    return [f"--config.data.{split}={shards / split}" for split in ("train", "val")]


def train(workdir: Path, shards: Path, settings: dict[str, object]) -> None:
    """Trains to the end, from the start or from where a run was killed."""
    flags = [f"--config.{name}={value}" for name, value in settings.items()]
    launch("train", f"--workdir={workdir}", *data_flags(shards), *flags)


def start_and_kill(workdir: Path, shards: Path, settings: dict[str, object]) -> None:
    """Trains for some epochs and kills the run within the next."""
    flags = [f"--config.{name}={value}" for name, value in (settings | {"train.epochs": 1000}).items()]
    command = [sys.executable, "-m", "launch.train", f"--workdir={workdir}", *data_flags(shards), *flags]
    run = subprocess.Popen(command)
    metrics = workdir / "metrics.jsonl"
    while not metrics.exists() or len(metrics.read_text().splitlines()) < 3:
        time.sleep(0.001)
    before = set((workdir / "checkpoints").iterdir())
    while not set((workdir / "checkpoints").iterdir()) - before:
        time.sleep(0.001)
    time.sleep(0.05)
    run.send_signal(signal.SIGKILL)
    run.wait()


def curve(method: str, workdir: Path, shards: Path, weights: Path) -> None:
    """Trains a method from scratch for a few steps."""
    sync = {"method.sync_weights": weights} if method == "avad" else {}
    train(workdir, shards, {"method": method} | sync | CURVES[method])


def score(folder: Path, shards: Path, weights: dict[str, Path]) -> None:
    """Scores the test clips with every frame method and clip method."""
    features = f"--features={shards / 'test'}"
    for name, path in weights.items():
        launch("score", features, f"--weights={path}", f"--output={folder / name}.h5", "--dataset=Made by rule")
    for name in SCORED:
        launch("score", features, f"--method={name}", f"--output={folder / name}.h5", "--dataset=Made by rule")


def evaluate(folder: Path, scores: Path) -> None:
    """Evaluates the scores."""
    files = ",".join(str(path) for path in sorted(scores.glob("*.h5")))
    launch("evaluate", f"--scores={files}", f"--output={folder}")


def audit(folder: Path, shards: Path) -> None:
    """Audits the training and the test clips."""
    launch("audit", f"--features={shards / 'train'},{shards / 'test'}", f"--output={folder}")


def main(root: Path) -> None:
    """Writes all outputs."""
    scratch, shards, trained = root / "scratch", root / "shards", root / "trained"
    scratch.mkdir(parents=True)
    extract(root / "extracted", scratch)
    for name, settings in KILLED.items():
        start_and_kill(root / "killed" / name, shards, settings)
        epochs = len((root / "killed" / name / "metrics.jsonl").read_text().splitlines()) + 3
        train(scratch / name, shards, settings | {"train.epochs": epochs})
        (trained / name).mkdir(parents=True)
        for file in ("metrics.jsonl", "result.json", "best.safetensors"):
            shutil.copy(scratch / name / file, trained / name)
    for method in CURVES:
        curve(method, scratch / method, shards, trained / "align" / "best.safetensors")
        (trained / method).mkdir()
        shutil.copy(scratch / method / "metrics.jsonl", trained / method)
    (root / "scores").mkdir()
    score(root / "scores", shards, {name: trained / name / "best.safetensors" for name in KILLED})
    evaluate(root / "results", root / "scores")
    audit(root / "audit", shards)
    shutil.rmtree(scratch)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
