"""The demo: the whole path in a few minutes, real clips through the extraction, simulated features through training."""

import os
import subprocess
import sys

from apps.demo.clips import DEMO_COLUMNS, fetch_clips, make_clips
from apps.simulate import Corpus, simulate_corpus
from avh_shards import UserError, open_shard
from avh_shards.format import list_shards, results_folder
from avh_shards.paths import FilePath, check_outputs, locked
from avh_shards.text import format_table
from extract.avhubert.encoder import RANDOM_ENCODER

TRAINING = {  # small clips want more steps than the official 1e-5 and 1,024 frames give in a minute
    "config.optimizer.learning_rate": 1e-3,
    "config.data.batch_frames": 256,
    "config.train.epochs": 6,
}
RANDOM_NOTE = "The real clips went through an encoder with RANDOM weights (no --avhubert): only the path is real."
SIMULATED_NOTE = (
    "These numbers come from SIMULATED features: they show that the programs work, not how well fakes are found."
)


def demo(output: str | os.PathLike, avhubert: str | None = None) -> None:
    """Runs every command of the main path, shows each as one would type it, and lists what is where.

    Args:
      output: folder of all results; a second run there resumes where the first ended.
      avhubert: an official AV-HuBERT file; without it the encoder's weights are random.

    Raises:
      UserError: the clips cannot be fetched, a command fails, or another demo is writing there.
    """
    folder = results_folder(output)
    check_outputs({folder / "clips.csv": ",".join(DEMO_COLUMNS).encode()})
    with locked(folder):
        _title("1/3  Real clips: from video files to features")
        if not (folder / "clips.csv").is_file():
            make_clips(fetch_clips(), folder / "media", folder / "clips.csv")
        _launch("extract", clips=folder / "clips.csv", media=folder / "media", avhubert=avhubert or RANDOM_ENCODER,
                output=folder / "features")  # fmt: skip
        print(_clip_table(folder / "features"))

        _title("2/3  A simulated corpus: training on its real clips")
        corpus = folder / "simulated"
        if not (corpus / "test.csv").is_file():
            simulate_corpus(str(corpus), Corpus())
        for split in ("train", "val", "test"):
            _launch("import_npz", clips=corpus / f"{split}.csv", features=corpus, output=corpus / "shards" / split)
        data = {f"config.data.{split}": corpus / "shards" / split for split in ("train", "val")}
        _launch("train", **data, workdir=folder / "run", **TRAINING)

        _title("3/3  Scores and metrics of its test clips")
        _launch("score", weights=folder / "run", features=corpus / "shards" / "test", output=folder / "scores.h5")
        _launch("evaluate", scores=folder / "scores.h5", output=folder / "results")
    print("", SIMULATED_NOTE, "" if avhubert else RANDOM_NOTE, "", _map(folder), sep="\n")


def _launch(command: str, **flags: object) -> None:
    """Runs a command as a user would."""
    arguments = ["-m", f"launch.{command}", *(f"--{name}={value}" for name, value in flags.items())]
    print("\n$ python", " ".join(arguments), flush=True)
    if subprocess.run([sys.executable, *arguments], check=False).returncode:  # noqa: S603
        raise UserError(f"the demo stops: launch.{command} failed")


def _clip_table(features: FilePath) -> str:
    rows = [["clip", "label", "frames", "leading silence"]]
    for path in list_shards(features):
        shard = open_shard(path)
        for clip, start, stop in zip(shard.clips, shard.offset[:-1], shard.offset[1:], strict=True):
            label = "fake" if clip.label else "real"
            rows.append([clip.path, label, str(stop - start), f"{1000 * clip.leading_silence:.1f} ms"])
    return "\n" + format_table(rows)


def _map(output: FilePath) -> str:
    places = {
        "media": "the real clips and the fakes made of them: play them",
        "features": "their feature shards, failures.jsonl, extraction.json",
        "simulated": "the simulated corpus: npz features, lists, shards",
        "run": "the training run: metrics.jsonl, tensorboard, checkpoints, best.safetensors",
        "scores.h5": "frame scores of the simulated test clips",
        "results": "metrics.json, clips.csv, report.html: open it in a browser",
    }
    return "\n".join(f"{output / name!s:<32} {what}" for name, what in places.items())


def _title(text: str) -> None:
    print(f"\n=== {text}", flush=True)
