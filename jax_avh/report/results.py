"""Writes a folder of results (`metrics.json`, `clips.csv`, `report.html`) and formats the numbers as text."""

import csv
import dataclasses
import itertools
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
from jaxtyping import Float64

from avh_shards import ClipMeta
from avh_shards.format import caveat, results_folder
from avh_shards.paths import HTML, AnyPath, as_path, atomic_writes, check_outputs, locked
from avh_shards.text import format_table, one_line
from jax_avh.evaluation.evaluate import RESAMPLES, evaluate
from jax_avh.evaluation.results import STATES, Evaluation, ScoredSet
from jax_avh.reference import RATES
from jax_avh.report.comparison import render_report

FORMULA = ("=", "+", "-", "@", "\t", "\r")  # starts of text that a spreadsheet would run as a formula
ROWS = 1 << 16  # rows of clips.csv made at a time
RESULT_COLUMNS = ("path", "label", "dataset", "category", "split")
FILES = {  # name -> start of the file; a folder that has the first has them all
    "metrics.json": rb'\{.*?"resamples":',
    "clips.csv": ",".join(RESULT_COLUMNS).encode(),
    "report.html": HTML,
}


def write_results(
    scores: Sequence[str | os.PathLike],
    output: str | os.PathLike,
    listed: Sequence[ClipMeta] = (),
    failed: Sequence[str] = (),
    thresholds: Mapping[str, float] | None = None,
    resamples: int = RESAMPLES,
    inputs: Sequence[AnyPath] = (),
    references: Sequence[AnyPath] = (),
    two_sided: bool = False,
    rates: Sequence[float] = RATES,
) -> str:
    """Evaluates score files and writes a folder of results.

    Args:
      scores: score files.
      output: the folder.
      listed: clips that should be scored, for coverage.
      failed: paths of listed clips that could not be extracted.
      thresholds: method -> lowest clip score at which a clip is called fake.
      resamples: number of bootstrap resamples.
      inputs: further files that the results must not overwrite.
      references: files of real clips' scores; see `evaluate`, as for the two below.
      two_sided: whether scores lower than those of real clips are suspicious, too.
      rates: false-alarm rates that references promise.

    Returns:
      The main numbers as a printable table, followed by the warnings.

    Raises:
      UserError: a score file is missing or damaged, two contradict each other, the results cannot be written, or
        another run is writing them.
    """
    folder = results_folder(output)
    check_outputs({folder / name: kind for name, kind in FILES.items()}, [*scores, *inputs, *references])
    with locked(folder):
        compared = {"references": references, "two_sided": two_sided, "rates": rates}
        evaluation = evaluate(scores, listed, failed, thresholds, resamples, **compared)
        write_evaluation(evaluation, folder)
    return format_results(evaluation)


def write_evaluation(evaluation: Evaluation, output: AnyPath, texts: Mapping[str, str] = MappingProxyType({})) -> None:
    """Writes an evaluation's files into a folder, all of them or none.

    Args:
      evaluation: the evaluation.
      output: the folder.
      texts: contents of further files to write with them, by name.

    Raises:
      UserError: a file cannot be written.
    """
    paths = [as_path(output) / name for name in (*FILES, *texts)]
    with atomic_writes(paths) as (metrics, clips, report, *others):
        metrics.write_text(json.dumps(dataclasses.asdict(evaluation.metrics), indent=1, allow_nan=False) + "\n")
        _write_clips(evaluation.scored_sets, clips)
        report.write_text(render_report(evaluation), encoding="utf-8")
        for path, text in zip(others, texts.values(), strict=True):
            path.write_text(text, encoding="utf-8")


def format_results(evaluation: Evaluation) -> str:
    """Formats one line per method, state and pooling, with "*" at the method's own pooling; then the warnings."""
    rows = [["data set", "method", "leading silence", "pooling", "AUC", "95 %", "AP", "EER", "real", "fake"]]
    for result in evaluation.metrics.results:
        if result.group == "all":
            auc, bounds = result.metrics.auc, result.intervals.auc
            few = "" if auc is None else "too few clips"
            low_high = "-".join(f"{bound:.3f}" for bound in bounds) if bounds else few
            pooling = ("*" if result.own else " ") + result.pooling
            numbers = [_number(auc), low_high, _number(result.metrics.ap), _number(result.metrics.eer)]
            counts = [str(result.real), str(result.fake)]
            rows.append([result.dataset or "-", result.method, _state(result.trimmed), pooling, *numbers, *counts])
    tables = [format_table(rows)]
    if checks := evaluation.metrics.references:
        rows = [["data set", "method", "reference", "promised FPR", "FPR", "95 %", "holds", "TPR", "undecided"]]
        for check in checks:
            for point in check.points:
                interval = "-".join(f"{bound:.3f}" for bound in point.fpr_interval or ())
                holds = {True: "yes", False: "NO", None: ""}[point.holds]
                numbers = [f"{point.rate:g}", _number(point.fpr), interval, holds, _number(point.tpr)]
                rows.append([check.dataset or "-", check.method, check.reference, *numbers, str(point.undecided)])
        tables.append(format_table(rows))
    return "\n".join([*tables, *map(one_line, evaluation.metrics.warnings)])


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"


def _state(trimmed: bool | None) -> str:
    return "-" if trimmed is None else STATES[trimmed]


def _write_clips(scored_sets: Sequence[ScoredSet], path: Path) -> None:
    """Writes one row per clip and one column per score file and pooling; cells without a score are empty.

    Text that a spreadsheet would run as a formula is prefixed with an apostrophe. The last column is `caveat` if any
    number needs one.
    """
    clips: dict[tuple[str, str], ClipMeta] = {}  # by data set and path, as are the dictionaries below
    notes: dict[tuple[str, str], str] = {}
    for scored in scored_sets:
        keys = [(scored.dataset, clip.path) for clip in scored.clips]
        clips |= zip(keys, scored.clips, strict=True)
        notes |= dict.fromkeys(keys, caveat(scored.table.attributes))
    row = {key: n for n, key in enumerate(clips)}
    columns: dict[str, Float64[np.ndarray, " N"]] = {}  # NaN = no score
    for scored in scored_sets:
        rows = np.array([row[scored.dataset, clip.path] for clip in scored.clips], np.int64)
        for pooling, values in ({"own": scored.score.astype(float)} | scored.pooled).items():
            name = pooling if len(scored_sets) == 1 else f"{scored.method}/{_state(scored.trimmed)}/{pooling}"
            columns.setdefault(name, np.full(len(clips), np.nan))[rows] = values
    caveats = ["caveat"] if any(notes.values()) else []
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(map(_cell, [*RESULT_COLUMNS, *columns, *caveats]))
        for first in range(0, len(clips), ROWS):
            part = itertools.islice(clips.items(), first, first + ROWS)
            known = [(*map(_cell, (c.path, c.label, key[0], c.category, c.split)), notes[key]) for key, c in part]
            *cells, noted = zip(*known, strict=True)
            scores = [_scores(column[first : first + ROWS]) for column in columns.values()]
            writer.writerows(zip(*cells, *scores, *([noted] if caveats else []), strict=True))


def _scores(values: Float64[np.ndarray, " N"]) -> list[float | str]:
    """Returns the cells of scores; empty ones for NaN."""
    cells = values.tolist()
    return ["" if math.isnan(cell) else cell for cell in cells] if np.isnan(values).any() else cells


def _cell(value: str | int) -> str | int:
    """Returns a cell's value, with an apostrophe before text that a spreadsheet would run."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value
