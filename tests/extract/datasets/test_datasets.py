"""Released data sets: every released layout, one clear message for each mistake, and AVH-Align's own lists."""

import csv
import itertools
import json
import os

import av
import hypothesis
import pytest
from hypothesis import strategies as st

from avh_shards import ClipMeta, UserError, read_clip_list
from avh_shards.clip import FAKE, REAL, UNKNOWN
from extract.datasets import DATASETS, read_dataset, select
from extract.datasets.common import of_splits
from extract.datasets.folder import MEDIA_SUFFIXES
from tests.test_walls import JAX_SIDE, TORCH_SIDE, loaded_by

RVRA, RVFA, FVRA, FVFA = (f"{v}Video-{a}Audio" for v in ("Real", "Fake") for a in ("Real", "Fake"))


def plant(root, files):
    """Writes files by path; content that is neither text nor bytes is written as JSON."""
    for path, content in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        content = content if isinstance(content, str | bytes) else json.dumps(content)
        (root / path).write_bytes(content.encode() if isinstance(content, str) else content)
    return root


def described(clips):
    """What a data set says of its clips; what it does not say is the NaN that equals nothing."""
    return [(c.path, c.label, c.category, c.split, c.identity, c.segments) for c in clips]


def av1m(file, kind="real", segments=(), **fields):
    lists = {f"{name}fake_segments": list(segments) for name in ("", "audio_", "visual_")}
    counts = {"original": None, "split": "train", "audio_model": "vits", "video_frames": 200, "audio_frames": 128000}
    return {"file": file, "modify_type": kind} | counts | lists | fields


def lav(file, n_fakes=0, periods=(), **fields):
    rest = {"duration": 4.6, "original": None, "modify_video": False, "modify_audio": False, "split": file[:-11]}
    return {"file": file, "n_fakes": n_fakes, "fake_periods": list(periods)} | rest | fields


FAVC_HEADER = "source,target1,target2,method,category,type,race,gender,path,\n"
FAVC_PLACE = "FakeAVCeleb/RealVideo-RealAudio/African/men/id00076"
FAVC_SHORT = FAVC_PLACE.removeprefix("FakeAVCeleb/")
FAVC_LIST = "source,category,full_path\n"


def favc(letter="A", kind=RVRA, file="00109.mp4", place=FAVC_PLACE):
    return f"id00076,-,-,real,{letter},{kind},African,men,{file},{place}\n"


def lips(*folders):
    return {f"{folder}/{n}.mp4": "" for folder in folders for n in (10, 9)}


AV1M_TRAIN = [
    av1m("id00012/v/00001/real.mp4"),
    av1m("id00012/v/00001/fake_video_fake_audio.mp4", "both_modified", [[0.5, 1], [2, 2.25]]),
    av1m("./id00013/v/00002/real_video_fake_audio.mp4", "audio_modified", [[0, 0.1]]),
    av1m("lrs3/x/fake_video_real_audio.mp4", "visual_modified", [[3.5, 4.0]]),
]
AV1M = {
    "train_metadata.json": AV1M_TRAIN,
    "val_metadata.json": [av1m("a.mp4", segments=[[1, 2]]), av1m("id00014/v/b.mp4", "both_modified")],
    "test_files.txt": "\ufeff000002.mp4\r\n000001.mp4\r\n\r\n",
}
LAV = {
    "metadata.json": [
        lav("test/000001.mp4", 1, [[1, 2.5]], modify_video=True),
        lav("train/000000.mp4"),
        lav("dev/000002.mp4", 2, [[0, 1], [3, 4]], modify_audio=True),
    ]
}
FAVC = {"meta_data.csv": FAVC_HEADER + favc() + favc("B", RVFA, "b.mp4") + favc("C", FVRA, "c.mp4")}


