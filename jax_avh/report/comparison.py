"""Renders the report of an evaluation: tables, curves, histograms, and the clips of which a method is most certain."""

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np
from jaxtyping import Float
from markupsafe import Markup

from avh_shards import ClipMeta
from avh_shards.clip import FAKE, REAL
from jax_avh.evaluation.metrics import precision_recall_points, roc_points
from jax_avh.evaluation.results import (
    STATES,
    Comparison,
    Coverage,
    Evaluation,
    EvaluationMetrics,
    Localisation,
    ReferenceCheck,
    Result,
    ScoredSet,
)
from jax_avh.report import charts
from jax_avh.report.page import UNDEFINED, format_number, keyed_number, render_page
from jax_avh.scores import POOLED_FRAMES

MOST_TIMELINES = 6  # methods whose frame scores are drawn in one chart; more could not be distinguished
EXAMPLES = 2  # clips of each kind whose frame scores are drawn
EXAMPLE_KINDS = [  # label, whether the highest scores come first, heading
    (FAKE, True, "Fakes with the highest scores: detected most clearly"),
    (FAKE, False, "Fakes with the lowest scores: missed most easily"),
    (REAL, False, "Real clips with the lowest scores: most clearly real"),
    (REAL, True, "Real clips with the highest scores: the first false alarms"),
]


Record = TypeVar("Record", Result, Comparison, Coverage, Localisation, ReferenceCheck)
Keyed = tuple[str, Record]  # (pointer into metrics.json, the record there)


@dataclasses.dataclass(frozen=True)
class Chart:
    """A chart with its title."""

    title: str
    svg: Markup


@dataclasses.dataclass(frozen=True)
class ExampleGroup:
    """Timelines of clips of one kind."""

    title: str
    timelines: tuple[Chart, ...]


@dataclasses.dataclass(frozen=True)
class Section:
    """Section of the page on one data set."""

    title: str
    anchor: str  # id in the page
    states: tuple[bool | None, ...]  # keys of STATES that occur
    headline: dict[str, dict[bool | None, Keyed[Result]]]  # method -> state -> own clip scores of all clips
    rules: tuple[str, ...]  # where the thresholds of the headline come from
    comparisons: list[Keyed[Comparison]]
    curves: tuple[Chart, ...]
    drawn: dict[str, int]  # method -> line number of its curves
    undrawn: tuple[str, ...]  # methods without curves, for lack of a class
    histograms: tuple[Chart, ...]
    categories: dict[str, int]  # name -> line number
    examples: dict[str, tuple[ExampleGroup, ...]]  # by state
    timed: dict[str, int]  # method drawn over time -> line number; the first method chooses the examples
    category: list[Keyed[Result]]
    split: list[Keyed[Result]]
    pooling: list[Keyed[Result]]
    localisation: list[Keyed[Localisation]]
    coverage: list[Keyed[Coverage]]
    references: list[Keyed[ReferenceCheck]]
    uniformity: tuple[Chart, ...]  # p-values of the real clips, for each of the references with some


def render_report(evaluation: Evaluation) -> str:
    """Renders an evaluation as self-contained HTML, which needs no other file and no network."""
    metrics = evaluation.metrics
    rows = [*metrics.results, *metrics.coverage, *metrics.localisation, *evaluation.scored_sets]
    methods = {name: n for n, name in enumerate(dict.fromkeys(row.method for row in rows))}
    datasets = dict.fromkeys(row.dataset for row in rows)
    sections = []
    for n, dataset in enumerate(datasets):
        scored_sets = [scored for scored in evaluation.scored_sets if scored.dataset == dataset]
        sections.append(_section(metrics, scored_sets, dataset, f"data-{n}", methods, evaluation.p_values))
    return render_page(
        "comparison.html.jinja",
        metrics=metrics,
        number=functools.partial(keyed_number, metrics),
        sections=sections,
        methods=methods,
        states=STATES,
        colours=charts.LINE_COLOURS,
        dash=charts.dash,
        most_timed=MOST_TIMELINES,
        undefined=UNDEFINED,
    )


