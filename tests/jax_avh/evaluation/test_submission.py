"""Submissions: contents of the zip, matching of files to clips, and all errors."""

import dataclasses
import json
import os
import zipfile

import numpy as np
import pytest

from avh_shards import ClipMeta, UserError
from avh_shards.clip import offsets
from jax_avh.evaluation import submission
from jax_avh.evaluation.localisation import confidence, table_proposals
from jax_avh.evaluation.submission import write_submission
from jax_avh.scores import ScoreTable, write_scores


def make_table(paths=("test/b.mp4", "test/a.mp4", "val/a.mp4", "test/x/c.mp4"), trimmed=(-1, 0, 0, 10), **attributes):
    clips = tuple(ClipMeta(path, trimmed_frames=count) for path, count in zip(paths, trimmed, strict=True))
    frame = np.random.default_rng(0).standard_normal(30 * len(clips)).astype(np.float32)
    clip = np.linspace(-40, 60, len(clips)).astype(np.float32)
    return ScoreTable("m", clips, offsets([30] * len(clips)), frame, clip, attributes)


@pytest.fixture
def submit(tmp_path):
    """Returns a function that maps a table and the list's text to the summary and the zip's path."""

    def run(table: ScoreTable, text: str):
        (tmp_path / "test_files.txt").write_text(text)
        return write_submission(table, tmp_path / "test_files.txt", tmp_path / "s.zip"), tmp_path / "s.zip"

    return run


def read(path):
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == ["prediction.txt", "prediction.json"]
        return archive.read("prediction.txt").decode(), json.loads(archive.read("prediction.json"))


def test_a_submission_holds_scores_and_segments_in_the_order_of_the_list(submit):
    table = make_table()
    said, path = submit(table, "c.mp4\ntest/a.mp4\r\nb.mp4\n")
    text, segments = read(path)
    rows = [line.split(";") for line in text.splitlines()]
    assert [name for name, _ in rows] == list(segments) == ["c.mp4", "test/a.mp4", "b.mp4"]
    assert [float(score) for _, score in rows] == confidence(table.clip[[3, 1, 0]]).tolist()
    assert len({score for _, score in rows}) == 3  # a sigmoid would make 60 and 40 equal
    own = table_proposals(table)
    for name, clip, shift in (
        ("c.mp4", "test/x/c.mp4", 10 / 25),
        ("test/a.mp4", "test/a.mp4", 0),
        ("b.mp4", "test/b.mp4", 0),
    ):
        np.testing.assert_allclose(segments[name], own[clip] + [0, shift, shift], rtol=1e-6)
        assert (np.diff(np.array(segments[name])[:, 0]) <= 0).all()
    count = sum(map(len, segments.values()))
    assert said == f"{path}: 3 clips, {count} segments; 1 scored clips are not in {path.with_name('test_files.txt')}"


def test_an_identical_path_takes_precedence_over_longer_ones(submit):
    table = make_table(("test/a.mp4", "a.mp4"), (0, 0))
    text, _ = read(submit(table, "a.mp4\n")[1])
    assert float(text.split(";")[1]) == confidence(table.clip)[1]


def test_times_have_no_more_digits_than_they_need(submit):
    _, segments = read(submit(make_table(), "b.mp4\n")[1])
    assert all(round(time, 2) == time for row in segments["b.mp4"] for time in row[1:])


def test_a_submission_is_reproducible_byte_by_byte(submit, monkeypatch):
    first = submit(make_table(), "b.mp4\n")[1].read_bytes()
    monkeypatch.setattr("time.time", lambda: 2e9)
    assert submit(make_table(), "b.mp4\n")[1].read_bytes() == first


def test_a_submission_may_exceed_the_limit_of_a_plain_zip(submit, monkeypatch):
    expected = read(submit(make_table(), "b.mp4\n")[1])
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 10)  # bytes
    assert read(submit(make_table(), "b.mp4\n")[1]) == expected


def test_random_weights_are_reported(submit):
    assert "RANDOM" in submit(make_table(weights_sha256="random"), "b.mp4\n")[0]


REFUSED = {
    "no such clip": ("b.mp4\nd.mp4\ne.mp4\n", "2 of its 3 files have no score, the first is 'd.mp4'"),
    "part of a name": ("p4\n", "1 of its 1 files"),
    "an ambiguous name": ("a.mp4\n", "'a.mp4' matches 'test/a.mp4' and 'val/a.mp4'"),
    "one clip by two names": ("c.mp4\nx/c.mp4\n", "are the same clip"),
    "an empty list": ("\n\n", "test_files.txt: names no file"),
    "a separator": ("b.mp4\n\na;b.mp4\n", "line 3: 'a;b.mp4' is not a file name"),
    "a line twice": ("b.mp4\nc.mp4\nb.mp4\n", "line 3: 'b.mp4' is also in line 1"),
}


@pytest.mark.parametrize("mistake", REFUSED)
def test_a_wrong_list_is_rejected(submit, tmp_path, mistake):
    text, expected = REFUSED[mistake]
    with pytest.raises(UserError) as error:
        submit(make_table(), text)
    assert expected in str(error.value)
    assert "test_files.txt" in str(error.value)
    assert not (tmp_path / "s.zip").exists()


def test_other_mistakes_are_rejected(submit, tmp_path):
    with pytest.raises(UserError, match="no frame scores"):
        submit(dataclasses.replace(make_table(), frame=None), "b.mp4\n")
    with pytest.raises(UserError, match=r"none\.txt: no such file"):
        write_submission(make_table(), tmp_path / "none.txt", tmp_path / "s.zip")
    (tmp_path / "list.txt").write_bytes(b"b.mp4\n\xe9.mp4\n")
    with pytest.raises(UserError, match="line 2: byte 0xe9 is not UTF-8"):
        write_submission(make_table(), tmp_path / "list.txt", tmp_path / "s.zip")
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(UserError, match="a pipe or a device"):
        write_submission(make_table(), tmp_path / "pipe.txt", tmp_path / "s.zip")
    with pytest.raises(UserError, match=r"name it \.zip"):  # neither the list nor the scores are overwritten
        write_submission(make_table(), tmp_path / "list.txt", tmp_path / "list.txt")
    write_scores(make_table(), tmp_path / "scores.zip")
    with pytest.raises(UserError, match=r"scores\.zip: is an input"):
        submission.submit(tmp_path / "scores.zip", tmp_path / "list.txt", tmp_path / "scores.zip")


def test_the_command(tmp_path, launch):
    write_scores(make_table(), tmp_path / "s.h5")
    (tmp_path / "l.txt").write_text("b.mp4\n")
    flags = {"scores": tmp_path / "s.h5", "test_files": tmp_path / "l.txt", "output": tmp_path / "s.zip"}
    status, output = launch("submit", *(f"--{name}={value}" for name, value in flags.items()))
    assert status == 0, output
    assert "1 clips" in output
    assert read(tmp_path / "s.zip")[0].startswith("b.mp4;")
    status, output = launch("submit", *(f"--{name}={value}" for name, value in (flags | {"test_files": "x"}).items()))
    assert (status, output) == (2, "error: x: no such file; it comes with the data set\n")
