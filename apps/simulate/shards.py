"""A simulated corpus as feature shards, laid out as launch.paper wants real ones: to see the paper's story in minutes.

It stands in for AV-Deepfake1M and FakeAVCeleb: every other clip is a fake whose sound starts with a short silence and
leaves the picture for a stretch (apps/simulate/corpus.py). The second set's stretches are longer, its noise is lower.
Only what the run reads is written: trimmed, the test sets alone; crops, for those and for training on the first set.
"""

import dataclasses
import os

from apps.paper.plan import MAIN, TRAINED_IN
from apps.simulate.corpus import Corpus, SimulatedClip, clip_names, simulate_clip
from avh_shards import ClipMeta, UserError, leading_silence
from avh_shards.clip import FRAME_RATE, SAMPLES_PER_FRAME
from avh_shards.clip_list import shift_segments
from avh_shards.format import SIMULATED, Variant
from avh_shards.paths import FilePath, as_path, atomic_write, locked
from avh_shards.silence import first_sound, frames_of_silence
from extract.store.shard import ClipFeatures, ShardWriter, StoredClip

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
    variants = list(Variant) if split == "test" else [TRAINED_IN]
    store = ("waveform", "crops") if split == "test" or dataset == MAIN else ("waveform",)
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