def test_av_deepfake1m(tmp_path):
    assert described(read_dataset("av_deepfake1m", plant(tmp_path, AV1M))) == [
        ("train/id00012/v/00001/real.mp4", REAL, RVRA, "train", "id00012", ()),
        ("train/id00012/v/00001/fake_video_fake_audio.mp4", FAKE, FVFA, "train", "id00012", ((0.5, 1.0), (2.0, 2.25))),
        ("train/id00013/v/00002/real_video_fake_audio.mp4", FAKE, RVFA, "train", "id00013", ((0.0, 0.1),)),
        ("train/lrs3/x/fake_video_real_audio.mp4", FAKE, FVRA, "train", "", ((3.5, 4.0),)),
        ("val/a.mp4", FAKE, RVRA, "val", "", ((1.0, 2.0),)),  # the segments decide, not the type
        ("val/id00014/v/b.mp4", REAL, FVFA, "val", "id00014", ()),
        ("test/000002.mp4", UNKNOWN, "", "test", "", ()),
        ("test/000001.mp4", UNKNOWN, "", "test", "", ()),
    ]


def test_av_deepfake1m_plus_plus(tmp_path):
    files = {f"train/id1/{n}/real.json": av1m(f"id1/{n}/real.mp4") for n in (10, 9, 100)}
    files |= {"train/id1/9/real.mp4": "", "train/id1/9/.real.json": "", "test/000001.mp4": "", "val/a/b.mp4": ""}
    clips = read_dataset("av_deepfake1m", plant(tmp_path, files))
    assert [clip.path for clip in clips] == [f"train/id1/{n}/real.mp4" for n in (9, 10, 100)]
    plant(tmp_path, {"train_metadata.json": AV1M_TRAIN[:1], "val/c.json": av1m("c.mp4", "both_modified", [[1, 2]])})
    clips = read_dataset("av_deepfake1m", tmp_path)
    assert [clip.path for clip in clips] == ["train/id00012/v/00001/real.mp4", "val/c.mp4"]
    assert described(clips)[1] == ("val/c.mp4", FAKE, FVFA, "val", "", ((1.0, 2.0),))


@pytest.mark.parametrize("shape", ["path,", "path,Unnamed: 9", "filename,path", "filename,path,"])
def test_both_shapes_of_fakeavceleb(tmp_path, shape):
    rows = favc() + favc("D", FVFA, "x_wavtolip.mp4") + favc().replace("real,A", "rtvc,A")
    table = FAVC_HEADER.replace("path,", shape) + (rows.replace("\n", ",\n") if shape == "filename,path," else rows)
    expected = [("00109.mp4", REAL, RVRA, "", "id00076", ()), ("x_wavtolip.mp4", FAKE, FVFA, "", "id00076", ())]
    clips = read_dataset("fakeavceleb", plant(tmp_path, {"meta_data.csv": table}))
    assert described(clips) == [(f"{FAVC_SHORT}/{file}", *rest) for file, *rest in expected]
    (tmp_path / "FakeAVCeleb").mkdir()
    clips = read_dataset("fakeavceleb", tmp_path)
    assert described(clips) == [(f"{FAVC_PLACE}/{file}", *rest) for file, *rest in expected]


@pytest.mark.parametrize("above", ["", "AVLips/"])
def test_avlips(tmp_path, above):
    files = lips(f"{above}0_real", f"{above}1_fake") | {f"{above}wav/0_real/9.wav": "", f"{above}0_real/._9.mp4": ""}
    assert described(read_dataset("avlips", plant(tmp_path, files))) == [
        (f"{above}{folder}/{n}.mp4", label, category, "", "", ())
        for folder, label, category in [("0_real", REAL, RVRA), ("1_fake", FAKE, "")]
        for n in (9, 10)
    ]


@pytest.mark.parametrize("name", ["metadata.json", "metadata.min.json"])
def test_lavdf(tmp_path, name):
    plant(tmp_path, {"metadata.min.json": [lav("dev/000009.mp4")]} | {name: LAV["metadata.json"]})
    assert described(read_dataset("lavdf", tmp_path)) == [
        ("test/000001.mp4", FAKE, FVRA, "test", "", ((1.0, 2.5),)),
        ("train/000000.mp4", REAL, RVRA, "train", "", ()),
        ("dev/000002.mp4", FAKE, RVFA, "dev", "", ((0.0, 1.0), (3.0, 4.0))),
    ]


def test_any_folder(tmp_path):
    root = plant(tmp_path / "root", dict.fromkeys(["b/10.MP4", "b/2.mkv", "a.ts", "a.txt", ".h/a.mp4", ".a.mp4"], ""))
    plant(tmp_path, {"elsewhere/x.mp4": ""})
    (root / "link").symlink_to(tmp_path / "elsewhere")
    (root / "z.mp4").symlink_to(tmp_path / "elsewhere/x.mp4")
    expected = [(path, UNKNOWN, "", "", "", ()) for path in ("a.ts", "b/2.mkv", "b/10.MP4", "z.mp4")]
    assert described(read_dataset("folder", root)) == expected


