"""Clip lists: what is read, and one clear sentence for each mistake."""

import json

import hypothesis
import pytest
from hypothesis import strategies as st

from extract.clips import check_path, inside, read_clip_list
from extract.schema import ClipMeta, InputError


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
    """NaN equals nothing, so it is passed on as the same object."""
    return {"leading_silence": clip.leading_silence}


@pytest.mark.parametrize(("text", "label"), [("0", 0), ("1", 1), ("-1", -1), ("", -1), ("real", 0), ("FAKE", 1)])
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
def test_mistakes_are_told_in_one_sentence(tmp_path, text, reason):
    with pytest.raises(InputError, match=reason) as error:
        read_clip_list(write(tmp_path / "c.csv", text))
    assert "c.csv" in str(error.value)


def test_files_that_are_no_list(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_clip_list(tmp_path / "none.csv")
    with pytest.raises(InputError, match="is a folder; name a text file"):
        read_clip_list(tmp_path)


@hypothesis.given(st.text(max_size=12) | st.lists(st.sampled_from(["..", ".", "a", "b.mp4", ""])).map("/".join))
@hypothesis.settings(suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
def test_an_accepted_path_stays_below_its_root(tmp_path, path):
    try:
        check_path(path)
    except ValueError:
        return
    assert inside(tmp_path, path).resolve().is_relative_to(tmp_path.resolve())
    assert inside(tmp_path, path, ".npz").resolve().is_relative_to(tmp_path.resolve())