def _section(
    metrics: EvaluationMetrics,
    scored_sets: Sequence[ScoredSet],
    dataset: str,
    anchor: str,
    methods: dict[str, int],
    p_values: Sequence[np.ndarray],
) -> Section:
    results = _keyed("results", metrics.results, dataset)
    own = [(pointer, row) for pointer, row in results if row.own and row.group == "all"]
    headline: dict[str, dict[bool | None, Keyed[Result]]] = {}
    for pointer, row in own:
        headline.setdefault(row.method, {})[row.trimmed] = (pointer, row)
    present = {scored.trimmed for scored in scored_sets} | {row.trimmed for _, row in results}
    states = tuple(state for state in STATES if state in present)
    names = sorted({category_of(clip) for scored in scored_sets for clip in scored.clips if clip.label == FAKE})
    categories = {name: n for n, name in enumerate(names)}
    examples = {STATES[state]: _examples(scored_sets, state, anchor, methods) for state in states}
    return Section(
        title=dataset or "Data set without a name",
        anchor=anchor,
        states=states,
        headline=headline,
        rules=tuple(dict.fromkeys(row.threshold_rule for _, row in own)),
        comparisons=_keyed("comparisons", metrics.comparisons, dataset),
        curves=tuple(_curves(scored_sets, states, anchor, methods)),
        drawn={scored.method: methods[scored.method] for scored in scored_sets if _has_curve(scored)},
        undrawn=tuple(dict.fromkeys(scored.method for scored in scored_sets if not _has_curve(scored))),
        histograms=tuple(_histograms(scored_sets, anchor, categories)),
        categories=categories,
        examples={state: groups for state, groups in examples.items() if groups},
        timed={scored.method: methods[scored.method] for scored in timed(scored_sets)},
        category=[(pointer, row) for pointer, row in results if row.own and row.group == "category"],
        split=[(pointer, row) for pointer, row in results if row.own and row.group == "split"],
        pooling=[(pointer, row) for pointer, row in results if not row.own or row.group == "all"],
        localisation=_keyed("localisation", metrics.localisation, dataset),
        coverage=_keyed("coverage", metrics.coverage, dataset),
        references=_keyed("references", metrics.references, dataset),
        uniformity=tuple(_uniformity(metrics.references, p_values, dataset, anchor)),
    )


def _keyed(name: str, records: Sequence[Record], dataset: str) -> list[Keyed[Record]]:
    """Returns a data set's records in a list of metrics.json, with their pointers."""
    return [(f"{name}/{n}", record) for n, record in enumerate(records) if record.dataset == dataset]


def category_of(clip: ClipMeta) -> str:
    """Returns the category of a fake, under which its line appears in the histograms."""
    return clip.category or "fake"


def _has_curve(scored: ScoredSet) -> bool:
    """Returns whether both classes are present, so that a curve can be drawn."""
    return {REAL, FAKE} <= set(scored.label.tolist())


def _curves(
    scored_sets: Sequence[ScoredSet], states: Sequence[bool | None], anchor: str, methods: dict[str, int]
) -> Iterator[Chart]:
    """Draws ROC curves, then precision against recall: one chart per state, one line per method with both classes.

    Args:
      scored_sets: scores of one data set.
      states: keys of STATES, in the order of the charts.
      anchor: the data set's id in the page, with which the charts' names start.
      methods: method -> line number.
    """
    kinds = [
        ("ROC", roc_points, charts.roc_chart),
        ("Precision and recall", precision_recall_points, charts.precision_recall_chart),
    ]
    for kind, points, draw in kinds:
        for state in states:
            drawn = [scored for scored in scored_sets if scored.trimmed is state and _has_curve(scored)]
            if drawn:
                title = f"{kind}, {STATES[state]}"
                lines = [charts.Line(methods[s.method], *points(s.label, s.score)) for s in drawn]
                label = f"{title}: a curve for each of {', '.join(scored.method for scored in drawn)}"
                yield Chart(title, draw(f"{anchor}-{draw.__name__}-{state}", label, lines))


