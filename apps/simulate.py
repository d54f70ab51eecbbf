"""A simulated corpus as feature shards, laid out as launch.paper wants real ones: to see the paper's story in minutes.

It stands in for AV-Deepfake1M and FakeAVCeleb: every other clip is a fake whose sound starts with a short silence and
leaves the picture for a stretch (jax_avh/data/simulate.py). The second set's stretches are longer, its noise is lower.
"""

import dataclasses
import os
from pathlib import Path

import numpy as np

from extract.clips import shift_segments
from extract.prepare.audio import frames_to_trim, leading_silence
from extract.schema import FRAME_RATE, SAMPLES_PER_FRAME, ClipMeta, InputError
from extract.shards import ClipFeatures, ShardWriter, StoredClip
from jax_avh.data.simulate import Corpus, SimulatedClip, clip_names, simulate_clip

CORPORA = {
    "av_deepfake1m": Corpus(240, 60, 240, fakes=True, kinds=("local",), stretch=0.25, width=256, noise=3.2),
    "fakeavceleb": Corpus(200, 40, 160, fakes=True, kinds=("local",), stretch=0.5, width=256, noise=2.8),
}
# Training that suits so small a corpus, as flags of launch.paper.
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
"""
FLAG_FILE = "paper.flags"
STATES = {"untrimmed": False, "trimmed": True}
CLIPS_PER_SHARD = 64
FULL_SCALE = 2**15  # of int16 sound


def simulate(root: str | os.PathLike) -> None:
    """Writes ROOT/<data set>/<untrimmed, trimmed>/<train, val, test>/features-*.h5, and a file of flags to train by.

    Raises:
      InputError: ROOT holds something already.
    """
    if Path(root).is_file() or (Path(root).exists() and any(Path(root).iterdir())):
        raise InputError(f"--output={root}: is not an empty folder; name a new one")
    for dataset, corpus in CORPORA.items():
        for split, count in (("train", corpus.train), ("val", corpus.val), ("test", corpus.test)):
            clips = [_stored(name, kind, corpus) for name, kind in clip_names(f"{dataset}/{split}", count, corpus)]
            for state, trimmed in STATES.items():
                _write(Path(root) / dataset / state / split, trimmed, [clip[trimmed] for clip in clips])
    (Path(root) / FLAG_FILE).write_text(FLAGS)


def _stored(name: str, kind: str, corpus: Corpus) -> tuple[StoredClip, StoredClip]:
    """A clip untrimmed and trimmed, as the extraction would store it."""
    clip = simulate_clip(name, kind, corpus)
    sound = clip.waveform.astype(np.float32) / FULL_SCALE
    split = name.split("/")[1]
    label, speaker = int(kind != "real"), name.replace("/", "-")
    meta = ClipMeta(f"{name}.mp4", label, kind, split, speaker, leading_silence(sound), 0, clip.segments)
    return _from_frame(clip, meta, 0), _from_frame(clip, meta, frames_to_trim(sound))


def _from_frame(clip: SimulatedClip, meta: ClipMeta, start: int) -> StoredClip:
    segments = shift_segments(meta.segments, start / FRAME_RATE)
    meta = dataclasses.replace(meta, trimmed_frames=start, segments=segments)
    features = ClipFeatures(clip.visual[start:], clip.audio[start:])
    return StoredClip(meta, features, clip.waveform[start * SAMPLES_PER_FRAME :])


def _write(folder: Path, trimmed: bool, clips: list[StoredClip]) -> None:
    width = clips[0].features.visual.shape[1]
    attributes = {"encoder": "simulated", "weights_sha256": "simulated", "width": width, "trimmed": trimmed}
    attributes |= {"settings": "{}"}
    writer = ShardWriter(folder, "float16", attributes, ("waveform",))
    for shard, start in enumerate(range(0, len(clips), CLIPS_PER_SHARD)):
        part = clips[start : start + CLIPS_PER_SHARD]
        writer.write(shard, [clip.meta for clip in part], part)
