"""Tests of clip lists: the columns read, a clear message for each mistake, and the files that paths name."""

import json
import os
import unicodedata
import zipfile

import hypothesis
import pytest
from hypothesis import strategies as st

from avh_shards import ClipMeta, UserError, read_clip_list
from avh_shards.clip import FAKE, REAL
from avh_shards.clip_list import check_path, clip_list_text, inside, near_name
from extract.check.clip_list import format_missing, missing_files, warn_of_contradictions
from extract.media import read_audio


def write(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))
    return path


def test_every_column_is_read(tmp_path):
    segments = json.dumps([[0.5, 1.25]])
    path = write(
        tmp_path / "c.csv",
        "identity,path,label,category,split,fake_segments,other\n"
        f'id7,a/b.mp4,1,RealVideo-FakeAudio,test,"{segments}",x\n'
        "id8,ü ö.mp4,0,,,,\n",
    )
    first, second = read_clip_list(path)
    assert first == ClipMeta(
        "a/b.mp4", 1, "RealVideo-FakeAudio", "test", "id7", segments=((0.5, 1.25),), **unknown(first)
    )
    assert second == ClipMeta("ü ö.mp4", 0, identity="id8", **unknown(second))


def unknown(clip):
    """Passes on the same NaN object, because NaN equals nothing."""
    return {"leading_silence": clip.leading_silence}


LABELS = {"0": 0, "1": 1, "-1": -1, "": -1, "real": 0, "FAKE": 1, "unknown": -1, " 1 ": 1, "0.0": 0, "1.0": 1}


@pytest.mark.parametrize(("text", "label"), LABELS.items())
def test_labels(tmp_path, text, label):
    assert read_clip_list(write(tmp_path / "c.csv", f"path,label\na.mp4,{text}\n"))[0].label == label


