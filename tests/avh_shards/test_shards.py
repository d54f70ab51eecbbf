"""Tests of the shard format: contents survive a round trip, damage is reported, files appear only when complete."""

import contextlib
import dataclasses
import json
import math
import re
from pathlib import Path

import h5py
import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from avh_shards import ClipMeta, UserError, open_shard
from avh_shards.errors import Failure
from avh_shards.format import list_shards, read_shard_table
from avh_shards.paths import as_path, atomic_write, check_output, local_file, refuse_inputs
from extract.store.shard import ClipFeatures, ShardWriter, StoredClip, check_features, read_failures
from extract.store.shard_set import ShardSet, merge

WIDTH = 8
SETTINGS = json.dumps({"clips_per_shard": 100})
ATTRIBUTES = {"encoder": "test", "weights_sha256": "0", "width": WIDTH, "trimmed": False, "settings": SETTINGS}


def features(length, seed=0, multimodal=False):
    rng = np.random.default_rng(seed)
    return ClipFeatures(*rng.standard_normal((2 + multimodal, length, WIDTH)).astype(np.float32))


def shard_set(folder, clips, per_shard=100, dtype="float32", store=(), **attributes):
    return ShardSet(ShardWriter(folder, dtype, ATTRIBUTES | attributes, store), clips, per_shard)


def write(shards, *outcomes):
    """Writes the first shard of a set."""
    shards.writer.write(0, shards.clips_of(0), outcomes)


def write_one(folder, lengths=(3, 5), **options):
    """Creates a folder with one shard of clips of the given lengths and returns the shard's path."""
    clips = [ClipMeta(f"{n}.mp4", label=n % 2) for n in range(len(lengths))]
    shards = shard_set(folder, clips, **options)
    write(shards, *(StoredClip(clip, features(n, n)) for clip, n in zip(clips, lengths, strict=True)))
    return shards.writer.path(0)


text = st.characters(exclude_categories=["C", "Z"], include_characters=" ")  # characters allowed in a clip list
metas = st.fixed_dictionaries(
    {
        "path": st.text(text, min_size=1, max_size=9),
        "label": st.sampled_from([-1, 0, 1]),
        "category": st.text(text, max_size=5),
        "identity": st.sampled_from(["", "id1", "ü"]),
        "leading_silence": st.floats(0, 9, width=32),
        "trimmed_frames": st.integers(-1, 99),
        "face_share": st.floats(0, 1, width=32),
        "several_faces": st.floats(0, 1, width=32),
        "segments": st.lists(st.tuples(st.floats(0, 9, width=32), st.floats(9, 20, width=32)), max_size=3).map(tuple),
    }
)


@hypothesis.given(st.lists(st.tuples(metas, st.integers(1, 9)), max_size=5, unique_by=lambda item: item[0]["path"]))
def test_what_is_written_is_read(tmp_path_factory, rows):
    rows = [(ClipMeta(**fields), length) for fields, length in rows]
    shards = shard_set(tmp_path_factory.mktemp("s"), [clip for clip, _ in rows])
    stored = [StoredClip(clip, features(length, k)) for k, (clip, length) in enumerate(rows)]
    shards.writer.write(0, shards.clips, stored)
    shard = open_shard(shards.writer.path(0))
    assert shard.clips == tuple(clip for clip, _ in rows)
    assert shard.width == WIDTH
    for (_, wanted, *_), start, stop in zip(stored, shard.offset, shard.offset[1:], strict=False):
        np.testing.assert_array_equal(shard.visual[start:stop], wanted.visual)
        np.testing.assert_array_equal(shard.audio[start:stop], wanted.audio)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_features_are_memory_mapped_in_the_dtype_asked_for(tmp_path, dtype):
    shard = open_shard(write_one(tmp_path, dtype=dtype))
    for array in (shard.visual, shard.audio):
        assert isinstance(array, np.memmap)
        assert array.dtype == dtype
    np.testing.assert_array_equal(shard.visual[:3], features(3, 3).visual.astype(dtype))


def test_unknown_silence_stays_unknown(tmp_path):
    clip = open_shard(write_one(tmp_path)).clips[0]
    assert math.isnan(clip.leading_silence)
    assert clip.trimmed_frames == -1


