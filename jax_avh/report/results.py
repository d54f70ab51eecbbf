"""A folder of results: `metrics.json`, `clips.csv`, `report.html`; and the numbers as text."""

import csv
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from avh_shards import (
    ClipMeta,
    as_path,
    atomic_writes,
    caveat,
    check_outputs,
    format_table,
    locked,
    one_line,
    results_folder,
)
from avh_shards.kinds import HTML
from avh_shards.paths import AnyPath
from jax_avh.evaluation.evaluate import RESAMPLES, evaluate
from jax_avh.evaluation.results import Entry, Evaluation
from jax_avh.report.comparison import render_report

FORMULA = ("=", "+", "-", "@", "\t", "\r")  # how text begins that a spreadsheet would run
COLUMNS = ("path", "label", "dataset", "category", "split")
FILES = {  # how they begin; where the first is, all are
    "metrics.json": rb'\{.*?"resamples":',
    "clips.csv": ",".join(COLUMNS).encode(),
    "report.html": HTML,
}
STATES = {True: "trimmed", False: "untrimmed", None: "-"}
METRICS = {"auc": "AUC", "ap": "AP", "eer": "EER"}  # that the text shows


def write_results(
    scores: Sequence[str | os.PathLike],
    output: str | os.PathLike,
    listed: Sequence[ClipMeta] = (),
    failed: Sequence[str] = (),
    thresholds: Mapping[str, float] | None = None,
    resamples: int = RESAMPLES,
    inputs: Sequence[AnyPath] = (),
) -> str:
    """Evaluates score files and writes a folder of results.

    Args:
      scores: score files.
      output: the folder.
      listed: clips that ought to be scored, for coverage.
      failed: paths of those that could not be extracted.
      thresholds: method -> clip score from which on a clip is called fake.
      resamples: of the bootstrap.
      inputs: files beside the score files that the results must not take the place of.

    Returns:
      The main numbers as a table to print, and what must be known beside them.

    Raises:
      UserError: a score file is missing or damaged, two contradict each other, the results cannot be written, or
        another run is writing them.
    """
    folder = results_folder(output)
    check_outputs({folder / name: kind for name, kind in FILES.items()}, [*scores, *inputs])
    with locked(folder):
        evaluation = evaluate(scores, listed, failed, thresholds, resamples)
        write_evaluation(evaluation, folder)
    return format_results(evaluation)


def write_evaluation(evaluation: Evaluation, output: AnyPath, texts: Mapping[str, str] = MappingProxyType({})) -> None:
    """Writes an evaluation's files into a folder, all of them or none.

    Args:
      evaluation: what they are made of.
      output: the folder.
      texts: further files that belong with them, by name.

    Raises:
      UserError: a file cannot be written.
    """
    paths = [as_path(output) / name for name in (*FILES, *texts)]
    with atomic_writes(paths) as (metrics, clips, report, *others):
        metrics.write_text(json.dumps(evaluation.metrics, indent=1, allow_nan=False) + "\n")
        _write_clips(evaluation.entries, clips)
        report.write_text(render_report(evaluation), encoding="utf-8")
        for path, text in zip(others, texts.values(), strict=True):
            path.write_text(text, encoding="utf-8")


def format_results(evaluation: Evaluation) -> str:
    """A line a method, state and pooling, "*" at the method's own; then the warnings."""
    rows = [["data set", "method", "leading silence", "pooling", "AUC", "95 %", "AP", "EER", "real", "fake"]]
    for result in (r for r in evaluation.metrics["results"] if r["group"] == "all"):
        own = "*" if result["own"] else " "
        bounds = result["intervals"]["auc"]
        few = "" if result["metrics"]["auc"] is None else "too few clips"
        low_high = "-".join(f"{bound:.3f}" for bound in bounds) if bounds else few
        auc, ap, eer = (_number(result["metrics"][name]) for name in METRICS)
        state = STATES[result["trimmed"]]
        counts = str(result["real"]), str(result["fake"])
        rows.append(
            [
                result["dataset"] or "-",
                result["method"],
                state,
                own + result["pooling"],
                auc,
                low_high,
                ap,
                eer,
                *counts,
            ]
        )
    return "\n".join([format_table(rows), *map(one_line, evaluation.metrics["warnings"])])


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"


def _write_clips(entries: Sequence[Entry], path: Path) -> None:
    """Writes a row for each clip of any file; a column for each file and pooling, empty where it did not score it.

    Text that a spreadsheet would run as a formula gets an apostrophe in front. The last column is `caveat`, if any
    number needs one.
    """
    clips = {(entry.dataset, clip.path): clip for entry in entries for clip in entry.clips}
    columns: dict[str, dict[tuple[str, str], float]] = {}
    for entry in entries:
        keys = [(entry.dataset, clip.path) for clip in entry.clips]
        scores = {"own": entry.score.astype(float)} | entry.pooled
        for pooling, values in scores.items():
            name = pooling if len(entries) == 1 else f"{entry.method}/{STATES[entry.trimmed]}/{pooling}"
            columns.setdefault(name, {}).update(zip(keys, values.tolist(), strict=True))
    notes = {(entry.dataset, clip.path): caveat(entry.table.attributes) for entry in entries for clip in entry.clips}
    notes = notes if any(notes.values()) else {}
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(map(_cell, [*COLUMNS, *columns, *(["caveat"] if notes else [])]))
        for key, clip in clips.items():
            known = clip.path, clip.label, key[0], clip.category, clip.split
            scores = (column.get(key, "") for column in columns.values())
            writer.writerow([*map(_cell, known), *scores, *([notes[key]] if notes else [])])


def _cell(value: str | int) -> str | int:
    """A cell that no spreadsheet runs."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value
