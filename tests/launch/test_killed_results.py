"""Tests of killed commands: they leave old or new results, never a mixture, and the same command then completes."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from apps.paper import TABLES_FILE, Experiment, paper
from jax_avh.evaluation import evaluate
from jax_avh.inference import score_shards
from jax_avh.report.audit import write_audit
from jax_avh.report.results import write_evaluation, write_results
from jax_avh.scores import write_scores
from tests import rules
from tests.avh_shards.test_paths import contents
from tests.jax_avh.data.test_batches import make_source
from tests.jax_avh.evaluation.test_evaluate import make_table

KILLS = 20
EVALUATE_FOR_EVER = """
import itertools, sys
from jax_avh.report.results import write_results
for turn in itertools.count():
    write_results([sys.argv[1 + turn % 2]], sys.argv[3], resamples=2)
    print(turn, flush=True)
"""


class Case(NamedTuple):
    """A command, and a folder with the results of an earlier run."""

    arguments: list[str]
    output: Path  # folder of the results
    shown: str  # pattern of the files that appear together
    first: str  # the file that exists only together with all others


def results(case: Case) -> dict[str, bytes]:
    """Returns the contents that a reader sees."""
    paths = (path for path in case.output.glob(case.shown) if path.is_file() and not path.name.startswith("."))
    return {str(path.relative_to(case.output)): path.read_bytes() for path in paths}


def start(case: Case) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", *case.arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env=os.environ | {"JAX_NUM_CPU_DEVICES": "1"},
    )


def make_sets(root: Path) -> None:
    for name, lengths in {"one": [3, 5, 4, 6], "two": [4, 9, 7, 5]}.items():
        make_source(root / name, lengths, labels=[0, 1, 0, 1])


def evaluate_case(root: Path) -> Case:
    write_scores(make_table(), root / "a.h5")
    write_scores(make_table("other", clips=("x.mp4", "y.mp4", "z.mp4")), root / "b.h5")
    write_results([root / "a.h5"], root / "out", resamples=5)
    return Case(["launch.evaluate", f"--scores={root}/b.h5", f"--output={root}/out"], root / "out", "*", "metrics.json")


def audit_case(root: Path) -> Case:
    make_sets(root)
    write_audit([root / "one"], root / "out")
    return Case(["launch.audit", f"--features={root}/two", f"--output={root}/out"], root / "out", "*", "audit.json")


def score_case(root: Path) -> Case:
    make_sets(root)
    weights = rules.write_alignment_weights(root / "w.safetensors", width=4)
    (root / "out").mkdir()
    old = root / "v.safetensors"
    shutil.copy(weights, old)
    score_shards(root / "one", root / "out" / "x.h5", weights=old)
    flags = [f"--weights={weights}", f"--features={root}/one", f"--output={root}/out/x.h5"]
    return Case(["launch.score", *flags], root / "out", "*", "x.h5")


def paper_case(root: Path) -> Case:
    """Prepares a paper with a single training."""
    for state in ("untrimmed", "trimmed"):
        for split in ("train", "val", "test"):
            folder = root / "root" / "fakeavceleb" / state / split
            make_source(folder, [3, 5, 4, 6], labels=[0, 1, 0, 1], trimmed=state == "trimmed")
    write_scores(make_table(), root / "a.h5")
    write_evaluation(evaluate([root / "a.h5"], resamples=5), root / "out", {TABLES_FILE: "Table 1: of another run\n"})
    flags = [f"--root={root}/root", f"--output={root}/out", "--config.train.epochs=1", "--config.data.batch_frames=20"]
    return Case(["launch.paper", *flags], root / "out", "*", "metrics.json")


def sweep_case(root: Path) -> Case:
    """Prepares a sweep that is resumed with more epochs; the results of its runs are independent."""
    make_sets(root)
    flags = ["--config.seed=0,1", f"--config.data.train={root}/one", f"--config.data.val={root}/two"]
    flags += ["--config.data.batch_frames=10", f"--workdir={root}/out"]
    short = Case(["launch.sweep", *flags, "--config.train.epochs=1"], root / "out", "*/result.json", "")
    assert start(short).wait() == 0
    return Case(["launch.sweep", *flags, "--config.train.epochs=2"], root / "out", "*/result.json", "")


CASES = {
    "evaluate": evaluate_case,
    "audit": audit_case,
    "score": score_case,
    "paper": paper_case,
    "sweep": sweep_case,
}


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", CASES)
def test_commands_killed_at_random(tmp_path, name):
    case = CASES[name](tmp_path)
    old = results(case)
    shutil.copytree(case.output, tmp_path / "before")
    started = time.perf_counter()
    assert start(case).wait() == 0
    duration, new = time.perf_counter() - started, results(case)
    assert old
    assert not old.items() & new.items()
    moments = random.Random(name)
    for _ in range(KILLS):
        shutil.rmtree(case.output)
        shutil.copytree(tmp_path / "before", case.output)
        process = start(case)
        time.sleep(moments.uniform(0.3, 1.05) * duration)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        found = results(case)
        if name == "sweep":  # whose runs are independent
            assert all(data in (old[run], new[run]) for run, data in found.items())
        else:
            whole = old if found.items() <= old.items() else new
            assert found.items() <= whole.items()
            assert case.first not in found or found == whole
        assert start(case).wait() == 0
        assert results(case) == new
        assert not list(case.output.rglob("*.part"))


def test_an_evaluation_killed_at_random(tmp_path):
    """Kills a process that only evaluates, which is faster than the full command."""
    tables = make_table(), make_table("other", clips=("x.mp4", "y.mp4", "z.mp4"))
    whole = []
    for name, table in zip("ab", tables, strict=True):
        write_scores(table, tmp_path / f"{name}.h5")
        write_results([tmp_path / f"{name}.h5"], tmp_path / name, resamples=2)
        whole.append(contents(tmp_path / name))
    moments = random.Random(0)
    for _ in range(2):
        arguments = [*(str(tmp_path / name) for name in ("a.h5", "b.h5")), str(tmp_path / "out")]
        with subprocess.Popen([sys.executable, "-c", EVALUATE_FOR_EVER, *arguments], stdout=subprocess.PIPE) as process:
            process.stdout.readline()
            time.sleep(moments.uniform(0, 0.3))
            process.kill()
        found = contents(tmp_path / "out")
        assert any(found.items() <= one.items() for one in whole)
        assert "metrics.json" not in found or found in whole
    write_results([tmp_path / "a.h5"], tmp_path / "out", resamples=2)
    assert contents(tmp_path / "out") == whole[0]
    assert len(list((tmp_path / "out").iterdir())) == 3


def test_the_tables_of_a_paper_appear_with_its_numbers(tmp_path, monkeypatch):
    """Checks that they appear together: a failed evaluation leaves the old ones."""
    case = paper_case(tmp_path)
    old = results(case)
    monkeypatch.setattr("apps.paper.experiments", lambda root: [Experiment("clip_length", "clip_length")])
    with monkeypatch.context() as patch:
        patch.setattr("jax_avh.report.results.render_report", lambda evaluation: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            paper(tmp_path / "root", tmp_path / "out")
    assert results(case) == old
    paper(tmp_path / "root", tmp_path / "out")
    assert results(case).keys() == old.keys()
    assert not results(case).items() & old.items()