def test_a_byte_order_mark_and_windows_line_ends_do_no_harm(tmp_path):
    path = write(tmp_path / "c.csv", "path,label\r\na.mp4,0\r\n", "utf-8-sig")
    assert [clip.path for clip in read_clip_list(path)] == ["a.mp4"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no column `path`"),
        ("file,label\na.mp4,0\n", "no column `path`"),
        ("path,label\n", "no clip"),
        ("path\na.mp4\nb.mp4\na.mp4\n", "line 4: 'a.mp4' is also in line 2"),
        ("path\n../a.mp4\n", "line 2: .*leaves its folder"),
        ("path\na/../../b.mp4\n", "leaves its folder"),
        ("path\n/etc/passwd\n", "leaves its folder"),
        ("path\na\\\\..\\\\..\\\\b.mp4\n", "leaves its folder"),
        ("path,label\n,0\n", "line 2: the clip's path is empty"),
        ("path,label\n.,0\n", "names no file"),
        ("path,label\na\x00.mp4,0\n", "line 2: holds a NUL character; save the file as UTF-8"),
        ("path,label\na.mp4,2\n", "label '2'"),
        ("path,label\na.mp4\n", "number of fields"),
        ("path,label\na.mp4,0,1\n", "number of fields"),
        ("path,category\na.mp4,x\x01\n", "line 2: category .* holds U[+]0001"),
        ("path,fake_segments\na.mp4,3\n", "fake_segments 3 is not of the form"),
        ('path,fake_segments\na.mp4,"[[2, 1]]"\n', "start <= end"),
        ('path,fake_segments\na.mp4,"[[0, NaN]]"\n', "start <= end"),
        ('path\nb.mp4\n"a.mp4\nc.mp4\n', "line 3: not readable as CSV .*check the quotes from this line on"),
    ],
)
def test_mistakes_are_reported_in_one_sentence(tmp_path, text, reason):
    with pytest.raises(UserError, match=reason) as error:
        read_clip_list(write(tmp_path / "c.csv", text))
    assert "c.csv" in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        "path,label\nsub/a.mp4,0\nb.mp4,1\n",
        "path, label\nsub/a.mp4, 0\nb.mp4, 1\n",
        "Path,LABEL \n sub/a.mp4\t,0\nb.mp4 ,1\n",
        "path;label\r\nsub/a.mp4;0\r\n;\r\nb.mp4;1\r\n",
        "path\tlabel\nsub/a.mp4\t0\nb.mp4\t1\n",
        '"path"|"label"\n"sub/a.mp4"|"0"\nb.mp4|1\n',
        "path,label\rsub/a.mp4,0\rb.mp4,1\r",
        "\n,path,label\n0,./sub/a.mp4,0\n\n,,\n1,b.mp4,1\n",
        'label, path, fake_segments\n0, sub/a.mp4, "[]"\n1, b.mp4,\n',
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_lists_of_other_programs_are_read(tmp_path, text, encoding):
    clips = read_clip_list(write(tmp_path / "c.csv", text, encoding))
    assert [(clip.path, clip.label) for clip in clips] == [("sub/a.mp4", 0), ("b.mp4", 1)]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("path,labels\na.mp4,0\n", "line 1: no column `label`, but `labels`; rename it"),
        ("path,lable\na.mp4,0\n", "no column `label`, but `lable`"),
        ("path,label\u200b\na.mp4,0\n", r"no column `label`, but `label\\u200b`"),
        ("path,label,catagory\na.mp4,0,x\n", "no column `category`, but `catagory`"),
        ("path,label,Segments\na.mp4,0,[]\n", "no column `fake_segments`, but `Segments`"),
        ("paths,label\na.mp4,0\n", "no column `path`, but `paths`"),
        ("path,label,Label\na.mp4,0,1\n", "line 1: names the column `label` twice"),
        ("path,note, note\na.mp4,0,1\n", "names the column `note` twice"),
        ("path:label\na.mp4:0\n", r"no column `path` in the header \(path:label\)"),
        ("a.mp4,0\nb.mp4,1\n", r"no column `path` in the header \(a.mp4, 0\)"),
        ("path,label\n\na.mp4\n", r"line 3: .*number of fields differs from the header: 1, not 2 \(path, label\)"),
        ('path,label\n"a\n.mp4",0\n', "line 2: .*holds U[+]000A"),
        ("path\na\u200b.mp4\n", r"line 2: the clip's path 'a\\u200b.mp4' holds U[+]200B ZERO WIDTH SPACE"),
        ("path\na\u202f.mp4\n", "holds U[+]202F NARROW NO-BREAK SPACE"),
        ("path\nhttp://host/a.mp4\n", "line 2: .*is a URL"),
        (f"path\n{'é' * 128}.mp4\n", "line 2: .*more than 255 bytes"),
        ("path,label\na.mp4,true\n", r"line 2: label 'true' is not one of 0 \(real\), 1 \(fake\), -1 \(unknown\)"),
        ('path,label,fake_segments\na.mp4,0,"[[0, 0.1]]"\n', "line 2: has fake_segments, but is labelled real"),
        ('path,fake_segments\na.mp4,"[[true, 2]]"\n', "is not of the form"),
        ('path,fake_segments\na.mp4,"{""ab"": 1}"\n', "is not of the form"),
        (f"path,fake_segments\na.mp4,{'[' * 100_000}\n", "line 2: fake_segments .* is not JSON"),
        (f"path,label\na.mp4,{'0' * 200_000}\n", "line 2: not readable as CSV .field larger"),
    ],
)
def test_the_line_the_column_or_the_character_is_named(tmp_path, text, reason):
    with pytest.raises(UserError, match=reason) as error:
        read_clip_list(write(tmp_path / "c.csv", text))
    assert str(error.value).startswith(f"{tmp_path / 'c.csv'}, line ")
    assert str(error.value).isprintable()