def test_what_a_folder_leaves_out_is_said(tmp_path, capsys):
    names = ["a.txt", "b.TXT", "c.jpg", "none", "v.mp4", ".hidden.txt", "w\u200b.mp4"]
    root = plant(tmp_path / "root", dict.fromkeys(names, ""))
    (root / "link").symlink_to(tmp_path)
    try:
        (root / os.fsdecode(b"b\xff.mp4")).touch()
    except OSError:
        pytest.skip("this file system keeps names in UTF-8 only")
    assert [clip.path for clip in read_dataset("folder", root)] == ["v.mp4"]
    lines = [line.removeprefix(f"warning: {root}: ") for line in capsys.readouterr().err.splitlines()]
    assert lines[0].startswith(f"1 linked folders are left out, the first is {root / 'link'}")
    assert lines[1:] == [
        r"left out: the clip's path 'b\udcff.mp4' holds the byte 0xFF, which is not UTF-8; "
        "remove it, or rename the file",
        r"left out: the clip's path 'w\u200b.mp4' holds U+200B ZERO WIDTH SPACE; remove it, or rename the file",
        "left out: 4 files of other kinds: .txt (2), .jpg (1), without a suffix (1)",
    ]


PICTURES_AND_SOUND = {"avif", "heic", "heif", "mpo", "m4a", "m4b", "isma", "ism", "mka", "mks", "ogg", "ra", "wma"}
READ = ["mov", "matroska", "avi", "flv", "live_flv", "mxf", "nut", "gif", "h264", "hevc", "m4v", "mjpeg", "dv"]
WRITTEN = ["asf", "mpegts", "mpeg", "vob", "dvd", "ogv", "rm", "wtv", "gxf", "swf", "amv", "ivf", "3gp", "psp"]
BY_CONTENT_ONLY = {"mts", "qt", "divx"}  # suffixes that no FFmpeg format lists


def test_a_file_of_any_of_ffmpegs_containers_is_media():
    known = {*BY_CONTENT_ONLY}
    for mode, formats in (("r", READ), ("w", WRITTEN)):
        known |= {name for format in formats for name in av.ContainerFormat(format, mode).extensions}
    assert {f".{name}" for name in known - PICTURES_AND_SOUND} <= MEDIA_SUFFIXES


@pytest.mark.parametrize(("name", "files"), [("av_deepfake1m", AV1M), ("lavdf", LAV)])
def test_splits_are_parts_in_the_same_order(tmp_path, name, files):
    clips = described(read_dataset(name, plant(tmp_path, files)))
    parts = {split: described(read_dataset(name, tmp_path, [split])) for split in dict.fromkeys(c[3] for c in clips)}
    assert all(part and {clip[3] for clip in part} == {split} for split, part in parts.items())
    assert sorted(clips) == sorted(itertools.chain(*parts.values()))
    assert described(read_dataset(name, tmp_path, ["test", "train"])) == [c for c in clips if c[3] in ("train", "test")]


def test_splits_of_a_list_are_kept_by_name():
    clips = [
        ClipMeta("a.mp4", split="val"),
        ClipMeta("b.mp4"),
        ClipMeta("c.mp4", split="train"),
        ClipMeta("d", split="x"),
    ]
    assert of_splits("l.csv", clips, ["train", "val"]) == [clips[0], clips[2]]
    assert of_splits("l.csv", clips, []) == clips
    with pytest.raises(UserError, match=r"^l.csv: has no split 'test'; choose from train, val, x$"):
        of_splits("l.csv", clips, ["val", "test"])