def _histograms(scored_sets: Sequence[ScoredSet], anchor: str, categories: dict[str, int]) -> Iterator[Chart]:
    """Draws one chart per scored set: clip scores of real clips and of each fake category (name -> line number)."""
    for n, scored in enumerate(scored_sets):
        category = np.array([category_of(clip) if clip.label == FAKE else "" for clip in scored.clips])
        groups = {charts.FILLED: (0, scored.score[scored.label == REAL])}
        groups |= {f"fake {name}": (number, scored.score[category == name]) for name, number in categories.items()}
        groups = {name: (number, score) for name, (number, score) in groups.items() if len(score)}
        if groups:
            title = f"{scored.method}, {STATES[scored.trimmed]}"
            label = f"Histogram of clip scores, {title}: {', '.join(groups)}"
            yield Chart(title, charts.histogram_chart(f"{anchor}-histogram-{n}", label, groups))


def _uniformity(
    checks: Sequence[ReferenceCheck], p_values: Sequence[np.ndarray], dataset: str, anchor: str
) -> Iterator[Chart]:
    """Draws the p-values of a data set's real clips, one chart per method, state and reference."""
    for n, (check, p_value) in enumerate(zip(checks, p_values, strict=True)):
        if check.dataset == dataset and len(p_value):
            title = f"{check.method}, {STATES[check.trimmed]}, against {check.reference}"
            label = f"p-values of the real clips: {title}"
            yield Chart(title, charts.uniformity_chart(f"{anchor}-uniformity-{n}", label, p_value))


def _examples(
    scored_sets: Sequence[ScoredSet], state: bool | None, anchor: str, methods: dict[str, int]
) -> tuple[ExampleGroup, ...]:
    """Draws the clips of one state with the most extreme scores, right and wrong, by the first method drawn."""
    drawn = [scored for scored in timed(scored_sets) if scored.trimmed is state]
    if not drawn:
        return ()
    first = drawn[0]
    standard = {methods[scored.method]: (scored, *_moments(scored)) for scored in drawn}
    groups = []
    for title, chosen in _extremes(first):
        timelines = []
        for n in chosen:
            clip = first.clips[n]
            label = f"Frame scores over time of {clip.path}, {len(clip.segments)} fake segments shaded"
            lines = {
                number: (_frames(scored, clip.path) - mean) / deviation
                for number, (scored, mean, deviation) in standard.items()
                if clip.path in scored.rows
            }
            chart = charts.timeline_chart(f"{anchor}-timeline-{state}-{n}", label, lines, clip.segments)
            timelines.append(Chart(f"{clip.path}, score {format_number(float(first.score[n]))}", chart))
        if timelines:
            groups.append(ExampleGroup(title, tuple(timelines)))
    return tuple(groups)


def timed(scored_sets: Sequence[ScoredSet]) -> list[ScoredSet]:
    """Returns the scored sets of the first methods with frame scores, which are drawn over time."""
    with_frames = [scored for scored in scored_sets if scored.table.frame is not None]
    methods = list(dict.fromkeys(scored.method for scored in with_frames))[:MOST_TIMELINES]
    return [scored for scored in with_frames if scored.method in methods]


def _extremes(scored: ScoredSet) -> Iterator[tuple[str, list[int]]]:
    """Yields the title and a few clips of each of the EXAMPLE_KINDS, none twice."""
    label = scored.label
    order = np.argsort(scored.score, kind="stable")
    shown = []
    for wanted, highest, title in EXAMPLE_KINDS:
        ranked = order[(label[order] == wanted) & ~np.isin(order, shown)]
        chosen = ranked[:: -1 if highest else 1][:EXAMPLES].tolist()
        shown += chosen
        yield title, chosen


def _frames(scored: ScoredSet, path: str) -> Float[np.ndarray, " T"]:
    """Returns the frame scores of a clip."""
    assert scored.table.frame is not None
    row = scored.rows[path]
    return scored.table.frame[scored.table.offset[row] : scored.table.offset[row + 1]].astype(np.float64)


def _moments(scored: ScoredSet) -> tuple[float, float]:
    """Returns the mean and the standard deviation over all frames of the scored set, 1 if that is 0."""
    assert scored.table.frame is not None
    frame = scored.table.frame
    parts = np.array_split(frame, len(frame) // POOLED_FRAMES + 1)  # not all at once in double precision
    mean = np.sum([part.sum(dtype=np.float64) for part in parts]) / len(frame)
    variance = np.sum([np.square(part - mean).sum() for part in parts]) / len(frame)
    return mean, math.sqrt(variance) or 1.0