def test_columns_that_are_not_read_are_named(tmp_path, capsys):
    read_clip_list(write(tmp_path / "c.csv", ",path,label,num_frames,Unnamed: 0\n0,a.mp4,0,50,1\n"))
    assert capsys.readouterr().err == ""
    read_clip_list(write(tmp_path / "c.csv", "path,label,speaker,\x1b[2J\na.mp4,0,x,y\n"))
    assert capsys.readouterr().err.endswith("line 1: columns that are not read: speaker, \\x1b[2J\n")


def test_files_that_are_not_lists(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_clip_list(tmp_path / "none.csv")
    with pytest.raises(UserError, match="is a folder; name a text file"):
        read_clip_list(tmp_path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("path\nb.mp4\nü.mp4\n".encode("latin-1"), "line 3: byte 0xfc is not UTF-8; save the file as UTF-8"),
        ("path\nü.mp4\n".encode("utf-16") + b"x", "line 3: byte 0x78 is not UTF-16"),
        ("path\na.mp4\n".encode("utf-16-le"), "line 1: holds a NUL character; save the file as UTF-8"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "is an Excel workbook; save it as CSV"),
        (b"\x1f\x8b\x08", "is compressed by gzip"),
    ],
)
def test_other_files_under_the_name_of_a_list(tmp_path, content, reason):
    (tmp_path / "c.csv").write_bytes(content)
    with pytest.raises(UserError, match=reason):
        read_clip_list(tmp_path / "c.csv")


def test_a_spreadsheet_a_pipe_a_device_and_a_giant_are_refused_unread(tmp_path):
    with zipfile.ZipFile(tmp_path / "c.csv", "w") as archive:
        archive.writestr("xl/workbook.xml", "")
    os.mkfifo(tmp_path / "pipe")
    with (tmp_path / "giant.csv").open("wb") as file:
        file.truncate(2**40)  # a sparse file
    reasons = {"c.csv": "a spreadsheet", "pipe": "a pipe or a device", "/dev/zero": "a pipe or a device"}
    for name, reason in (reasons | {"giant.csv": "has 1,099,511,627,776 bytes"}).items():
        with pytest.raises(UserError, match=reason):
            read_clip_list(tmp_path / name)


def test_names_that_begin_or_end_with_blanks_survive_a_list(tmp_path):
    paths = [" a.mp4", "b.mp4 ", "sub/ c ", " "]
    listed = read_clip_list(write(tmp_path / "c.csv", clip_list_text([ClipMeta(path) for path in paths])))
    assert [clip.path for clip in listed] == paths
    spelt = read_clip_list(write(tmp_path / "d.csv", 'path\n" a.mp4"\n'))
    assert [clip.path for clip in spelt] == ["a.mp4"]


DECOMPOSED = unicodedata.normalize("NFD", "médias/é.mp4")

# Existing files, the listed path, and the file that is found for it, or None.
MEANT = {
    "itself": (["a.mp4", " a.mp4"], " a.mp4", " a.mp4"),
    "Unicode form": ([DECOMPOSED], unicodedata.normalize("NFC", DECOMPOSED), DECOMPOSED),
    "other Unicode form": (["é.mp4"], unicodedata.normalize("NFD", "é.mp4"), "é.mp4"),
    "its own Unicode form first": (["é.mp4", unicodedata.normalize("NFD", "é.mp4")], "é.mp4", "é.mp4"),
    "backslashes": (["sub/c.mp4"], "sub\\c.mp4", "sub/c.mp4"),
    "its own backslash first": (["sub/c.mp4", "sub\\c.mp4"], "sub\\c.mp4", "sub\\c.mp4"),
    "blanks": (["sub /c.mp4 "], "sub/c.mp4", "sub /c.mp4 "),
    "several": (["c.mp4 ", " c.mp4"], "c.mp4", None),
    "case": (["c.MP4"], "c.mp4", None),
    "nothing": (["d.mp4"], "c.mp4", None),
}