@pytest.mark.parametrize(
    ("name", "files", "splits", "reason"),
    [
        ("lrs3", {}, (), "'lrs3' is not a known data set; choose from av_deepfake1m, "),
        ("av_deepfake1m", {"a.txt": ""}, (), "holds none of train_metadata.json, "),
        ("av_deepfake1m", AV1M, ("dev",), "no split 'dev'; choose from train, val, test"),
        (
            "av_deepfake1m",
            {"train_metadata.json": []},
            ("val",),
            "val_metadata.json: no such file; .* from train, val, test",
        ),
        ("av_deepfake1m", {"train_metadata.json": []}, (), "train_metadata.json: holds no clip"),
        ("av_deepfake1m", {"train_metadata.json": {}}, (), "train_metadata.json: holds no list"),
        ("av_deepfake1m", {"train_metadata.json": "[" * 100_000}, (), "not a readable JSON file"),
        ("av_deepfake1m", {"train_metadata.json": b'[\n"\xff"]'}, (), "line 2: byte 0xff is not UTF-8"),
        ("av_deepfake1m", {"val_metadata.json": [AV1M_TRAIN[0], 3]}, (), "clip 2: has no field 'file'"),
        ("av_deepfake1m", {"val_metadata.json": [av1m("a", "fake")]}, (), "modify_type 'fake' is not one of real, "),
        (
            "av_deepfake1m",
            {"val_metadata.json": [av1m("a"), av1m("a", "real", [[1, 2]])]},
            (),
            "clip 2: contradicts",
        ),
        ("av_deepfake1m", {"test_files.txt": "a.mp4\n../../b.mp4\n"}, (), "test_files.txt, line 2: .*leaves"),
        ("av_deepfake1m", {"train/a.json": av1m("/etc/a.mp4")}, (), "a.json: .*leaves its folder"),
        ("av_deepfake1m", {"train/a.json": av1m(".")}, (), "a.json: .*names no file"),
        ("av_deepfake1m", {"test_files.txt": b"a\n\xff"}, (), "line 2: byte 0xff is not UTF-8"),
        ("fakeavceleb", {}, (), "meta_data.csv: no such file"),
        ("fakeavceleb", FAVC, ("train",), "fakeavceleb: has no split 'train'; it has no splits"),
        ("fakeavceleb", {"meta_data.csv": "a,b\n1,2\n"}, (), "line 2: has no field 'category'"),
        ("fakeavceleb", {"meta_data.csv": FAVC_HEADER + '"'}, (), "line 2: not readable as CSV"),
        ("fakeavceleb", {"meta_data.csv": FAVC_HEADER + "a,b\n"}, (), "line 2: the number of fields"),
        ("fakeavceleb", {"meta_data.csv": FAVC_HEADER[:-2] + "\n" + favc()[:-61] + "\n"}, (), "no field 'Unnamed: 9'"),
        ("fakeavceleb", {"meta_data.csv": FAVC_HEADER + favc("E")}, (), "category 'E' is not one of A, B, C, D"),
        ("fakeavceleb", {"meta_data.csv": FAVC_HEADER + favc("B")}, (), "'B' means RealVideo-FakeAudio, but type is"),
        ("fakeavceleb", {"meta_data.csv": FAVC_HEADER + favc() + favc("B", RVFA)}, (), "line 3: contradicts"),
        ("fakeavceleb", {"meta_data.csv": FAVC_HEADER + favc(file="")}, (), "line 2: .* is empty"),
        ("fakeavceleb", {"meta_data.csv": FAVC_HEADER + "\x01" + favc()}, (), "source is .* not printable"),
        ("avlips", lips("0_real"), (), "1_fake: cannot be listed .No such file"),
        ("avlips", lips("0_real", "1_fake"), ("test",), "has no split 'test'"),
        ("lavdf", {}, (), "metadata.min.json: no such file"),
        ("lavdf", LAV, ("val",), "no split 'val'; choose from train, dev, test"),
        ("lavdf", {"metadata.json": [lav("dev/000009.mp4")]}, ("test",), "metadata.json: .*'test'; choose from dev"),
        ("lavdf", {"metadata.json": [lav("x.mp4", split="val")]}, (), "split 'val' is not one of train, dev, test"),
        ("lavdf", {"metadata.json": [lav("x.mp4", True)]}, (), "n_fakes is True, not a whole number"),
        ("lavdf", {"metadata.json": [lav("x.mp4", modify_audio=1)]}, (), "modify_audio is 1, not true or false"),
        ("lavdf", {"metadata.json": [lav("x.mp4", 0, [[1, 2]])]}, (), "n_fakes is 0 with 1 fake_periods"),
        ("folder", {"a.txt": ""}, (), "holds no clip"),
        ("folder", {"a\nb.mp4": ""}, (), "holds no clip"),
        ("folder", {"a.mp4": ""}, ("train",), "has no split 'train'"),
        ("lavdf", {"metadata.json": '[{"file": "a", "file": "b"}]'}, (), "an object names 'file' twice"),
        (
            "fakeavceleb",
            {"meta_data.csv": FAVC_HEADER.replace("type", "types") + favc()},
            (),
            "no column `type`, but `ty",
        ),
        ("fakeavceleb", {"meta_data.csv": FAVC_HEADER.replace("race", "Type") + favc()}, (), "names .* `type` twice"),
    ]
    + [
        ("lavdf", {"metadata.json": [lav("x.mp4", 1, value)]}, (), f"clip 1: fake_periods .* {reason}")
        for reason, values in {
            "is not of the form": [[3], [[1]], [[1, 2, 3]], [["1", "2"]], [[True, 2]], [{"a": 1}]],
            "must have 0 <= start <= end": [[[2, 1]], [[-1, 2]], [[0, float("nan")]], [[0, 1e999]], [[0, 10**400]]],
        }.items()
        for value in values
    ],
)
def test_mistakes_are_told_in_one_sentence(tmp_path, name, files, splits, reason):
    with pytest.raises(UserError, match=reason) as error:
        read_dataset(name, plant(tmp_path, files), splits)
    assert "\n" not in str(error.value)
    assert name == "lrs3" or splits or str(tmp_path) in str(error.value)


