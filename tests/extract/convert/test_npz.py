"""Import of official npz features into shards."""

import os
import re

import numpy as np

from avh_shards import ClipMeta, open_shard, read_clip_list
from avh_shards.clip import FAKE
from avh_shards.format import list_shards
from extract.convert.npz import import_features
from extract.store.shard import read_failures
from extract.store.shard_set import format_summary
from tests import rules

WIDTH = 8


def write_npz(path, **arrays):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **arrays)


def pair(frames=5, width=WIDTH, dtype=np.float32):
    return dict(
        zip(
            ("visual", "audio"), np.random.default_rng(0).standard_normal((2, frames, width)).astype(dtype), strict=True
        )
    )


def test_features_arrive_as_they_were(tmp_path, rule_shards):
    for split in ("train", "val", "test"):
        for path in list_shards(rule_shards[split]):
            shard = open_shard(path)
            assert [(clip.path, clip.label) for clip in shard.clips] == [(p, y) for p, _, y in rules.CLIPS[split]]
            for clip, start, stop in zip(shard.clips, shard.offset, shard.offset[1:], strict=False):
                official = np.load((rule_shards["npz"] / clip.path).with_suffix(".npz"))
                np.testing.assert_array_equal(shard.visual[start:stop], official["visual"])
                np.testing.assert_array_equal(shard.audio[start:stop], official["audio"])


def test_features_that_cannot_be_used_are_logged(tmp_path):
    good = pair()
    write_npz(tmp_path / "good.npz", **good, multimodal=good["visual"])
    write_npz(tmp_path / "wide.npz", **pair(width=9))
    write_npz(tmp_path / "uneven.npz", visual=good["visual"], audio=good["audio"][:-1])
    write_npz(tmp_path / "nan.npz", visual=good["visual"] * np.nan, audio=good["audio"])
    write_npz(tmp_path / "huge.npz", visual=good["visual"] * 1e9, audio=good["audio"])
    write_npz(tmp_path / "none.npz", **pair(frames=0))
    write_npz(tmp_path / "half.npz", visual=good["visual"])
    write_npz(tmp_path / "object.npz", visual=np.array([object()], object), audio=good["audio"])
    np.save(tmp_path / "single.npy", good["visual"])
    (tmp_path / "single.npy").rename(tmp_path / "single.npz")
    (tmp_path / "text.npz").write_text("no features")
    (tmp_path / "empty.npz").write_bytes(b"")
    (tmp_path / "cut.npz").write_bytes((tmp_path / "good.npz").read_bytes()[:300])
    reasons = {
        "wide": r"float32 \[5, 9\], not float \[T, 8\]",
        "uneven": "visual has 5 frames, audio 4",
        "nan": "visual features hold NaN",
        "huge": "exceed the range of float16",
        "none": "no frame",
        "half": "audio",
        "object": "allow_pickle|Object arrays",
        "single": "npz",
        "text": "npz",
        "empty": "npz",
        "cut": "npz",
        "missing": "no such file",
    }
    clips = [ClipMeta(f"{name}.mp4") for name in ["good", *reasons]]
    summary = import_features(clips, tmp_path, tmp_path / "out", width=WIDTH)
    assert summary.stored == 1
    failures = {f.path.removesuffix(".mp4"): f.reason for f in read_failures(tmp_path / "out" / "failures.jsonl")}
    assert list(failures) == list(reasons)
    for name, reason in reasons.items():
        assert re.search(reason, failures[name]), failures[name]


def test_segments_beyond_a_clips_end_are_counted(tmp_path):
    """Segments in milliseconds or frames would otherwise only show as an average precision of 0."""
    for name in "abcd":
        write_npz(tmp_path / f"{name}.npz", **pair(50))  # 2 s
    segments = {"a": (400.0, 800.0), "b": (1.5, 2.9), "c": (0.5, 3.1), "d": (2.0, 2.5)}
    clips = [ClipMeta(f"{name}.mp4", FAKE, segments=(segment,)) for name, segment in segments.items()]
    summary = import_features(clips, tmp_path, tmp_path / "out", width=WIDTH)
    assert summary.segments_beyond_end == 3  # all but b
    assert "3 clips have fake segments beyond their end; give them in seconds" in format_summary(summary)
    summary = import_features(clips[1:2], tmp_path, tmp_path / "fine", width=WIDTH)
    assert "segments" not in format_summary(summary)


class Attack:
    def __init__(self, proof):
        self.proof = proof

    def __reduce__(self):
        return os.system, (f"touch {self.proof}",)


def test_a_pickle_in_an_npz_is_not_run(tmp_path):
    write_npz(tmp_path / "a.npz", visual=np.array([Attack(tmp_path / "proof")], object), audio=np.zeros((1, WIDTH)))
    import_features([ClipMeta("a.mp4")], tmp_path, tmp_path / "out", width=WIDTH)
    assert len(read_failures(tmp_path / "out" / "failures.jsonl")) == 1
    assert not (tmp_path / "proof").exists()


def test_an_import_goes_on_and_keeps_its_shards(tmp_path):
    for n in range(5):
        write_npz(tmp_path / f"{n}.npz", **pair(n + 1))
    clips = [ClipMeta(f"{n}.mp4") for n in range(5)]
    import_features(clips, tmp_path, tmp_path / "out", width=WIDTH, clips_per_shard=2)
    first = [(path, path.stat().st_mtime_ns) for path in list_shards(tmp_path / "out")]
    (tmp_path / "out" / "features-00001.h5").unlink()
    import_features(clips, tmp_path, tmp_path / "out", width=WIDTH, clips_per_shard=2)
    second = [(path, path.stat().st_mtime_ns) for path in list_shards(tmp_path / "out")]
    assert [a == b for a, b in zip(first, second, strict=True)] == [True, False, True]


def test_an_official_list_is_read_as_it_is(tmp_path):
    (tmp_path / "c.csv").write_text("path,label,num_frames\nid00001/a/b/real.mp4,0,125\n")
    assert [(clip.path, clip.label) for clip in read_clip_list(tmp_path / "c.csv")] == [("id00001/a/b/real.mp4", 0)]
