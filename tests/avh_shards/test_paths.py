"""Tests of outputs: files that belong together appear together, commands replace only files of their own kind, and
unwritable paths are rejected before the work starts."""

import contextlib
import errno
import json
import os
import stat

import pytest

from apps.demo import demo
from apps.sweep import make_trials
from avh_shards import ClipMeta, UserError
from avh_shards.format import results_folder
from avh_shards.paths import (
    HTML,
    PNG,
    as_path,
    atomic_write,
    atomic_writes,
    check_output,
    check_outputs,
    file_lock,
    locked,
)
from extract.convert.weights import convert_weights
from extract.run.job import ExtractSettings, Job
from jax_avh.config import check_config
from jax_avh.configs import list_all_settings, make_config
from jax_avh.evaluation.submission import submit
from jax_avh.inference import score_shards
from jax_avh.report.audit import write_audit
from jax_avh.report.results import FILES, write_results
from jax_avh.scores import write_scores
from tests import rules
from tests.jax_avh.data.test_batches import make_source
from tests.jax_avh.evaluation.test_evaluate import make_table
from tests.runs import train


def contents(folder) -> dict[str, bytes]:
    """Returns the contents of the files that a reader of a folder sees."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


@pytest.fixture
def moments(monkeypatch):
    """Returns a function that records a folder at each appearance or removal of a file, as a kill may leave it."""

    def watch(folder) -> list[dict[str, bytes]]:
        seen = []
        for name in ("replace", "unlink"):
            original = getattr(os, name)

            def step(*arguments, original=original, **options):
                original(*arguments, **options)
                seen.append(contents(folder))

            monkeypatch.setattr(os, name, step)
        return seen

    return watch


def assert_never_mixed(seen, old, new, first) -> None:
    """Asserts that each moment shows only old or only new files, and all of them if it shows the first."""
    assert len(seen) > 2
    for state in seen:
        one = next((whole for whole in (old, new) if state.items() <= whole.items()), None)
        assert one is not None, sorted(state)
        assert first not in state or state == one


def test_files_that_belong_together_are_never_mixed(tmp_path, moments):
    names = ["a", "b", "c"]
    for text in ("old", "new"):
        before = contents(tmp_path)
        seen = moments(tmp_path)
        with atomic_writes([tmp_path / name for name in names]) as drafts:
            for draft in drafts:
                draft.write_text(text)
            assert contents(tmp_path) == before
        assert contents(tmp_path) == dict.fromkeys(names, text.encode())
    assert_never_mixed(seen, before, contents(tmp_path), "a")
    with contextlib.suppress(RuntimeError), atomic_writes([tmp_path / name for name in names]) as drafts:
        drafts[0].write_text("half")
        raise RuntimeError
    assert contents(tmp_path) == dict.fromkeys(names, b"new")
    assert len(list(tmp_path.iterdir())) == 3  # no temporaries


def test_an_evaluation_is_never_mixed_with_an_older_one(tmp_path, moments):
    write_scores(make_table(), tmp_path / "a.h5")
    write_scores(make_table("other", clips=("x.mp4", "y.mp4", "z.mp4")), tmp_path / "b.h5")
    out = tmp_path / "out"
    write_results([tmp_path / "a.h5"], out, resamples=5)
    old, seen = contents(out), moments(out)
    write_results([tmp_path / "b.h5"], out, resamples=5)
    assert set(old) == set(contents(out)) == set(FILES)
    assert_never_mixed(seen, old, contents(out), "metrics.json")


def test_an_audit_is_never_mixed_with_one_of_other_sets(tmp_path, moments):
    for name, lengths in {"one": [3, 5], "two": [4, 9]}.items():
        make_source(tmp_path / name, lengths, labels=[0, 1])
    out = tmp_path / "out"
    write_audit([tmp_path / "one"], out)
    old, seen = contents(out), moments(out)
    write_audit([tmp_path / "two"], out)
    assert set(contents(out)) == {"audit.json", "two_length.png"}
    assert_never_mixed(seen, old, contents(out), "audit.json")


def test_names_in_an_older_audit_lead_nowhere_else(tmp_path):
    make_source(tmp_path / "s", [3, 5])
    (tmp_path / "out").mkdir()
    (tmp_path / "victim_length.png").write_bytes(b"kept")
    (tmp_path / "out" / "mine_length.png").write_bytes(b"kept")
    (tmp_path / "out" / "audit.json").write_text(json.dumps({"sources": {"../victim": {}, "x" * 300: {}}}))
    write_audit([tmp_path / "s"], tmp_path / "out")
    for name in ("victim_length.png", "out/mine_length.png"):
        assert (tmp_path / name).read_bytes() == b"kept"


def test_what_a_killed_run_left_is_removed_by_the_next_and_what_a_live_one_writes_is_not(tmp_path):
    (tmp_path / ".x.h5.0badf00d.part").write_text("left")
    with atomic_write(tmp_path / "x.h5") as one, atomic_write(tmp_path / "x.h5") as two:
        assert {path.name for path in tmp_path.iterdir()} == {one.name, two.name}
        one.write_text("one")
        two.write_text("two")
    assert contents(tmp_path) == {"x.h5": b"one"}
    assert len(list(tmp_path.iterdir())) == 1


def test_a_link_is_written_through(tmp_path):
    (tmp_path / "link").symlink_to("target")
    with atomic_write(tmp_path / "link") as temporary:
        temporary.write_text("x")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_text() == "x"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
@pytest.mark.parametrize("named", [True, False])
def test_an_error_of_writing_is_one_sentence(tmp_path, number, named):
    reason = os.strerror(number)
    with (
        pytest.raises(UserError, match=f"x: cannot be written: {reason[0].lower()}{reason[1:]}; "),
        atomic_write(tmp_path / "x") as temporary,
    ):
        raise OSError(number, reason, *([str(temporary)] if named else []))
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_reading_is_not_taken_for_one_of_writing(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "x"):
        (tmp_path / "none").read_bytes()


@pytest.mark.parametrize("length", [240, 255])
def test_any_name_that_a_file_may_have_will_do(tmp_path, length):
    for name in ("x" * length, "é" * (length // 2)):
        check_outputs({tmp_path / name: b""})
        with locked(tmp_path / name, file_lock(tmp_path / name)), atomic_write(tmp_path / name) as temporary:
            temporary.write_text("x")
        assert (tmp_path / name).read_text() == "x"


def test_unwritable_paths_are_rejected_before_the_work(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, reason in {
        tmp_path / ("x" * 256): "cannot be written: file name too long; name another place",
        tmp_path / ("é" * 128): "file name too long",
        tmp_path / ("x" * 256) / "y": "file name too long",
        tmp_path.joinpath(*["x" * 250] * 17): "file name too long",
        tmp_path / "pipe": "is a folder or a device",
        "/dev/null": "is a folder or a device",
    }.items():
        with pytest.raises(UserError, match=reason):
            check_output(path)
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_an_empty_path_is_not_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_scores(make_table(), tmp_path / "a.h5")
    make_source(tmp_path / "s", [3, 5])
    config = make_config({"data.train": str(tmp_path / "s"), "data.val": str(tmp_path / "s")})
    before = set(tmp_path.rglob("*"))
    for command in (
        lambda: write_results(["a.h5"], ""),
        lambda: write_audit(["s"], ""),
        lambda: score_shards("s", "", "clip_length"),
        lambda: score_shards("", "x.h5", "clip_length"),
        lambda: submit("a.h5", "list.txt", ""),
        lambda: convert_weights("a.safetensors", ""),
        lambda: train(config, ""),
        lambda: make_trials([], ""),
        lambda: demo(""),
        lambda: Job([ClipMeta("a.mp4")], ".", "", ExtractSettings()).check(),
    ):
        with pytest.raises(UserError, match="an empty path was given"):
            command()
    assert set(tmp_path.rglob("*")) == before


def test_the_home_of_an_unknown_user_is_reported():
    with pytest.raises(UserError, match=r"~nobody-at-all/x: no user of that name has a home; write \./~nobody"):
        as_path("~nobody-at-all/x")
    assert str(as_path("~root/x")) == "/root/x"


def test_a_file_is_replaced_only_by_one_of_its_kind(tmp_path):
    for name, kind, old, replaced in (
        ("a.html", HTML, b"<!DOCTYPE html>\n<p>", True),
        ("b.html", HTML, b"path,label\n", False),
        ("c.png", PNG, b"\xff\xd8\xff", False),
        ("d.png", PNG, b"", True),
    ):
        (tmp_path / name).write_bytes(old)
        if replaced:
            check_outputs({tmp_path / name: kind})
        else:
            with pytest.raises(UserError, match="exists, and this command did not write it; name another file"):
                check_outputs({tmp_path / name: kind})


def test_an_input_is_found_by_its_hard_link(tmp_path):
    (tmp_path / "a").write_text("x")
    os.link(tmp_path / "a", tmp_path / "b")
    with pytest.raises(UserError, match="b: is an input"):
        check_outputs({tmp_path / "b": b""}, [tmp_path / "a"])


def test_results_are_not_written_among_shards_or_over_other_files(tmp_path):
    """Checks that each message names the existing file, and that all files stay unchanged."""
    make_source(tmp_path / "s", [3, 5])
    (tmp_path / "s" / "clips.csv").write_text("path\nc0.mp4\nc1.mp4\n")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "clips.csv").write_text("path,label\nc0.mp4,0\n")
    (tmp_path / "mine" / "s_length.png").write_bytes(b"\xff\xd8\xff")
    write_scores(make_table(), tmp_path / "a.h5")
    weights = rules.write_alignment_weights(tmp_path / "w.safetensors", width=4)
    config = make_config({"data.train": str(tmp_path / "s"), "data.val": str(tmp_path / "s")})
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    holds, exists = "s: holds feature shards; name another folder", "exists, and this command did not write it"
    for command, reason in (
        (lambda: results_folder(tmp_path / "s"), holds),
        (lambda: write_results([tmp_path / "a.h5"], tmp_path / "s"), holds),
        (lambda: write_audit([tmp_path / "s"], tmp_path / "s"), holds),
        (lambda: train(config, tmp_path / "s"), holds),
        (lambda: make_trials([], str(tmp_path / "s")), holds),
        (lambda: demo(tmp_path / "s"), holds),
        (lambda: write_results([tmp_path / "a.h5"], tmp_path / "mine"), rf"clips\.csv: {exists}"),
        (lambda: demo(tmp_path / "mine"), rf"clips\.csv: {exists}"),
        (lambda: write_audit([tmp_path / "s"], tmp_path / "mine"), rf"s_length\.png: {exists}"),
        (lambda: score_shards(tmp_path / "s", tmp_path / "s" / "clips.csv", "clip_length"), exists),
        (lambda: score_shards(tmp_path / "s", weights, "clip_length"), exists),
        (lambda: submit(tmp_path / "a.h5", tmp_path / "list.txt", weights), exists),
        (lambda: convert_weights(weights, tmp_path / "a.h5"), exists),
        (lambda: convert_weights(weights, weights), "is an input"),
    ):
        with pytest.raises(UserError, match=reason):
            command()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_scores_replace_only_those_of_the_same_method_and_features(tmp_path):
    for name, lengths in {"s": [3, 5], "t": [4, 9]}.items():
        make_source(tmp_path / name, lengths)
    file = tmp_path / "scores.h5"
    file.touch()
    for _ in range(2):
        score_shards(tmp_path / "s", file, "clip_length")
    before = file.read_bytes()
    with pytest.raises(UserError, match=r"scores\.h5: holds scores of clip_length, not of factor; name another file"):
        score_shards(tmp_path / "s", file, "factor")
    with pytest.raises(UserError, match=r"holds scores of other features \(.*/s\) than .*/t; name another file"):
        score_shards(tmp_path / "t", file, "clip_length")
    assert file.read_bytes() == before


@pytest.mark.parametrize("link", [False, True])
def test_a_run_does_not_replace_the_weights_that_it_reads(tmp_path, link):
    make_source(tmp_path / "s", [3, 5])
    run = tmp_path / "run"
    run.mkdir()
    rules.write_alignment_weights(run / "best.safetensors", width=4)
    before = (run / "best.safetensors").read_bytes()
    given = run / "best.safetensors"
    if link:
        given = tmp_path / "link.safetensors"
        given.symlink_to(run / "best.safetensors")
    data = {"data.train": str(tmp_path / "s"), "data.val": str(tmp_path / "s")}
    for settings in (
        {"init": str(given)},
        {"method": "avad", "method.sync_weights": str(run)},
        {"method": "avad", "method.sync_weights": str(given)},
    ):
        with pytest.raises(UserError, match=r"best\.safetensors: is an input of this command"):
            train(make_config(data | settings), run)
    with pytest.raises(UserError, match=r"run: holds best\.safetensors, but not the config\.json of its run"):
        train(make_config(data), run)
    assert contents(run) == {"best.safetensors": before}


WHOLE_NUMBERS = {name for name, setting in list_all_settings().items() if type(setting.value) is int} - {"seed"}


@pytest.mark.parametrize("name", sorted(WHOLE_NUMBERS))
def test_a_number_that_must_be_a_mistake_is_refused(name):
    for value in (10**11, 10**400):
        with pytest.raises(UserError, match=rf"--config\.{name}={value}: must be at most \d+"):
            check_config(make_config({"data.train": "x", "data.val": "x", name: str(value)}))


def test_a_batch_that_memory_cannot_hold_is_refused_before_the_work(tmp_path):
    make_source(tmp_path / "s", [3, 5])
    data = {"data.train": str(tmp_path / "s"), "data.val": str(tmp_path / "s"), "model.tau": "250"}
    config = make_config(data | {"data.batch_frames": "10000000"})
    with pytest.raises(UserError, match=r"batch_frames=10000000: a step takes about \S+ GB, more than the"):
        train(config, tmp_path / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["s"]
