"""Pictures of an evaluation: curves, histograms, and the clips where a method is most sure."""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Float
from markupsafe import Markup

from avh_shards import FAKE, REAL, ClipMeta
from jax_avh.evaluation.metrics import precision_recall_points, roc_points
from jax_avh.evaluation.results import Entry
from jax_avh.report import charts
from jax_avh.report.page import format_number

STATES = {False: "untrimmed", True: "trimmed", None: "trimming not known"}
TIMED = 6  # methods whose frame scores are drawn over one another; more could not be told apart
EXAMPLES = 2  # clips of each kind whose frame scores are drawn
KINDS = [  # of such clips: label, whether the highest scores come first, what they are
    (FAKE, True, "Fakes with the highest scores: found most surely"),
    (FAKE, False, "Fakes with the lowest scores: missed most easily"),
    (REAL, False, "Real clips with the lowest scores: most surely real"),
    (REAL, True, "Real clips with the highest scores: the first false alarms"),
]


@dataclasses.dataclass(frozen=True)
class Picture:
    """A chart and what stands above it."""

    title: str
    chart: Markup


@dataclasses.dataclass(frozen=True)
class Group:
    """Pictures under one heading."""

    title: str
    pictures: tuple[Picture, ...]


def category_of(clip: ClipMeta) -> str:
    """The name of a fake's line in the histograms."""
    return clip.category or "fake"


def has_curve(entry: Entry) -> bool:
    """Whether a curve can be drawn: both classes are there."""
    return {REAL, FAKE} <= set(entry.label.tolist())


def curves(
    entries: Sequence[Entry], states: Sequence[bool | None], anchor: str, methods: dict[str, int]
) -> Iterable[Picture]:
    """ROC curves, then precision over recall: a picture for each state, a line for each method with both classes.

    Args:
      entries: scores on one data set.
      states: of STATES, in the order of the pictures.
      anchor: the data set's id in the page; the pictures' names begin with it.
      methods: name -> number of its line.
    """
    kinds = [
        ("ROC", roc_points, charts.roc_chart),
        ("Precision and recall", precision_recall_points, charts.precision_recall_chart),
    ]
    for kind, points, draw in kinds:
        for state in states:
            drawn = [entry for entry in entries if entry.trimmed is state and has_curve(entry)]
            if drawn:
                title = f"{kind}, {STATES[state]}"
                lines = [charts.Line(methods[e.method], *points(e.label, e.score)) for e in drawn]
                label = f"{title}: a curve for each of {', '.join(entry.method for entry in drawn)}"
                yield Picture(title, draw(f"{anchor}-{draw.__name__}-{state}", label, lines))


def histograms(entries: Sequence[Entry], anchor: str, categories: dict[str, int]) -> Iterable[Picture]:
    """Clip scores of real clips and of each category of fakes (name -> number of its line), a picture an entry."""
    for n, entry in enumerate(entries):
        group = np.array([category_of(clip) if clip.label == FAKE else "" for clip in entry.clips])
        groups = {charts.REAL: (0, entry.score[entry.label == REAL])}
        groups |= {f"fake {name}": (number, entry.score[group == name]) for name, number in categories.items()}
        groups = {name: (number, score) for name, (number, score) in groups.items() if len(score)}
        if groups:
            title = f"{entry.method}, {STATES[entry.trimmed]}"
            label = f"Histogram of clip scores, {title}: {', '.join(groups)}"
            yield Picture(title, charts.histogram_chart(f"{anchor}-histogram-{n}", label, groups))


def examples(entries: Sequence[Entry], state: bool | None, anchor: str, methods: dict[str, int]) -> tuple[Group, ...]:
    """The clips of one state that the first method with frame scores is most sure of, rightly and wrongly."""
    drawn = [entry for entry in timed(entries) if entry.trimmed is state]
    if not drawn:
        return ()
    frames = {methods[entry.method]: _standardised(entry) for entry in drawn}
    return tuple(
        Group(title, tuple(_timeline(drawn[0], n, frames, f"{anchor}-timeline-{state}-{n}") for n in chosen))
        for title, chosen in _extremes(drawn[0])
        if chosen
    )


def timed(entries: Sequence[Entry]) -> list[Entry]:
    """Entries whose frame scores are drawn over time: of the first methods that have some."""
    found = [entry for entry in entries if entry.table.frame is not None]
    methods = list(dict.fromkeys(entry.method for entry in found))[:TIMED]
    return [entry for entry in found if entry.method in methods]


def _extremes(entry: Entry) -> Iterable[tuple[str, list[int]]]:
    """A few clips of each kind, none twice."""
    label, order, shown = entry.label, np.argsort(entry.score, kind="stable"), []
    for wanted, highest, title in KINDS:
        ranked = order[(label[order] == wanted) & ~np.isin(order, shown)]
        chosen = ranked[:: -1 if highest else 1][:EXAMPLES].tolist()
        shown += chosen
        yield title, chosen


def _standardised(entry: Entry) -> dict[str, Float[np.ndarray, " T"]]:
    """Frame scores by clip, of zero mean and unit variance over all frames of the entry."""
    frame = entry.table.frame.astype(np.float64)
    frame = (frame - frame.mean()) / (frame.std() or 1.0)
    return dict(zip((clip.path for clip in entry.clips), np.split(frame, entry.table.offset[1:-1]), strict=True))


def _timeline(entry: Entry, n: int, frames: dict[int, dict[str, np.ndarray]], name: str) -> Picture:
    clip = entry.clips[n]
    title = f"{clip.path}, score {format_number(float(entry.score[n]))}"
    label = f"Frame scores over time of {clip.path}, {len(clip.segments)} fake segments shaded"
    lines = {number: clips[clip.path] for number, clips in frames.items() if clip.path in clips}
    return Picture(title, charts.timeline_chart(name, label, lines, clip.segments))
