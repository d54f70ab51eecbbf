"""Checks of clip lists and shard sets, and comparison of shards with official features of the same clips."""

import math
import re
import subprocess
import sys
from pathlib import PurePosixPath

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from avh_shards import ClipMeta, UserError, read_clip_list
from avh_shards.clip import FAKE, REAL
from avh_shards.clip_list import clip_list_text
from avh_shards.errors import Failure
from avh_shards.paths import as_path
from extract.check.clip_list import count_clips, format_missing, missing_files
from extract.check.shards import compare, format_comparison, inspect
from extract.store.shard import StoredClip
from tests.avh_shards.test_shards import features, replaced, rewrite, shard_set
from tests.extract.convert.test_npz import write_npz

CLIPS = [ClipMeta(f"c{n}.mp4", n % 2) for n in range(7)]
FEATURES = {f"c{n}.mp4": features(n + 2, n, multimodal=True) for n in (0, 2, 3, 4, 6)}  # by shard: 0, 2 | 3, 4 | 6
SOUND = np.zeros(640, np.int16)


def write_set(folder, dtype="float32", store=("multimodal", "waveform"), weights="0"):
    """Writes a complete set of three shards to a folder or URL; clips without features are failures."""
    attributes = {"settings": '{"clips_per_shard": 3}', "weights_sha256": weights}
    shards = shard_set(as_path(folder), CLIPS, 3, dtype, store, **attributes)
    for shard in shards.missing():
        listed = shards.clips_of(shard)
        stored = [StoredClip(clip, FEATURES[clip.path], SOUND) for clip in listed if clip.path in FEATURES]
        failed = [Failure(clip.path, "audio", "silent") for clip in listed if clip.path not in FEATURES]
        shards.writer.write(shard, listed, stored + failed)
    return str(folder)


def write_official(folder, paths=FEATURES, change=lambda pair: pair):
    for path in paths:
        visual, audio = change(np.stack(FEATURES[path][:2]))
        write_npz((folder / path).with_suffix(".npz"), visual=visual, audio=audio)
    return folder


@pytest.mark.parametrize("url", [None, "memory://inspection/set"])
def test_a_whole_set_and_one_shard_of_it(tmp_path, url):
    folder = write_set(url or tmp_path)
    one, report = inspect(f"{folder}/features-00001.h5"), inspect(folder)
    assert one.damage == report.damage == []
    assert [clip.path for clip in one.clips] == ["c3.mp4", "c4.mp4"]
    assert [clip.path for clip in report.clips] == list(FEATURES)
    assert (one.shards, one.frames, report.shards, report.frames, report.failures) == (1, 11, 3, 25, 2)
    text = report.text()
    assert "contents         visual (float32), audio (float32), multimodal (float32), waveform (int16)\n" in text
    assert re.search("clips {12}5 in 3 shards, 2 failed\n(.*\n)+all shards are complete$", text)
    assert "frames           11 (0.4 s)\n" in one.text()


def test_faces_are_summed_up_where_they_are_known(tmp_path):
    shares = [(math.nan, math.nan), (0.9, 0.0), (0.625, 0.25)]
    clips = [ClipMeta(f"{n}.mp4", face_share=one, several_faces=more) for n, (one, more) in enumerate(shares)]
    for folder, part in (("unknown", clips[:1]), ("known", clips)):
        shard_set(tmp_path / folder, part).writer.write(0, part, [StoredClip(clip, features(2)) for clip in part])
    assert "faces" not in inspect(f"{tmp_path}/unknown/features-00000.h5").text()
    text = inspect(f"{tmp_path}/known/features-00000.h5").text()
    assert "faces            1 clips with several; fewest frames with one: 62 %, in '2.mp4'\n" in text


def neither(shard, clip):
    return rf"^features-0000{shard}.h5: 'c{clip}.mp4' of the clip list is neither in a shard nor in its failure log$"