def test_folders_that_are_none(tmp_path):
    for root in (tmp_path / "none", plant(tmp_path, {"file": ""}) / "file"):
        with pytest.raises(UserError, match=f"{root}: no such folder"):
            read_dataset("folder", root)
    with pytest.raises(UserError, match=r"cannot be read \(File name too long\)"):
        read_dataset("folder", tmp_path / ("x" * 300))


ANYTHING = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8), st.lists)


@pytest.mark.parametrize("name", ["av_deepfake1m", "lavdf"])
@hypothesis.given(data=st.data())
@hypothesis.settings(max_examples=60, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
def test_damaged_metadata_gives_whole_clips_or_a_sentence(tmp_path, name, data):
    file, entry = next((f, entries[1]) for f, entries in (AV1M if name == "av_deepfake1m" else LAV).items())
    damaged = entry | {data.draw(st.sampled_from(sorted(entry))): data.draw(ANYTHING)}
    try:
        (clip,) = DATASETS[name](plant(tmp_path, {file: [damaged]}), ())
    except UserError:
        return
    assert clip.category in (RVRA, RVFA, FVRA, FVFA)
    assert (clip.label == FAKE) == (damaged.get("n_fakes", clip.segments) not in (0, ()))
    assert all(0 <= start <= end for start, end in clip.segments)


@pytest.mark.parametrize(("name", "files"), [("av_deepfake1m", AV1M), ("lavdf", LAV), ("fakeavceleb", FAVC)])
def test_a_data_set_written_as_a_clip_list_reads_back(tmp_path, name, files):
    clips = described(read_dataset(name, plant(tmp_path, files)))
    with (tmp_path / "list.csv").open("w", newline="") as file:
        csv.writer(file).writerow(["path", "label", "category", "split", "identity", "fake_segments"])
        csv.writer(file).writerows([*clip[:-1], json.dumps(clip[-1])] for clip in clips)
    assert described(read_clip_list(tmp_path / "list.csv")) == clips


@pytest.mark.parametrize(
    ("name", "files", "listed", "chosen"),
    [
        ("av_deepfake1m", AV1M, "path,label,num_frames\nval/a.mp4,1,9\nid00012/v/00001/real.npz,0,9\n", (4, 0)),
        ("av_deepfake1m", AV1M, "path,label\nAV1M/val/a.mp4,1\nid00014/v/b.mp4,0\n./val/a.mp4 ,1\n", (4, 5)),
        ("fakeavceleb", FAVC, f"{FAVC_LIST}x,B,{FAVC_SHORT}/b.mp4\nx,A,{FAVC_SHORT}/00109.mp4\n", (1, 0)),
        ("fakeavceleb", FAVC, f"{FAVC_LIST}x,B,{FAVC_PLACE}/b.mp4\n", (1,)),
        ("fakeavceleb", FAVC | {"FakeAVCeleb/x": ""}, f"{FAVC_LIST}x,B,{FAVC_SHORT}/b.mp4\n", (1,)),
    ],
)
def test_official_lists(tmp_path, name, files, listed, chosen):
    clips = described(read_dataset(name, plant(tmp_path, files | {"l.csv": listed})))
    assert described(read_dataset(name, tmp_path, selection=tmp_path / "l.csv")) == [clips[n] for n in chosen]


def test_an_official_list_by_command(tmp_path, launch):
    plant(tmp_path, AV1M | {"l.csv": "path,label\nval/a.mp4,1\nid00012/v/00001/real.npz,0\n"})
    clips = read_dataset("av_deepfake1m", tmp_path)
    flags = ["--dataset=av_deepfake1m", f"--root={tmp_path}", f"--selection={tmp_path / 'l.csv'}"]
    status, output = launch("clips", *flags)
    assert status in (0, 1)  # 1: the files are missing
    _, *rows = output.splitlines()
    assert [row.split(",")[0] for row in rows[:2]] == [clips[4].path, clips[0].path]


def test_the_longest_agreement_counts_and_unknown_labels_are_filled(tmp_path):
    clips = [ClipMeta(path) for path in ("x.mp4", "a/x.mp4", "b/c/x.mp4")]
    listed = plant(tmp_path, {"l.csv": "path,label\nx.mp4,0\nr/a/x.mp4,1\nc/x.mp4,0\n"}) / "l.csv"
    assert [(c.path, c.label) for c in select(clips, listed)] == [("x.mp4", 0), ("a/x.mp4", 1), ("b/c/x.mp4", 0)]


@hypothesis.given(st.permutations(range(12)), st.integers(0, 12))
@hypothesis.settings(suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
def test_the_order_is_the_lists(tmp_path, order, count):
    clips = [ClipMeta(f"{n % 3}/{n % 2}/{n}.mp4", n % 2, segments=((0.0, float(n)),)) for n in range(12)]
    wanted = [clips[n] for n in order[: max(count, 1)]]
    text = "".join(f"{clip.path},{clip.label}\n" for clip in wanted)
    assert described(select(clips, plant(tmp_path, {"l.csv": "path,label\n" + text}) / "l.csv")) == described(wanted)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("path,label\n", "holds no clip"),
        ("file,label\na/x.mp4,0\n", "line 2: has no field 'path'"),
        ("path\na/x.mp4\n", "line 2: has no field 'label'"),
        ("path,label\na/x.mp4,2\n", "label '2' is not one of 0, 1"),
        ("path,label\na/x.mp4,1\n", "line 2: labels 'a/x.mp4' 1, but the data set 0"),
        ("source,category,full_path\ni,B,a/x.mp4\n", "labels 'a/x.mp4' 1, but the data set 0"),
        ("source,category,full_path\ni,real,a/x.mp4\n", "category 'real' is not one of A, B, C, D"),
        ("path,label\na/x.mp4,0\ny.mp4,0\n", "line 3: 'y.mp4' is not in the data set"),
        ("path,label\nc/x.mp4,0\n", "is not in the data set"),
        ("path,label\nx.mp4,0\n", "'x.mp4' could be 'a/x.mp4' or 'b/x.mp4'"),
        ("path,label\n../a/x.mp4,0\n", "leaves its folder"),
        ("path,label\n,0\n", "empty"),
        ("path,label\nu.mp4,0\nu.mp4,1\n", "line 3: contradicts an earlier entry of 'u.mp4'"),
    ],
)
def test_wrong_lists(tmp_path, text, reason):
    clips = [ClipMeta("a/x.mp4", REAL), ClipMeta("b/x.mp4", REAL), ClipMeta("u.mp4")]
    with pytest.raises(UserError, match=reason) as error:
        select(clips, plant(tmp_path, {"l.csv": text}) / "l.csv")
    assert f"{tmp_path / 'l.csv'}" in str(error.value)


def test_the_room_needs_neither_side():
    (loaded,) = loaded_by(["extract.datasets"])
    assert not loaded & {*JAX_SIDE, *TORCH_SIDE}
