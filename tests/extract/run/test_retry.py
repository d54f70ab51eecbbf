"""Retries of failed clips after a restart, tested on npz features: their import is fast and resumes the same way."""

import dataclasses
import json
from pathlib import Path

import pytest

from avh_shards import ClipMeta, UserError
from avh_shards.format import list_shards
from extract.convert.npz import import_features
from extract.store.shard import failure_log, read_failures, write_failures
from extract.store.shard_set import ExtractionSummary, merge
from tests.extract.convert.test_npz import WIDTH, pair, write_npz
from tests.sets import assert_same_set

CLIPS = [ClipMeta(f"{name}.mp4") for name in "abcde"]


@dataclasses.dataclass
class Broken:
    """Five clips in three shards; b and d failed for transient reasons, e for a permanent one."""

    npz: Path
    output: Path  # of a run without b and d
    whole: Path  # of an uninterrupted run over all files

    def restart(self, **options: object) -> ExtractionSummary:
        return import_features(CLIPS, self.npz, self.output, width=WIDTH, clips_per_shard=2, **options)

    def arrive(self, *names: str) -> None:
        for name in names:
            write_npz(self.npz / f"{name}.npz", **pair(ord(name) - 90))

    def written(self) -> list[int]:
        return [path.stat().st_mtime_ns for path in list_shards(self.output)]

    def reasons(self) -> dict[str, str]:
        return {failure.path[0]: failure.reason for failure in read_failures(self.output / "failures.jsonl")}


@pytest.fixture
def broken(tmp_path) -> Broken:
    case = Broken(tmp_path / "npz", tmp_path / "out", tmp_path / "whole")
    case.arrive("a", "b", "c", "d")
    write_npz(case.npz / "e.npz", **pair(width=WIDTH + 1))
    import_features(CLIPS, case.npz, case.whole, width=WIDTH, clips_per_shard=2)
    for name in "bd":
        (case.npz / f"{name}.npz").unlink()
    summary = case.restart()
    assert (summary.stored, summary.failed, summary.passing) == (2, 3, 2)
    return case


def test_only_a_shard_that_gains_a_clip_is_made_again(broken):
    """One file arrives, then the other; the result equals that of an uninterrupted run."""
    before = broken.written()
    assert broken.restart().failed == 3
    assert broken.written() == before
    broken.arrive("b")
    assert broken.restart(retry_failed="none").failed == 3
    assert broken.restart().failed == 2
    assert [now != then for now, then in zip(broken.written(), before, strict=True)] == [True, False, False]
    broken.arrive("d")
    broken.restart()
    assert_same_set(broken.whole, broken.output)


def test_lasting_failures_are_tried_again_on_request(broken):
    broken.arrive("b", "d", "e")
    assert broken.restart().failed == 1
    assert broken.restart(retry_failed="all").failed == 0


def test_a_set_of_an_older_program_is_taken_up(broken):
    """Its failures have no `passing`, so they count as permanent, and only its shards hold the settings."""
    for log in broken.output.glob("*.failures.jsonl"):
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        log.write_text("".join(json.dumps({k: line[k] for k in ("path", "stage", "reason")}) + "\n" for line in lines))
    (broken.output / "settings.json").unlink()
    broken.arrive("b", "d")
    assert broken.restart().failed == 3
    broken.restart(retry_failed="all")
    assert_same_set(broken.whole, broken.output)


def test_a_new_reason_enters_the_log(broken):
    write_npz(broken.npz / "b.npz", **pair(width=WIDTH + 1))
    before = broken.written()
    assert broken.restart().passing == 1
    assert f"not float [T, {WIDTH}]" in broken.reasons()["b"]
    assert broken.written() == before


def test_a_run_killed_between_a_log_and_its_shard_is_repaired(broken):
    broken.arrive("b", "d")
    write_failures(failure_log(broken.output / "features-00000.h5"), [])
    assert merge(broken.output) is None
    broken.restart(retry_failed="none")
    broken.restart()
    assert_same_set(broken.whole, broken.output)


def test_a_shard_that_is_made_again_never_loses_a_clip(broken):
    """b arrives, but a has disappeared: the shard stays, and the log records why b is missing."""
    broken.arrive("b")
    (broken.npz / "a.npz").unlink()
    before = broken.written()
    assert broken.restart().stored == 2
    assert broken.written() == before
    assert "'a.mp4' in it fails now" in broken.reasons()["b"]
    broken.arrive("a", "d")
    broken.restart()
    assert_same_set(broken.whole, broken.output)


def test_a_summary_does_not_outlive_what_it_sums_up(broken, monkeypatch):
    """A run killed while it rebuilds a shard leaves no outdated summary."""
    broken.arrive("b")
    monkeypatch.setattr("extract.store.shard.ShardWriter.write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        broken.restart()
    assert not (broken.output / "extraction.json").exists()
    assert not (broken.output / "failures.jsonl").exists()


def test_a_shard_of_another_list_is_refused_and_not_repaired(broken):
    shards = list_shards(broken.output)
    shards[1].replace(shards[0])
    failure_log(shards[1]).replace(failure_log(shards[0]))
    with pytest.raises(UserError, match="holds clips that are not in its part of the clip list"):
        broken.restart()


def test_shards_of_different_settings_are_not_summed_up(broken, tmp_path):
    import_features(CLIPS, broken.npz, tmp_path / "other", "float32", width=WIDTH, clips_per_shard=2)
    (tmp_path / "other" / "features-00001.h5").replace(broken.output / "features-00001.h5")
    with pytest.raises(UserError, match=r"features-00001.h5: was made with dtype = 'float32', but features-00000.h5"):
        merge(broken.output)
    (broken.output / "features-00001.h5").unlink()
    with pytest.raises(UserError, match=r"settings.json: was made with dtype = 'float16', but this run has 'float32'"):
        import_features(CLIPS, broken.npz, broken.output, "float32", width=WIDTH, clips_per_shard=2)


def test_an_import_without_any_features_exits_with_one(tmp_path, launch):
    (tmp_path / "c.csv").write_text("path\na.mp4\nb.mp4\n")
    (tmp_path / "npz").mkdir()
    flags = {"clips": tmp_path / "c.csv", "features": tmp_path / "npz", "output": tmp_path / "out"}
    status, output = launch("import_npz", *(f"--{name}={value}" for name, value in flags.items()))
    assert status == 1
    assert "\n0 of 2 clips succeeded\n" in output
    assert all(failure.passing for failure in read_failures(tmp_path / "out" / "failures.jsonl"))
