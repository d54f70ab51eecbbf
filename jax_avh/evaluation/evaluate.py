"""Score files -> metrics of every method and pooling, and a table of clips."""

import csv
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from extract.schema import InputError, caveat, whole_file
from jax_avh.evaluation.metrics import detection_metrics
from jax_avh.evaluation.pooling import POOLINGS
from jax_avh.evaluation.scores import ScoreTable, open_scores

Metrics = dict[str, dict[str, dict[str, float | int | None]]]  # method -> pooling -> metric -> value


def evaluate_scores(scores: Sequence[str | os.PathLike], output: str | os.PathLike) -> str:
    """Evaluates score files side by side; writes `metrics.json` and `clips.csv`.

    Args:
      scores: score files; two of one method are told apart by their files' names.
      output: folder of the results.

    Returns:
      The metrics as a table to print.

    Raises:
      InputError: a file is missing or damaged.
    """
    tables = _named([(Path(path), open_scores(path)) for path in scores])
    labels = _labels(tables)
    metrics = {name: _metrics(table) for name, table in tables.items()}
    with whole_file(Path(output) / "metrics.json") as temporary:
        temporary.write_text(json.dumps(metrics, indent=2) + "\n")
    with whole_file(Path(output) / "clips.csv") as temporary:
        _write_clips(tables, labels, temporary)
    caveats = [f"{name}: {text}" for name, table in tables.items() if (text := caveat(table.attributes))]
    return "\n".join([format_metrics(metrics), *caveats])


def format_metrics(metrics: Metrics) -> str:
    """A line a method and pooling; "undefined" where a class is absent."""
    lines = [f"{'method':<20} {'pooling':<12} {'AUC':>9} {'AP':>9} {'real':>6} {'fake':>6}"]
    for method, poolings in metrics.items():
        for pooling, values in poolings.items():
            auc, ap = ("undefined" if values[m] is None else f"{values[m]:.4f}" for m in ("auc", "ap"))
            lines.append(f"{method:<20} {pooling:<12} {auc:>9} {ap:>9} {values['real']:>6} {values['fake']:>6}")
    return "\n".join(lines)


def _named(tables: Sequence[tuple[Path, ScoreTable]]) -> dict[str, ScoreTable]:
    """Score files by method, or by method@file where a method comes more than once."""
    methods = [table.method for _, table in tables]
    named = {}
    for path, table in tables:
        name = table.method if methods.count(table.method) == 1 else f"{table.method}@{path.stem}"
        if name in named:
            raise InputError(f"{path}: a second score file of that name and method; rename one")
        named[name] = table
    return named


def _metrics(table: ScoreTable) -> dict[str, dict[str, float | int | None]]:
    label = np.array([clip.label for clip in table.clips])
    return {name: detection_metrics(label, pool(table.frame, table.offset)) for name, pool in POOLINGS.items()}


def _labels(tables: dict[str, ScoreTable]) -> dict[str, int]:
    """Label of every clip of any file; files that disagree are refused."""
    labels: dict[str, int] = {}
    for name, table in tables.items():
        for clip in table.clips:
            if labels.setdefault(clip.path, clip.label) != clip.label:
                raise InputError(
                    f"{name}: clip {clip.path!r} has label {clip.label}, in another file {labels[clip.path]}"
                )
    return labels


def _write_clips(tables: dict[str, ScoreTable], labels: dict[str, int], path: Path) -> None:
    """A row a clip of any file; an empty field where a method has not scored it."""
    columns = {}
    for name, table in tables.items():
        paths = [clip.path for clip in table.clips]
        for pooling, pool in POOLINGS.items():
            title = pooling if len(tables) == 1 else f"{name}/{pooling}"
            columns[title] = dict(zip(paths, pool(table.frame, table.offset).tolist(), strict=True))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", *columns])
        for clip, label in labels.items():
            writer.writerow([clip, label, *(column.get(clip, "") for column in columns.values())])