@pytest.mark.parametrize("column", ["face_share", "several_faces"])
def test_shards_from_before_faces_were_counted_are_read(tmp_path, column):
    path = write_one(tmp_path)
    rewrite(path, replaced(f"clips/{column}", np.float32([0.5, 0.25])))
    assert [getattr(clip, column) for clip in open_shard(path).clips] == [0.5, 0.25]
    rewrite(path, lambda file: file.pop(f"clips/{column}"))
    assert all(math.isnan(getattr(clip, column)) for clip in open_shard(path).clips)


def test_a_segment_may_end_beyond_all_float32_numbers(tmp_path):
    clip = ClipMeta("a", segments=((1.0, 1e300),))
    shards = shard_set(tmp_path, [clip])
    write(shards, StoredClip(clip, features(2)))
    (segment,) = open_shard(shards.writer.path(0)).clips[0].segments
    assert segment == (1.0, float(np.finfo(np.float32).max))


def stored_with_all(lengths) -> list[StoredClip]:
    """Returns clips with every optional content; waveforms and crops identify their clip."""
    return [
        StoredClip(
            ClipMeta(f"{n}"),
            features(length, n, multimodal=True),
            np.full(100 * length + n, n, np.int16),
            np.full((length, 96, 96), n, np.uint8),
        )
        for n, length in enumerate(lengths)
    ]


@pytest.mark.parametrize("store", [(), ("waveform",), ("crops", "multimodal"), ("crops", "multimodal", "waveform")])
def test_optional_contents_are_stored_where_asked_for(tmp_path, store):
    stored = stored_with_all([3, 1, 4])
    shards = shard_set(tmp_path, [clip.meta for clip in stored], store=store)
    write(shards, *stored)
    shard = open_shard(shards.writer.path(0))
    assert {name for name in ("crops", "multimodal", "waveform") if getattr(shard, name) is not None} == set(store)
    for name in set(store) & {"waveform", "crops"}:
        ragged = getattr(shard, name)
        assert isinstance(ragged.value, np.memmap)
        for n, clip in enumerate(stored):
            np.testing.assert_array_equal(ragged[n], getattr(clip, name))
        with pytest.raises(IndexError):
            ragged[3]
    if "multimodal" in store:
        wanted = np.concatenate([clip.features.multimodal for clip in stored])
        np.testing.assert_array_equal(shard.multimodal, wanted)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("waveform/offset", [0, 300, 401, 700], "/waveform does not fit"),
        ("waveform/offset", [0, 500, 401, 803], "/waveform does not fit"),
        ("waveform/value", np.zeros(803, np.int32), "/waveform does not fit"),
        ("crops/value", np.zeros((8, 88, 88), np.uint8), "/crops does not fit"),
        ("crops/offset", [0, 2, 4, 8], "differ in frames per clip"),
        ("multimodal", np.zeros((7, WIDTH), np.float32), "/multimodal is"),
    ],
)
def test_optional_contents_that_do_not_fit_are_refused(tmp_path, name, value, reason):
    stored = stored_with_all([3, 1, 4])
    shards = shard_set(tmp_path, [clip.meta for clip in stored], store=("crops", "multimodal", "waveform"))
    write(shards, *stored)
    rewrite(shards.writer.path(0), replaced(name, value))
    with pytest.raises(UserError, match=reason):
        open_shard(shards.writer.path(0))


def test_every_attribute_of_the_format_is_there(tmp_path):
    attributes = open_shard(write_one(tmp_path)).attributes
    fixed = {"format": "avh-features", "version": 1, "frame_rate": 25, "width": WIDTH, "trimmed": False}
    assert fixed.items() <= attributes.items()
    assert {"encoder", "weights_sha256", "settings", "created_by"} <= attributes.keys()


@pytest.mark.parametrize("part", [0.0, 0.05, 0.3, 0.7, 0.99])
def test_a_shard_cut_short_is_refused(tmp_path, part):
    path = write_one(tmp_path, lengths=(50, 60))
    data = path.read_bytes()
    path.write_bytes(data[: int(part * len(data))])
    with pytest.raises(UserError, match=r"features-00000\.h5: not a valid avh-align"):
        open_shard(path)


def rewrite(path, change):
    with h5py.File(path, "r+") as file:
        change(file)


def replaced(name, value):
    def change(file):
        del file[name]
        file[name] = value

    return change