LAST_NAN, LAST_INF = (np.float32([[0.0] * 8] * 10 + [[value] * 8]) for value in (np.nan, np.inf))
LOST = neither(1, 3), neither(1, 4)  # the clips of shard 1 if it is unreadable
BOTH = "^features-00000.h5: 'c0.mp4' of the clip list is both in a shard and in its failure log$"
BEYOND = "features-00002.h5: is beyond the last shard", "not in the clip list, .*'c6.mp4'"
OTHERWISE = "^features-00001.h5: differs from the shards before it: .* is .*, not .*$"
BROKEN = "features-00001.h5: not a valid avh-align HDF5 file"

# A shard and a change to it, or a file and a change to its bytes (None: removed); then a pattern for each message.
DAMAGES = {
    "a shard cut short": ("features-00001.h5", lambda data: data[: len(data) * 2 // 3], BROKEN, *LOST),
    "random bytes": ("features-00001.h5", lambda _: np.random.default_rng(0).bytes(5000), BROKEN, *LOST),
    "a shard missing": ("features-00001.h5", None, "^features-00001.h5: is missing$"),
    "the first shard missing": ("features-00000.h5", None, "^features-00000.h5: is missing$"),
    "a wrong offset": (1, replaced("clips/offset", [0, 5, 10]), "00001.h5: /visual .* promise", *LOST),
    "a wrong waveform offset": (1, replaced("waveform/offset", [0, 1, 2]), "00001.h5: /waveform does not fit", *LOST),
    "NaN in visual": (1, replaced("visual", LAST_NAN), "^features-00001.h5: the visual .* 'c4.mp4' hold NaN"),
    "NaN in audio": (1, replaced("audio", LAST_NAN[::-1]), "^features-00001.h5: the audio .* 'c3.mp4' hold NaN"),
    "infinity": (1, replaced("multimodal", -LAST_INF), "^features-00001.h5: the multimodal .* 'c4.mp4' hold NaN"),
    "other weights": (1, lambda shard: shard.attrs.update(weights_sha256="1"), OTHERWISE),
    "other settings": (1, lambda shard: shard.attrs.update(settings='{"clips_per_shard": 4}'), OTHERWISE),
    "other contents": (1, lambda shard: shard.pop("waveform"), OTHERWISE),
    "another dtype": (1, replaced("audio", np.zeros((11, 8), np.float16)), OTHERWISE),
    "a clip twice": (1, replaced("clips/path", ["c3.mp4", "c0.mp4"]), "holds 'c0.mp4', .*-00000.h5 too", neither(1, 4)),
    "a clip renamed": (1, replaced("clips/path", ["x", "c4.mp4"]), neither(1, 3), "not in the clip list, .* 'x'$"),
    "a failure log missing": ("features-00000.failures.jsonl", None, "no such file", neither(0, 1)),
    "a failure log damaged": ("features-00001.failures.jsonl", lambda _: b"{", "not a failure log", neither(1, 5)),
    "a failure of another list": (
        "features-00000.failures.jsonl",
        lambda data: data + data.replace(b"c1", b"z"),
        "'z.mp4'",
    ),
    "another label": ("clips.csv", lambda data: data.replace(b"c0.mp4,0", b"c0.mp4,1"), "'c0.mp4' has a different"),
    "a clip stored and failed": ("features-00000.failures.jsonl", lambda data: data + data.replace(b"c1", b"c0"), BOTH),
    "a clip in neither": ("clips.csv", lambda data: data + b"c7.mp4,,,,,\n", neither(2, 7)),
    "a clip not in the list": ("clips.csv", lambda data: data[: data.index(b"c6")], *BEYOND),
    "no clip list": ("clips.csv", None, "no clips.csv, so missing clips cannot be detected$"),
    "a damaged clip list": ("clips.csv", lambda data: data + b"../x,,,,,\n", "cannot be compared .*clips.csv, line 9"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_each_damage_is_told_by_name_and_nothing_else_is(tmp_path, damage):
    where, change, *wanted = DAMAGES[damage]
    write_set(tmp_path)
    if isinstance(where, int):
        rewrite(tmp_path / f"features-{where:05d}.h5", change)
    else:
        data = (tmp_path / where).read_bytes()
        (tmp_path / where).write_bytes(change(data)) if change else (tmp_path / where).unlink()
    report = inspect(str(tmp_path))
    assert len(report.damage) == len(wanted), report.damage
    for sentence, pattern in zip(report.damage, wanted, strict=True):
        assert re.search(pattern, sentence), sentence
    assert report.text().splitlines()[-len(wanted) :] == report.damage


def test_where_nothing_is_to_inspect_or_to_compare_with(tmp_path):
    for path in (tmp_path, tmp_path / "none", "memory://inspection/none"):
        with pytest.raises(UserError, match="no feature shards"):
            inspect(str(path))
    with pytest.raises(UserError, match="none: no such folder; name the folder of the npz features"):
        compare(write_set(tmp_path), tmp_path / "none")


@pytest.mark.parametrize("url", [None, "memory://inspection/same"])
def test_identical_features_agree(tmp_path, url):
    compared = compare(write_set(url or tmp_path / "set"), write_official(tmp_path / "npz"))
    lengths = {path: (len(stored.visual), len(stored.visual)) for path, stored in FEATURES.items()}
    assert {clip.path: (clip.frames, clip.official_frames) for clip in compared} == lengths
    assert all(clip.agrees and clip.difference == 0 and abs(clip.cosine - 1) < 1e-12 for clip in compared)
    assert format_comparison(compared).splitlines()[-1].startswith("5 of 5 clips agree ")


def test_rounding_agrees_and_a_shift_by_one_frame_does_not(tmp_path):
    folder, official = write_set(tmp_path / "set", "float16", (), "random"), tmp_path / "npz"
    assert "RANDOM AV-HuBERT weights" in inspect(folder).text()
    assert all(clip.agrees and 0 < clip.difference < 2e-3 for clip in compare(folder, write_official(official)))
    write_official(official, change=lambda pair: (pair[0], np.roll(pair[1], 1, axis=0)))
    assert not any(clip.agrees or clip.error for clip in compare(folder, official))


# Change to the official features of clip c3, which has 5 frames; then its official number of frames, and the error.
UNLIKE = {
    "pickled": (lambda pair: (np.array([{}], object), pair[1]), 0, "not a file of npz features .*pickle"),
    "wider": (lambda pair: np.pad(pair, [(0, 0), (0, 0), (0, 1)]), 0, r"\[5, 9\], not float \[T, 8\]"),
    "of two lengths": (lambda pair: (pair[0], np.tile(pair[1], (2, 1))), 0, "differ in length"),
    "flat": (lambda pair: pair.reshape(2, -1), 0, r"\[40\], not float"),
    "empty": (lambda pair: pair[:, :0], 0, "hold no frame"),
    "a number": (lambda pair: (np.float32(1), np.float32(1)), 0, r"float32 \[\], not float"),
    "text": (lambda pair: (np.array(["x"]), np.array(["x"])), 0, "not float"),
    "a hundred times as large": (lambda pair: 100 * pair, 5, "^$"),
    "missing": (None, 0, "no such file: .*c3.npz"),
    "cut short": (None, 0, "not a file of npz features"),
    "NaN": (lambda pair: pair * np.nan, 0, "NaN or infinity"),
    "swapped": (lambda pair: pair[::-1], 5, "^$"),
    "shorter": (lambda pair: pair[:, :-1], 4, "^$"),
    "longer": (lambda pair: np.pad(pair, [(0, 0), (0, 2), (0, 0)]), 7, "^$"),
}


@pytest.mark.parametrize("kind", UNLIKE)
def test_a_file_unlike_ours_is_told_for_its_clip_alone(tmp_path, kind):
    path, (change, frames, error) = write_official(tmp_path / "npz") / "c3.npz", UNLIKE[kind]
    if change:
        write_official(tmp_path / "npz", ["c3.mp4"], change)
    else:
        path.unlink() if kind == "missing" else path.write_bytes(path.read_bytes()[:300])
    compared = compare(write_set(tmp_path / "set"), tmp_path / "npz")
    (clip,) = (clip for clip in compared if not clip.agrees)
    assert (clip.path, clip.frames, clip.official_frames) == ("c3.mp4", 5, frames)
    assert re.search(error, clip.error), clip.error
    assert (clip.cosine > 0.999999) == (kind in ("shorter", "longer", "a hundred times as large"))
    assert format_comparison(compared).splitlines()[-1].startswith("4 of 5 clips agree ")


@hypothesis.given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 99), st.sampled_from(["float16", "float32"]))
@hypothesis.settings(max_examples=15)
def test_the_comparison_is_that_of_a_loop_over_frames(tmp_path_factory, frames, official_frames, seed, dtype):
    folder, clip = tmp_path_factory.mktemp("loop"), ClipMeta("a/b.x.mp4")
    ours, theirs = features(frames, seed), features(official_frames, seed + 1)
    shard_set(folder, [clip], dtype=dtype).writer.write(0, [clip], [StoredClip(clip, ours)])
    write_npz(folder / "a/b.x.npz", visual=theirs.visual, audio=theirs.audio)
    pairs = [pair for n in range(2) for pair in zip(ours[n].astype(dtype).tolist(), theirs[n].tolist(), strict=False)]
    cosine = min(sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b) for a, b in pairs)
    difference = max(abs(x - y) for a, b in pairs for x, y in zip(a, b, strict=True))
    (found,) = compare(str(folder), folder)
    assert (found.path, found.frames, found.official_frames) == (clip.path, frames, official_frames)
    assert (found.cosine, found.difference) == pytest.approx((cosine, difference))


def test_clips_are_counted_by_split_category_and_label():
    clips = [ClipMeta(f"{n}", REAL, "A", "train", f"id{n % 7}") for n in range(1200)]
    clips += [ClipMeta("x", FAKE, "B", "train", segments=((0.0, 1.0), (2.0, 3.0))), ClipMeta("y"), ClipMeta("z")]
    _, *table, total, rest = map(str.split, count_clips(clips).splitlines())
    assert table == [["-", "-", "unknown", "2"], ["train", "A", "real", "1,200"], ["train", "B", "fake", "1"]]
    assert (total, rest) == (["1,203"], ["2", "fake", "segments;", "7", "speakers", "named"])


def test_missing_files_are_those_that_extraction_would_read(tmp_path):
    for name in ("a.avi", "b_roi.mp4", "b.wav", "c_roi.mp4"):
        (tmp_path / name).touch()
    clips = [ClipMeta("a.avi"), ClipMeta("b.mp4"), ClipMeta("c.mp4")]
    missing = {kind: [path.name for path in missing_files(clips, tmp_path, kind)] for kind in ("media", "roi")}
    assert missing == {"media": ["b.mp4", "c.mp4"], "roi": ["a_roi.mp4", "a.wav", "c.wav"]}
    text = format_missing(list(missing_files([ClipMeta(f"{n}") for n in range(1025)], tmp_path))).splitlines()
    assert (text[0], len(text), text[-1]) == ("1,025 files are missing:", 22, "... and 1,005 more")


words = st.text(st.characters(exclude_categories=["C", "Z"]) | st.sampled_from(" ,\"'\\;/#"), max_size=6)
names = words.filter(lambda text: text[:1] not in "/\\." and str(PurePosixPath(text)) == text and ".." not in text)
times = st.tuples(st.floats(0, 1e6), st.floats(0, 1e6)).map(sorted).map(tuple)
fields = {name: words.map(str.strip) for name in ("category", "split", "identity")}
fields |= {"path": names, "label": st.sampled_from([-1, 0, 1]), "segments": st.lists(times, max_size=2).map(tuple)}


@hypothesis.given(st.lists(st.fixed_dictionaries(fields), min_size=1, max_size=4, unique_by=lambda row: row["path"]))
def test_a_list_that_is_written_is_read(tmp_path_factory, rows):
    rows = [row | {"segments": ()} if row["label"] == REAL else row for row in rows]
    path = tmp_path_factory.mktemp("list") / "clips.csv"
    path.write_text(clip_list_text([ClipMeta(**row) for row in rows]), encoding="utf-8")
    assert [{name: getattr(clip, name) for name in fields} for clip in read_clip_list(path)] == rows


# Removed file, command, exit status, expected output.
COMMANDS = {
    "whole": ("", "inspect set", 0, "all shards are complete"),
    "damaged": ("set/clips.csv", "inspect set --against=npz", 1, "no clips.csv, so missing clips"),
    "no shards": ("", "inspect npz", 2, "npz: no feature shards"),
    "agreeing": ("", "inspect set --against=npz", 0, "5 of 5 clips agree"),
    "disagreeing": ("npz/c4.npz", "inspect set --against=npz", 1, "4 of 5 clips agree"),
    "clips twice": ("", "clips --clips=set/clips.csv --dataset=folder --root=set", 2, "replaces --clips and --media"),
    "a split of a list": (
        "",
        "clips --clips=set/clips.csv --media=. --split=test",
        2,
        "clips.csv: has no split 'test'",
    ),
    "a root of a list": ("", "clips --clips=set/clips.csv --root=set", 2, "--root: needs --dataset"),
    "no clips": ("", "clips", 2, "no clips named"),
    "an unknown data set": ("", "clips --dataset=kodf --root=set", 2, "--dataset"),
}


@pytest.mark.parametrize("case", COMMANDS)
def test_commands(tmp_path, monkeypatch, launch, case):
    monkeypatch.chdir(tmp_path)
    write_set(tmp_path / "set")
    write_official(tmp_path / "npz")
    gone, command, wanted, message = COMMANDS[case]
    if gone:
        (tmp_path / gone).unlink()
    status, output = launch(*command.split())
    assert status == wanted, output
    assert message in output
    assert output.count("error:") == (status == 2)
    assert "Traceback" not in output


def test_clips_prints_a_list_that_can_be_read_and_names_what_is_missing(tmp_path):
    folder, again = tmp_path / 'ü, "b"', tmp_path / "again.csv"
    folder.mkdir()
    files = [folder / "9.mp4", folder / "10.mp4"]
    files[0].touch()
    files[1].touch()
    command, options = [sys.executable, "-m", "launch.clips"], {"capture_output": True, "encoding": "utf-8"}
    first = subprocess.run([*command, "--dataset=folder", f"--root={tmp_path}"], **options)
    assert (first.returncode, first.stderr.splitlines()[-1]) == (0, "all files exist")
    again.write_text(first.stdout, encoding="utf-8")
    assert [tmp_path / clip.path for clip in read_clip_list(again)] == files
    files[0].unlink()
    second = subprocess.run([*command, f"--clips={again}", f"--media={tmp_path}"], **options)
    assert (second.returncode, second.stdout) == (1, first.stdout)
    _, row, _, *missing = second.stderr.splitlines()
    assert (row.split(), missing) == (["-", "-", "unknown", "2"], [missing[0], str(files[0])])


def test_splits_of_a_list_and_the_home_folder(tmp_path, monkeypatch, launch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "c.csv").write_text("path,split\na.mp4,train\nb.mp4,val\nc.mp4,test\nd.mp4,\n")
    (tmp_path / "flags").write_text("--media=~\n--split=val,test\n")
    status, output = launch("clips", "--clips=~/c.csv", f"--flagfile={tmp_path}/flags")
    assert status == 1
    assert [line.split(",")[0] for line in output.splitlines()[:4]][1:3] == ["b.mp4", "c.mp4"]
    assert output.splitlines()[-2:] == [f"{tmp_path}/b.mp4", f"{tmp_path}/c.mp4"]
