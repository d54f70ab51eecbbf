"""The report of an evaluation: one page of tables, curves, histograms, and the clips where a method is most sure."""

import dataclasses
import functools
from collections.abc import Iterable, Sequence

from avh_shards import FAKE
from jax_avh.evaluation.results import Entry, Evaluation
from jax_avh.report.charts import dash
from jax_avh.report.page import UNDEFINED, keyed_number, render_page
from jax_avh.report.pictures import (
    STATES,
    TIMED,
    Group,
    Picture,
    category_of,
    curves,
    examples,
    has_curve,
    histograms,
    timed,
)
from jax_avh.report.svg import COLOURS

Row = tuple[str, dict]  # pointer into metrics.json, and what stands there


@dataclasses.dataclass(frozen=True)
class Section:
    """All that the page says of one data set."""

    title: str
    anchor: str  # its id in the page
    states: tuple[bool | None, ...]  # of STATES, those that are there
    headline: dict[str, dict[bool | None, Row]]  # method -> state -> the result of all clips, by its own clip score
    rules: tuple[str, ...]  # how the thresholds of the headline came about
    tables: dict[str, list[Row]]  # by the template's names
    curves: tuple[Picture, ...]
    drawn: dict[str, int]  # method -> number of its curves
    undrawn: tuple[str, ...]  # methods without curves, for want of a class
    histograms: tuple[Picture, ...]
    categories: dict[str, int]  # name -> number of its line
    examples: dict[str, tuple[Group, ...]]  # by state
    timed: dict[str, int]  # method drawn over time -> number of its line; the first chooses the examples


def render_report(evaluation: Evaluation) -> str:
    """Renders an evaluation, numbers and the scores that they come from, as HTML that needs no file and no network."""
    metrics, entries = evaluation.metrics, evaluation.entries
    records = [*metrics["results"], *metrics["coverage"], *metrics["localisation"]]
    methods = {name: n for n, name in enumerate(_distinct(_named("method", records, entries)))}
    datasets = _distinct(_named("dataset", records, entries))
    sections = [_section(evaluation, name, f"data-{n}", methods) for n, name in enumerate(datasets)]
    return render_page(
        "comparison.html.jinja",
        metrics=metrics,
        number=functools.partial(keyed_number, metrics),
        sections=sections,
        methods=methods,
        states=STATES,
        colours=COLOURS,
        dash=dash,
        most_timed=TIMED,
        undefined=UNDEFINED,
    )


def _named(field: str, records: Sequence[dict], entries: Sequence[Entry]) -> list[str]:
    return [record[field] for record in records] + [getattr(entry, field) for entry in entries]


def _distinct(values: Iterable) -> list:
    """Each value once, in the order of first appearance."""
    return list(dict.fromkeys(values))


def _section(evaluation: Evaluation, dataset: str, anchor: str, methods: dict[str, int]) -> Section:
    entries = [entry for entry in evaluation.entries if entry.dataset == dataset]
    tables = _tables(evaluation.metrics, dataset)
    headline: dict[str, dict[bool | None, Row]] = {}
    for pointer, row in tables["headline"]:
        headline.setdefault(row["method"], {})[row["trimmed"]] = (pointer, row)
    found = {entry.trimmed for entry in entries} | {row["trimmed"] for _, row in tables["results"]}
    states = tuple(state for state in STATES if state in found)
    categories = sorted({category_of(clip) for entry in entries for clip in entry.clips if clip.label == FAKE})
    numbers = {name: n for n, name in enumerate(categories)}
    return Section(
        title=dataset or "Data set without a name",
        anchor=anchor,
        states=states,
        headline=headline,
        rules=tuple(_distinct(row["threshold_rule"] for _, row in tables["headline"])),
        tables=tables,
        curves=tuple(curves(entries, states, anchor, methods)),
        drawn={entry.method: methods[entry.method] for entry in entries if has_curve(entry)},
        undrawn=tuple(_distinct(entry.method for entry in entries if not has_curve(entry))),
        histograms=tuple(histograms(entries, anchor, numbers)),
        categories=numbers,
        examples={STATES[state]: groups for state in states if (groups := examples(entries, state, anchor, methods))},
        timed={entry.method: methods[entry.method] for entry in timed(entries)},
    )


def _tables(metrics: dict, dataset: str) -> dict[str, list[Row]]:
    """The rows of metrics.json that tell of a data set, by the tables that print them."""
    tables = {
        name: [(f"{name}/{n}", row) for n, row in enumerate(metrics[name]) if row["dataset"] == dataset]
        for name in ("results", "comparisons", "coverage", "localisation")
    }
    results, groups = tables["results"], {"headline": "all", "category": "category", "split": "split"}
    for table, group in groups.items():
        tables[table] = [(pointer, row) for pointer, row in results if row["own"] and row["group"] == group]
    tables["pooling"] = [(pointer, row) for pointer, row in results if not row["own"] or row["group"] == "all"]
    return tables