def with_segment(start, end):
    def change(file):
        replaced("segments/offset", [0, 1, 1])(file)
        replaced("segments/value", np.array([[start, end]], np.float32))(file)

    return change


def compressed(name):
    def change(file):
        values = file[name][:]
        del file[name]
        file.create_dataset(name, data=values, compression="gzip")

    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda f: f.attrs.update(version=2), "version 2"),
        (lambda f: f.attrs.update(format="other"), "format 'other'"),
        (lambda f: f.attrs.pop("format"), "format None"),
        (lambda f: f.attrs.update(width=9), "promise"),
        (lambda f: f.attrs.update(width=0), "attribute 'width' is 0"),
        (lambda f: f.pop("audio"), "audio"),
        (lambda f: f.pop("clips"), "clips"),
        (lambda f: f.pop("segments"), "segments"),
        (replaced("clips/offset", [0, 3, 9]), "promise"),
        (replaced("clips/offset", [0, 3, 3]), "does not rise"),
        (replaced("clips/offset", [1, 3, 8]), "does not rise"),
        (replaced("clips/label", np.int8([1])), "different lengths"),
        (replaced("clips/label", [0.0, 1.0]), "cast"),
        (replaced("clips/label", np.int8([0, 7])), "/clips/label holds a value that is not 0, 1 or -1"),
        (replaced("clips/offset", [0.0, 3.0, 8.0]), "cast"),
        (replaced("clips/path", ["a", "a"]), "twice"),
        (replaced("clips/face_share", np.float32([0.5, 1.5])), "not between 0 and 1"),
        (replaced("clips/several_faces", np.float32([[0.5], [0.5]])), "not a valid avh-align HDF5"),
        (replaced("clips/offset", np.zeros((3, 1), np.int64)), "the wrong shape"),
        (replaced("clips/offset", np.zeros(0, np.int64)), "different lengths"),
        (replaced("segments/value", np.zeros((0, 3), np.float32)), "the wrong shape"),
        (lambda f: (f.pop("visual"), f.create_group("visual")), "not a valid avh-align HDF5"),
        (lambda f: f.attrs.update(frame_rate=30), "30 frames a second"),
        (replaced("segments/offset", [0, 0, 1]), "does not match"),
        (replaced("visual", np.zeros((8, WIDTH), np.int32)), "int32"),
        (replaced("visual", np.zeros(8, np.float32)), "promise"),
        (compressed("audio"), "in chunks, or compressed"),
        (replaced("clips/split", ["test", "a\x1b[2J"]), "control characters"),
        (replaced("clips/path", ["a\u2028", "b"]), "control characters"),
        *((with_segment(*ends), "not 0 <= start <= end") for ends in ((2, 1), (-1, 1), (0, np.inf), (np.nan, 1))),
        (lambda f: f.attrs.update(encoder=["a", "b"]), "not a valid avh-align HDF5"),
    ],
)
def test_a_shard_that_contradicts_itself_is_refused(tmp_path, change, reason):
    path = write_one(tmp_path)
    rewrite(path, change)
    with pytest.raises(UserError, match=reason) as error:
        open_shard(path)
    assert str(path) in str(error.value)


def external_link(file, secret):
    del file["clips/category"]
    file["clips/category"] = h5py.ExternalLink(str(secret), "category")


def hidden_link(file, secret):
    file["other/group/link"] = h5py.ExternalLink(str(secret), "category")


def external_storage(file, secret):
    del file["audio"]
    file.create_dataset("audio", (8, WIDTH), np.float32, external=[(str(secret), 0, h5py.h5f.UNLIMITED)])


def virtual_dataset(file, secret):
    layout = h5py.VirtualLayout((8, WIDTH), np.float32)
    layout[:] = h5py.VirtualSource(str(secret), "audio", (8, WIDTH))
    del file["audio"]
    file.create_virtual_dataset("audio", layout)


@pytest.mark.parametrize("draw_on", [external_link, hidden_link, external_storage, virtual_dataset])
def test_a_file_that_draws_on_others_is_refused(tmp_path, draw_on):
    """Checks that a shard cannot pull other files of the machine into tables; score files use the same function."""
    path, secret = write_one(tmp_path), tmp_path / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["audio"], file["category"] = np.zeros((8, WIDTH), np.float32), ["secret", "secret"]
    rewrite(path, lambda file: draw_on(file, secret))
    with pytest.raises(UserError, match=r"features-00000\.h5: .*(into another file|in other files)"):
        read_shard_table(path)