@pytest.mark.parametrize("kind", MEANT)
def test_the_file_that_a_path_means(tmp_path, kind):
    files, path, meant = MEANT[kind]
    for file in files:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    assert inside(tmp_path, path) == tmp_path / (meant or path)
    assert [*missing_files([ClipMeta(path)], tmp_path)] == ([] if meant else [tmp_path / path])


def test_the_suffix_comes_before_the_spelling(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/c.npz").touch()
    assert inside(tmp_path, "sub\\c.mp4", ".npz") == tmp_path / "sub/c.npz"


def test_a_file_that_appears_is_found(tmp_path):
    assert inside(tmp_path, "a.mp4") == tmp_path / "a.mp4"
    os.utime(tmp_path, (0, 0))
    assert inside(tmp_path, "a.mp4") == tmp_path / "a.mp4"
    (tmp_path / "a.mp4 ").touch()
    assert inside(tmp_path, "a.mp4") == tmp_path / "a.mp4 "


@pytest.mark.parametrize(("there", "path", "meant"), [("Sub/c.mp4", "sub/c.mp4", "Sub"), ("c.mp4", "C.MP4", "c.mp4")])
def test_a_missing_file_of_another_case_is_named(tmp_path, there, path, meant):
    (tmp_path / there).parent.mkdir(exist_ok=True)
    (tmp_path / there).touch()
    missing = tmp_path / path
    assert near_name(missing) == f"; did you mean {meant!r}?"
    assert format_missing([missing]).endswith(f"{missing}; did you mean {meant!r}?")
    with pytest.raises(UserError, match=f"no such file: {missing}; did you mean '{meant}'"):
        read_audio(missing)
    assert near_name(tmp_path / "none" / path) == ""


def test_clips_that_contradict_themselves_are_counted(capsys):
    clips = [
        ClipMeta("a.mp4", FAKE, segments=((0.0, 2.0), (3.0, 4.0), (1.5, 2.5))),
        ClipMeta("b.mp4", FAKE, segments=((0.0, 1.0), (1.0, 2.0))),
        ClipMeta("c.mp4", FAKE, "RealVideo-RealAudio", segments=((0.0, 1.0),)),
        ClipMeta("d.mp4", REAL, "FakeVideo-FakeAudio"),
        ClipMeta("e.mp4", REAL, "RealVideo-RealAudio"),
        ClipMeta("f.mp4", FAKE, "FakeVideo-RealAudio"),
        ClipMeta("g.mp4", FAKE, "FakeVideo-RealAudio"),
        ClipMeta("sub/é .mp4"),
        ClipMeta(unicodedata.normalize("NFD", "sub\\é .mp4 ")),
    ]
    warn_of_contradictions(clips)
    warnings = capsys.readouterr().err.splitlines()
    for warning, (count, what, first) in zip(
        warnings,
        [
            (1, "have the same path as another clip except for Unicode form", clips[-1].path),
            (1, "have fake segments that overlap", "a.mp4"),
            (1, "are labelled fake, but have category RealVideo-RealAudio", "c.mp4"),
            (1, "are labelled real, but have category", "d.mp4"),
            (2, "are labelled fake without fake segments, unlike others", "f.mp4"),
        ],
        strict=True,
    ):
        assert warning.startswith(f"warning: {count} clips {what}")
        assert warning.endswith(f"the first is {first!r}")
    warn_of_contradictions([*clips[1:2], clips[4]])
    warn_of_contradictions(clips[5:-1])  # no fake has segments
    assert capsys.readouterr().err == ""


@hypothesis.given(st.text(max_size=12) | st.lists(st.sampled_from(["..", ".", "a", "b.mp4", ""])).map("/".join))
@hypothesis.settings(suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
def test_an_accepted_path_stays_below_its_root(tmp_path, path):
    try:
        check_path(path)
    except ValueError:
        return
    assert inside(tmp_path, path).resolve().is_relative_to(tmp_path.resolve())
    assert inside(tmp_path, path, ".npz").resolve().is_relative_to(tmp_path.resolve())
