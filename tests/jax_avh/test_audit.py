"""Audits of synthetic shards: known leaks are found and measured correctly, and unknowns are reported as such."""

import dataclasses
import json
import math

import numpy as np
import pytest
from matplotlib.image import imread
from sklearn.metrics import roc_auc_score

from avh_shards import ClipMeta, UserError, leading_silence
from avh_shards.clip import REAL
from avh_shards.format import list_shards
from avh_shards.paths import as_path
from avh_shards.silence import first_sound, frames_of_silence, leading_amplitude
from extract.store.shard import ClipFeatures, ShardWriter, StoredClip
from jax_avh.audit import Shared, audit, identity, overlap, verdict
from jax_avh.data.source import open_source
from jax_avh.report.audit import source_names, write_audit

WIDTH = 4
FRAME = 640  # samples


def speech(seed, frames=50, silent=0):
    """Returns noise whose first `silent` samples are zeros; the sample after them is the loudest."""
    waveform = np.random.default_rng(seed).integers(-9000, 9000, frames * FRAME).astype(np.int16)
    waveform[:silent] = 0
    waveform[silent : silent + 1] = 9000
    return waveform


def write_set(folder, sounds, metas=None, store=("waveform",), shard=0, **attributes):
    """Writes a shard of clips with these sounds and features of zeros."""
    metas = metas or [ClipMeta(f"c{shard}-{n}.mp4", label=n % 2) for n in range(len(sounds))]
    attributes = {"encoder": "test", "weights_sha256": "0", "width": WIDTH, "trimmed": False} | attributes
    zeros = [np.zeros((max(len(sound) // FRAME, 1), WIDTH), np.float32) for sound in sounds]
    rows = zip(metas, zeros, sounds, strict=True)
    stored = [StoredClip(meta, ClipFeatures(zero, zero), sound) for meta, zero, sound in rows]
    ShardWriter(as_path(folder), "float16", attributes, store).write(shard, metas, stored)
    return open_source(folder)


def leaky(count=12):
    """Returns sounds, every second of which starts with 27 ms of silence."""
    return [speech(n, silent=432 * (n % 2)) for n in range(count)]


@pytest.fixture
def source(tmp_path):
    return write_set(tmp_path / "s", [speech(n, 2 + n) for n in range(5)])


def test_waveforms_are_read_in_parts_from_anywhere(source):
    for file in list_shards(source.path):
        as_path(f"memory://waveforms/{file.name}").write_bytes(file.read_bytes())
    remote = open_source("memory://waveforms")
    for reader in (source, source.in_memory(), remote, remote.in_memory()):
        for clip, (first, last) in [(0, (0, None)), (2, (3, 70)), (2, (1000, 9**9)), (4, (9**9, None)), (1, (5, 5))]:
            found = reader.waveform(clip, first, last)
            assert found.dtype == np.int16
            np.testing.assert_array_equal(found, speech(clip, 2 + clip)[first:last])
    assert isinstance(source.in_memory().waveform(0), np.memmap)


def test_waveforms_follow_the_clips_of_a_part_of_a_source(source):
    np.testing.assert_array_equal(source.labelled(REAL).waveform(1), speech(2, 4))


def test_a_shard_without_waveforms_is_named(tmp_path):
    write_set(tmp_path, [speech(0)])
    source = write_set(tmp_path, [speech(1)], store=(), shard=1)
    assert not source.has("waveform")
    with pytest.raises(UserError, match=r"features-00001\.h5: its shards hold no waveform; .*--store=waveform"):
        source.check_has("waveform")
    whole = write_set(tmp_path / "whole", [speech(0)])
    whole.check_has("waveform")
    assert whole.has("waveform")
    assert not whole.has("crops")


def test_a_leak_is_found_and_trimming_ends_it(tmp_path):
    result = audit({"test": write_set(tmp_path / "leaky", leaky())})
    found = result.sources["test"]
    silence = found.leading_silence_ms
    assert silence.auc == 1.0
    assert found.by_threshold.auc == [1.0] * 26
    assert found.by_moment.auc == [1.0, 1.0] + [0.5] * 6
    assert found.amplitude.auc == 0.5
    assert silence.label["fake"].quartiles == [27.0] * 3
    assert silence.label["fake"].share_above_limit == 1.0
    assert silence.label["real"].share_above_limit == 0.0
    assert silence.label["fake"].histogram == [0] * 5 + [6] + [0] * 15
    text = verdict(result)
    assert (
        "test: labels can be predicted from leading silence: AUC 1.00, 95 % 1.00-1.00 "
        "(fakes: median 27 ms, real clips: 0 ms)" in text
    )
    amplitude = "predicted from the largest amplitude in the first"
    assert any(t.startswith(f"test: labels cannot be {amplitude} 30 ms") for t in text)
    assert f"test: labels can be {amplitude} 10 ms, the best of 8: AUC 1.00" in text
    trimmed = [sound[frames_of_silence(first_sound(sound)) * FRAME :] for sound in leaky()]
    result = audit({"test": write_set(tmp_path / "trimmed", trimmed, trimmed=True)})
    assert result.sources["test"].leading_silence_ms.auc == 0.5
    assert "test: labels cannot be predicted from leading silence (AUC 0.50, 95 % 0.50-0.50)" in verdict(result)


def test_every_auc_is_that_of_scikit_learn(tmp_path):
    rng = np.random.default_rng(0)
    sounds = [speech(n, frames, silent) for n, (frames, silent) in enumerate(rng.integers(1, 60, (30, 2)) * [1, 20])]
    sounds = [(sound * rng.uniform(0, 0.1)).astype(np.int16) for sound in sounds]
    labels = rng.integers(-1, 2, 30)
    metas = [ClipMeta(f"{n}", label=int(label)) for n, label in enumerate(labels)]
    found = audit({"x": write_set(tmp_path, sounds, metas)}).sources["x"]

    def auc(score):
        return pytest.approx(roc_auc_score(labels[labels >= 0], np.array(score)[labels >= 0]))

    assert found.length_s.auc == auc([len(sound) // FRAME for sound in sounds])
    assert found.leading_silence_ms.auc == auc([leading_silence(sound) for sound in sounds])
    assert found.amplitude.auc == auc([-leading_amplitude(sound) for sound in sounds])
    for threshold, value in zip(found.by_threshold.threshold, found.by_threshold.auc, strict=True):
        assert value == auc([leading_silence(sound, threshold) for sound in sounds])
    for ms, value in zip(found.by_moment.first_ms, found.by_moment.auc, strict=True):
        assert value == auc([-leading_amplitude(sound, ms / 1000) for sound in sounds])
    counts = [int((labels == label).sum()) for label in (0, 1, -1)]
    assert [found.clips, found.real, found.fake, found.unknown] == [30, *counts]


def test_distributions_are_told_by_label_and_category(tmp_path):
    metas = [ClipMeta("a", 0, "A"), ClipMeta("b", 1, "B"), ClipMeta("c", 1, "B"), ClipMeta("d", -1)]
    silent = [80, 160, 161, 1600]  # samples: on a border of the bins, on the limit, above it, beyond the last bin
    sounds = [speech(n, 5, samples) for n, samples in enumerate(silent)]
    found = audit({"x": write_set(tmp_path, sounds, metas)})
    silence = found.sources["x"].leading_silence_ms
    assert {name: group.count for name, group in silence.category.items()} == {"A": 1, "B": 2}
    assert silence.category["B"].quartiles == pytest.approx([10 + q / 16 for q in (0.25, 0.5, 0.75)])
    assert silence.category["B"].share_above_limit == 0.5
    assert silence.label["real"].histogram[:3] == [0, 1, 0]
    assert silence.label["fake"].histogram[:4] == [0, 0, 2, 0]
    assert silence.label["unknown"].histogram[-1] == 1


@pytest.mark.parametrize(
    ("sounds", "labels"),
    [
        ([speech(0)], [0]),
        ([speech(0)], [-1]),
        ([speech(0), speech(1)], [1, 1]),
        ([np.zeros(FRAME, np.int16), speech(1, 1)[:50]], [1, 0]),  # silent throughout; shorter than every moment
        ([np.zeros(0, np.int16), np.full(3, -32768, np.int16)], [0, 1]),
    ],
)
def test_poor_sets_are_audited_and_drawn(tmp_path, sounds, labels):
    metas = [ClipMeta(f"{n}", label=label) for n, label in enumerate(labels)]
    write_set(tmp_path / "s", sounds, metas)
    text = write_audit([tmp_path / "s"], tmp_path / "out")
    found = json.loads((tmp_path / "out" / "audit.json").read_text())["sources"]["s"]
    defined = set(labels) >= {0, 1}
    assert (found["leading_silence_ms"]["auc"] is not None) == defined
    assert ("is undefined without both real and fake clips" in text) != defined
    assert (tmp_path / "out" / "s_auc.png").exists() == defined


def test_what_extraction_noted_stands_in_for_waveforms(tmp_path):
    notes = [0.0, 0.027, math.nan, 0.03, 0.001, 0.027, 0.0, 0.03, 0.001, 0.03, 0.0005]
    metas = [ClipMeta(f"{n}", n % 2, leading_silence=note) for n, note in enumerate(notes)]
    result = audit({"x": write_set(tmp_path / "noted", leaky(11), metas, (), trimmed=True)})
    found = result.sources["x"]
    assert (found.leading_silence_ms.auc, found.leading_silence_ms.known) == (1.0, 10)
    assert found.leading_silence_ms.label["real"].quartiles[1] == 0.5
    assert found.amplitude is found.by_threshold is found.by_moment is None
    text = "\n".join(verdict(result))
    assert "leading silence is taken from extraction, which recorded it for 10 of 11 clips" in text
    assert "labels can be predicted from leading silence before trimming: AUC 1.00" in text
    json.dumps(dataclasses.asdict(result), allow_nan=False)
    result = audit({"x": write_set(tmp_path / "unknown", leaky(5), store=())})
    assert result.sources["x"].leading_silence_ms is None
    assert "leading silence is unknown: its shards hold no waveform" in "\n".join(verdict(result))


def test_length_tells_by_its_mirror_image_too(tmp_path):
    sounds = [speech(n, 100 - 60 * (n % 2)) for n in range(12)]
    result = audit({"x": write_set(tmp_path, sounds)})
    assert result.sources["x"].length_s.auc == 0.0
    expected = (
        "x: labels can be predicted from length: AUC 0.00, mirrored 1.00, 95 % 0.00-0.00 "
        "(fakes: median 1.6 s, real clips: 4 s)"
    )
    assert expected in verdict(result)


def test_a_threshold_that_tells_more_is_told(tmp_path):
    sounds = [speech(n, 5) for n in range(12)]
    for sound in sounds[1::2]:
        sound[:500] = 40  # faint, but above the usual threshold
    text = "\n".join(verdict(audit({"x": write_set(tmp_path, sounds)})))
    assert "x: labels cannot be predicted from leading silence (AUC 0.50, 95 % 0.50-0.50)" in text
    assert "x: labels can be predicted from leading silence at threshold 0.00133, the best of 26: AUC 1.00" in text


def test_identities_come_from_the_path_where_they_are_not_told():
    assert identity(ClipMeta("val/id00012/id7/x.mp4", identity="")) == "id00012"
    assert identity(ClipMeta("id00012/v/1.mp4", identity="speaker")) == "speaker"
    assert identity(ClipMeta("kid12/x.mp4")) == identity(ClipMeta("id12x/x.mp4")) == ""


def test_what_splits_share_is_counted(tmp_path):
    train = [ClipMeta(f"id{n}/{n}.mp4", n % 2) for n in range(6)]
    test = [
        ClipMeta("id5/5.mp4", 0),
        ClipMeta("id5/new.mp4", 1),
        ClipMeta("x.mp4", 1, identity="id0"),
        ClipMeta("y", 0),
    ]
    found = overlap("test", test, "train", train)
    assert found.identities == Shared(shared=2, of=2, among=6, share=1.0)
    assert found.clips == Shared(shared=1, of=4, among=6, share=0.25)
    other = [ClipMeta("z.mp4", 0)]
    sounds = {"train": (leaky(6), train), "test": (leaky(4), test), "other": (leaky(1), other)}
    result = audit({name: write_set(tmp_path / name, *rows) for name, rows in sounds.items()})
    text = verdict(result)
    assert "2 of the 2 test identities are also in train" in text
    assert "1 of the 4 test clips are also in train" in text
    assert "none of the 1 other clips are in test" in text
    assert "other, train: shared identities unknown, because other names none" in text
    assert overlap("other", other, "train", train).identities.share is None


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["shards/train", "shards/test"], ["train", "test"]),
        (["a/train/trimmed", "a/test/trimmed/"], ["train", "test"]),
        (["a/x", "b/x", "b/y"], ["a-x", "b-x", "b-y"]),
        (["memory://bucket/train", "memory://bucket/test"], ["train", "test"]),
        (["one/test"], ["test"]),
    ],
)
def test_sources_are_named_by_what_tells_them_apart(paths, names):
    assert source_names(paths) == names


def test_a_set_named_twice_is_refused(tmp_path):
    with pytest.raises(UserError, match="is named twice"):
        source_names([tmp_path / "a", tmp_path / "b", f"{tmp_path}/a/"])


def test_the_command_writes_numbers_and_pictures(tmp_path, launch):
    for name in ("train", "test"):
        write_set(tmp_path / name, leaky())
    features = f"--features={tmp_path}/train,{tmp_path}/test"
    status, text = launch("audit", features, f"--output={tmp_path}/out")
    assert status == 0, text
    assert "test: labels can be predicted from leading silence: AUC 1.00" in text
    assert "12 of the 12 test clips are also in train" in text
    names = {f"{source}_{kind}.png" for source in ("train", "test") for kind in ("start", "auc", "length")}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"audit.json", *names}
    for name in names:
        assert imread(tmp_path / "out" / name)[..., :3].std() > 0.05