def test_links_inside_a_file_are_its_own(tmp_path):
    path = write_one(tmp_path)
    rewrite(path, replaced("clips/identity", h5py.SoftLink("/clips/split")))
    assert [clip.identity for clip in open_shard(path).clips] == ["", ""]


def test_a_shard_in_the_home_folder_is_opened(tmp_path, monkeypatch):
    path = write_one(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_shard(f"~/{path.relative_to(tmp_path)}").visual.shape == open_shard(path).visual.shape


def test_missing_shards_are_reported(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        open_shard(tmp_path / "none.h5")
    with pytest.raises(UserError, match=r"memory://none\.h5: cannot be memory-mapped"):
        open_shard("memory://none.h5")
    with pytest.raises(UserError, match="no feature shards"):
        list_shards(tmp_path)


def test_a_file_appears_only_when_whole(tmp_path):
    (tmp_path / "x").write_text("old")
    with contextlib.suppress(RuntimeError), atomic_write(tmp_path / "x") as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").read_text() == "old"
    with atomic_write(tmp_path / "x") as temporary:
        temporary.write_text("new")
        assert (tmp_path / "x").read_text() == "old"
    assert (tmp_path / "x").read_text() == "new"


def test_an_output_is_checked_without_a_trace(tmp_path):
    (tmp_path / "file").write_text("x")
    check_output(tmp_path / "new" / "deep" / "x")
    for path, reason in {"file/x": "not a writable folder", ".": "is a folder or a device"}.items():
        with pytest.raises(UserError, match=reason):
            check_output(tmp_path / path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_output_is_no_input_however_it_is_spelt(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "a.csv")
    inputs = ["a.csv", tmp_path / "b.csv", "s3://bucket/c.csv"]
    for path in (tmp_path / "a.csv", "x/../b.csv", "link", "s3://bucket/c.csv"):
        with pytest.raises(UserError, match="is an input of this command; name another"):
            refuse_inputs(["d.csv", path], inputs)
    refuse_inputs(["d.csv", "x/a.csv", "s3://bucket/d.csv"], inputs)


def test_whole_files_and_shards_at_a_url(tmp_path):
    with atomic_write("memory://whole/x.txt") as temporary:
        temporary.write_text("new")
        assert not as_path("memory://whole/x.txt").exists()
    with local_file("memory://whole/x.txt") as copy:
        assert copy.read_text() == "new"
    with pytest.raises(UserError, match="no such file"), local_file("memory://whole/none"):
        pass
    shards = shard_set(as_path("memory://shards"), [ClipMeta("a"), ClipMeta("b")])
    assert shards.missing() == [0]
    write(shards, Failure("b", "audio", "silent audio"), StoredClip(ClipMeta("a"), features(2)))
    assert shards.missing() == []
    assert merge("memory://shards").stored == 1
    assert [path.name for path in list_shards("memory://shards")] == ["features-00000.h5"]
    assert [clip.path for clip in read_shard_table(shards.writer.path(0)).clips] == ["a"]
    with local_file(shards.writer.path(0)) as copy:
        np.testing.assert_array_equal(open_shard(copy).visual, features(2).visual)


def test_an_unknown_file_system_is_reported():
    with pytest.raises(UserError, match="nowhere://x: cannot be reached"):
        as_path("nowhere://x")


@hypothesis.given(st.integers(1, 40), st.integers(1, 12))
def test_every_clip_belongs_to_exactly_one_shard(count, per_shard):
    clips = [ClipMeta(str(n)) for n in range(count)]
    shards = shard_set(Path("unused"), clips, per_shard)
    dealt = [clip for shard in range(shards.count) for clip in shards.clips_of(shard)]
    assert dealt == clips
    assert all(len(shards.clips_of(shard)) == per_shard for shard in range(shards.count - 1))


def test_a_shard_must_account_for_its_clips(tmp_path):
    shards = shard_set(tmp_path, [ClipMeta("a"), ClipMeta("b")])
    with pytest.raises(AssertionError):
        write(shards, StoredClip(ClipMeta("a"), features(2)))
    assert shards.missing() == [0]
    write(shards, Failure("b", "audio", "silent audio"), StoredClip(ClipMeta("a"), features(2)))
    assert shards.missing() == []
    assert read_failures(tmp_path / "features-00000.failures.jsonl") == [Failure("b", "audio", "silent audio")]


def test_a_shard_may_be_empty(tmp_path):
    shards = shard_set(tmp_path, [ClipMeta("a")], store=("crops", "multimodal", "waveform"))
    assert shards.missing() == [0]
    write(shards, Failure("a", "media", "no such file"))
    assert open_shard(shards.writer.path(0)).clips == ()
    assert merge(tmp_path).failed == 1


def test_a_set_is_summed_up_once_all_shards_are_there(tmp_path):
    shards = shard_set(tmp_path, [ClipMeta("a"), ClipMeta("b"), ClipMeta("c")], 2, settings='{"clips_per_shard": 2}')
    shards.missing()
    assert merge(tmp_path) is None
    shards.writer.write(1, shards.clips_of(1), [StoredClip(ClipMeta("c"), features(5))], {"encode": 1.5})
    assert merge(tmp_path) is None
    outcomes = [Failure("a", "x", "y"), StoredClip(ClipMeta("b"), features(20))]
    shards.writer.write(0, shards.clips_of(0), outcomes, {"encode": 2.0, "wait": 1.0})
    (tmp_path / ".features-00000.h5.1234abcd.part").write_text("left by a killed run")
    summary = merge(tmp_path)
    assert dataclasses.asdict(summary) == json.loads((tmp_path / "extraction.json").read_text())
    counts = {"clips": 3, "stored": 2, "failed": 1, "frames": 25, "video_seconds": 1.0, "shards": 2}
    assert counts.items() <= dataclasses.asdict(summary).items()
    assert (summary.seconds["encode"], summary.seconds["wait"]) == (3.5, 1.0)
    assert not list(tmp_path.glob(".*.part"))


def test_shards_of_another_run_are_refused(tmp_path):
    clips = [ClipMeta("a")]
    shards = shard_set(tmp_path, clips)
    shards.missing()
    write(shards, StoredClip(clips[0], features(2)))
    with pytest.raises(UserError, match="trimmed"):
        shard_set(tmp_path, clips, trimmed=True).missing()
    for changed in (
        [ClipMeta("b")],
        [*clips, ClipMeta("b")],
        [ClipMeta("a", label=1)],
        [ClipMeta("a", segments=((0.0, 1.0),))],
    ):
        with pytest.raises(UserError, match="differs from this run's clip list"):
            shard_set(tmp_path, changed).missing()
    (tmp_path / "features-00001.h5").write_bytes(b"")
    with pytest.raises(UserError, match="beyond the last shard"):
        shard_set(tmp_path, clips).missing()
    (tmp_path / "clips.csv").unlink()
    with pytest.raises(UserError, match="missing next to shards"):
        shard_set(tmp_path, clips).missing()


def test_a_shard_without_its_failure_log_is_refused(tmp_path):
    shards = shard_set(tmp_path, [ClipMeta("a")])
    shards.missing()
    write(shards, StoredClip(ClipMeta("a"), features(2)))
    (tmp_path / "features-00000.failures.jsonl").unlink()
    with pytest.raises(UserError, match=r"failures\.jsonl: no such file"):
        shards.missing()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"visual": np.full((3, WIDTH), np.nan, np.float32)}, "visual features hold NaN"),
        ({"audio": np.full((3, WIDTH), np.inf, np.float32)}, "audio features hold NaN or infinity"),
        ({"audio": np.zeros((2, WIDTH), np.float32)}, "visual has 3 frames, audio 2"),
        ({"audio": np.zeros((3, 7), np.float32)}, r"float32 \[3, 7\]"),
        ({"audio": np.zeros(3, np.float32)}, r"float32 \[3\]"),
        ({"visual": np.zeros((3, WIDTH), np.int64)}, "int64"),
        ({"visual": np.full((3, WIDTH), 1e6, np.float32)}, "exceed the range of float16"),
        ({"visual": np.zeros((0, WIDTH), np.float32), "audio": np.zeros((0, WIDTH), np.float32)}, "no frame"),
        ({}, None),
    ],
)
def test_features_that_cannot_be_stored(change, reason):

    found = check_features(features(3)._replace(**change), WIDTH, "float16")
    assert found is None if reason is None else re.search(reason, found)


def test_clip_records_are_immutable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ClipMeta("a").path = "b"
