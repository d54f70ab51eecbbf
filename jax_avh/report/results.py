"""A folder of results: `metrics.json`, `clips.csv`, `report.html`; and the numbers as text."""

import csv
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from extract.schema import ClipMeta, check_outputs, whole_file
from extract.schema.files import AnyPath
from jax_avh.evaluation.evaluate import RESAMPLES, evaluate
from jax_avh.evaluation.results import Entry, Evaluation
from jax_avh.report.comparison import write_report

FILES = ("metrics.json", "clips.csv", "report.html")
COLUMNS = ("path", "label", "dataset", "category", "split")
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
      InputError: a score file is missing or damaged, two contradict each other, or the results cannot be written.
    """
    check_outputs([Path(output) / name for name in FILES], [*scores, *inputs])
    evaluation = evaluate(scores, listed, failed, thresholds, resamples)
    write_evaluation(evaluation, output)
    return format_results(evaluation)


def write_evaluation(evaluation: Evaluation, output: str | os.PathLike) -> None:
    """Writes an evaluation's files into a folder."""
    metrics, clips, report = (Path(output) / name for name in FILES)
    with whole_file(metrics) as temporary:
        temporary.write_text(json.dumps(evaluation.metrics, indent=1, allow_nan=False) + "\n")
    with whole_file(clips) as temporary:
        _write_clips(evaluation.entries, temporary)
    write_report(evaluation, report)


def format_results(evaluation: Evaluation) -> str:
    """A line a method, state and pooling, "*" at the method's own; then the warnings."""
    rows = [["data set", "method", "leading silence", "pooling", "AUC", "95 %", "AP", "EER", "real", "fake"]]
    for result in (r for r in evaluation.metrics["results"] if r["group"] == "all"):
        own = "*" if result["own"] else " "
        low_high = "-".join(f"{bound:.3f}" for bound in result["intervals"]["auc"] or ())
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
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    return "\n".join([*table, *evaluation.metrics["warnings"]])


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"


def _write_clips(entries: Sequence[Entry], path: Path) -> None:
    """A row a clip of any file; a column a file and pooling, empty where it has not scored the clip."""
    clips = {(entry.dataset, clip.path): clip for entry in entries for clip in entry.clips}
    columns: dict[str, dict[tuple[str, str], float]] = {}
    for entry in entries:
        keys = [(entry.dataset, clip.path) for clip in entry.clips]
        scores = {"own": entry.score.astype(float)} | entry.pooled
        for pooling, values in scores.items():
            name = pooling if len(entries) == 1 else f"{entry.method}/{STATES[entry.trimmed]}/{pooling}"
            columns.setdefault(name, {}).update(zip(keys, values.tolist(), strict=True))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*COLUMNS, *columns])
        for key, clip in clips.items():
            known = clip.path, clip.label, key[0], clip.category, clip.split
            writer.writerow([*known, *(column.get(key, "") for column in columns.values())])
