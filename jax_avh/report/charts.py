"""Charts of scores: curves, histograms, timelines.

Lines are told apart by colour and by dashes; legends belong to the page, which wraps them at any width.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from markupsafe import Markup
from matplotlib.axes import Axes

from avh_shards import FRAME_RATE
from jax_avh.report.svg import LINES, QUIET, REAL_CLIPS, SHADE, svg_chart

SQUARE, LOW = 290, 180  # points: height of curves, and that of all other charts
GRID = 240  # cells along an axis of a curve: it keeps a point a cell, under 500 in all
BUCKETS = 200  # of a timeline: each keeps its lowest and highest frame
BINS = 24  # of a histogram
TAIL = 0.1  # percent of the scores at either end that the outermost bins take in

DASHES = ("", "7 3", "2 2.5", "9 3 2 3", "12 4")  # of lines: SVG's dash arrays, in points
REAL = "real"  # histogram group that is drawn filled


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of a chart."""

    number: int  # of the method or category: gives the same look in every chart
    x: Float[np.ndarray, " P"]
    y: Float[np.ndarray, " P"]


def dash(number: int) -> str:
    """Dash array of a line; with its colour, different for the first thirty."""
    return DASHES[number % len(DASHES)]


def roc_chart(name: str, label: str, lines: Sequence[Line]) -> Markup:
    """ROC curves: share of real clips taken for fake against share of fakes found.

    Args:
      name: of the chart, unique in the page: its ids are made of it.
      label: what the chart shows, for who cannot see it.
      lines: false and true positive rates.
    """

    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=QUIET, linewidth=0.8, dashes=(1, 3))
        for line in lines:
            axes.plot(*thinned(line.x, line.y), **_look(line.number))
        _unit_square(axes, "real clips taken for fake", "fakes found")

    return svg_chart(name, label, SQUARE, draw)


def precision_recall_chart(name: str, label: str, lines: Sequence[Line]) -> Markup:
    """Precision over recall, in the steps whose area is the average precision; recall rises along the lines."""

    def draw(axes: Axes) -> None:
        for line in lines:
            axes.plot(*thinned(line.x, line.y), drawstyle="steps-pre", **_look(line.number))
        _unit_square(axes, "fakes found (recall)", "precision")

    return svg_chart(name, label, SQUARE, draw)


def histogram_chart(name: str, label: str, groups: Mapping[str, tuple[int, np.ndarray]]) -> Markup:
    """Clip scores of each group (name -> its line's number, scores), in percent of the group; "real" is filled."""
    edges = _edges(np.concatenate([score for _, score in groups.values()]).astype(np.float64))

    def draw(axes: Axes) -> None:
        for group, (number, score) in groups.items():
            percent = 100 * np.histogram(np.clip(score, edges[0], edges[-1]), edges)[0] / len(score)
            if group == REAL:
                axes.stairs(percent, edges, fill=True, color=REAL_CLIPS, linewidth=0)
            else:
                axes.stairs(percent, edges, **_look(number))
        axes.set(xlabel="clip score (higher = more fake)", ylabel="% of clips", xlim=(edges[0], edges[-1]))

    return svg_chart(name, label, LOW, draw)


def timeline_chart(
    name: str, label: str, frames: Mapping[int, Float[np.ndarray, " T"]], segments: Sequence[tuple[float, float]]
) -> Markup:
    """Frame scores over time (line's number -> scores), 25 a second; fake segments, in seconds, are shaded."""

    def draw(axes: Axes) -> None:
        for start, end in segments:
            axes.axvspan(start, end, color=SHADE, linewidth=0)
        for number, frame in frames.items():
            axes.plot(*envelope(frame), **_look(number) | {"linewidth": 1.5})
        longest = max(len(frame) for frame in frames.values())
        axes.set(xlabel="seconds", ylabel="standardised score", xlim=(0, longest / FRAME_RATE))

    return svg_chart(name, label, LOW, draw)


def thinned(
    x: Float[np.ndarray, " P"], y: Float[np.ndarray, " P"]
) -> tuple[Float[np.ndarray, " Q"], Float[np.ndarray, " Q"]]:
    """A curve in the unit square by the first of its points in each cell of a grid, and its last point."""
    cell = np.floor(np.stack([x, y]) * GRID)
    kept = np.append(True, (np.diff(cell) != 0).any(axis=0))
    kept[-1] = True
    return x[kept], y[kept]


def envelope(frame: Float[np.ndarray, " T"]) -> tuple[Float[np.ndarray, " Q"], Float[np.ndarray, " Q"]]:
    """Seconds and scores of a timeline's points: every frame, or the lowest and the highest of each stretch.

    The last frame is held to its end, so that the line spans the clip.
    """
    index = np.arange(len(frame))
    if len(frame) > 2 * BUCKETS:
        parts = np.array_split(index, BUCKETS)
        index = np.unique([[part[frame[part].argmin()], part[frame[part].argmax()]] for part in parts])
    seconds = np.append(index, len(frame)) / FRAME_RATE
    return seconds, np.append(frame[index], frame[-1]).astype(np.float64)


def _look(number: int) -> dict[str, object]:
    pattern = dash(number)
    style = (0, tuple(float(part) for part in pattern.split())) if pattern else "-"
    return {"color": LINES[number % len(LINES)], "linestyle": style, "linewidth": 1.8}


def _edges(score: Float[np.ndarray, " N"]) -> Float[np.ndarray, " borders"]:
    finite = score[np.isfinite(score)] if np.isfinite(score).any() else np.zeros(1)
    return np.histogram_bin_edges(finite, BINS, range=tuple(np.percentile(finite, [TAIL, 100 - TAIL]).tolist()))


def _unit_square(axes: Axes, xlabel: str, ylabel: str) -> None:
    axes.set(xlabel=xlabel, ylabel=ylabel, xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
