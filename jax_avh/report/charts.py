"""Charts of scores (curves, histograms, timelines) as SVG elements of a page.

Lines differ in colour and dashes. Legends are part of the page, which wraps them at any width. Colours come from the
page's style sheet, so they follow its light and dark schemes.
"""

import dataclasses
import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import matplotlib
import numpy as np
from jaxtyping import Float
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from avh_shards.clip import FRAME_RATE
from avh_shards.text import printable
from jax_avh.report.page import envelope

CURVE_HEIGHT = 290  # points: height of curves
LOW = 180  # points: height of all other charts
GRID = 240  # cells along each axis of a curve, which keeps one point per cell, fewer than 500 in all
BINS = 24  # bins of a histogram
TAIL = 0.1  # percent of the scores at either end that fall into the outermost bins

DASHES = ("", "7 3", "2 2.5", "9 3 2 3", "12 4")  # SVG dash arrays of lines, in points
FILLED = "real"  # histogram group that is drawn filled

CHART_WIDTH = 340  # points
MARGINS = {"left": 50, "right": 10, "top": 8, "bottom": 40}  # points
TICKS = 6  # at most, per axis
LINE_COLOURS = 6

# Placeholder colours that matplotlib writes -> the page's variables that replace them.
VARIABLES = {f"#fe00e{n}": f"var(--line-{n})" for n in range(LINE_COLOURS)}
VARIABLES |= {"#fe00f0": "var(--quiet)", "#fe00f1": "var(--rule)", "#fe00f2": "var(--shade)", "#fe00f3": "var(--real)"}
LINES = tuple(VARIABLES)[:LINE_COLOURS]
QUIET_COLOUR, RULE, SHADED, REAL_CLIPS = tuple(VARIABLES)[LINE_COLOURS:]

# Replacements that strip matplotlib's files of what a page does not need or provides itself.
SHORTER = [
    (r"<!--.*?-->|<metadata>.*?</metadata>|<style.*?</style>", ""),
    (r'<g id="[^"]*"', "<g"),
    (r" font-family: [^;]*;", ""),
    (r' transform="rotate\(-0 [^"]*"', ""),
    (r"(\d\.\d)\d+(?=[^<>]*>)", r"\1"),  # coordinates, never a tick's label
    (r"\s*\n\s*([A-Zz<])?", r"\1"),
    (r"<g/>|<defs></defs>", ""),
]
STYLE: dict[str, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": QUIET_COLOUR,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.labelcolor": QUIET_COLOUR,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.dpi": 72,
    "figure.facecolor": "none",
    "font.size": 12,
    "grid.color": RULE,
    "grid.linewidth": 0.8,
    "lines.linewidth": 1.8,
    "lines.scale_dashes": False,
    "svg.fonttype": "none",
    "xtick.color": QUIET_COLOUR,
    "xtick.major.size": 0,
    "ytick.color": QUIET_COLOUR,
    "ytick.major.size": 0,
}


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of a chart."""

    number: int  # number of the method or category, which determines the look in every chart
    x: Float[np.ndarray, " P"]
    y: Float[np.ndarray, " P"]


def dash(number: int) -> str:
    """Returns the dash array of a line; dashes and colour together are unique among the first thirty lines."""
    return DASHES[number % len(DASHES)]


def roc_chart(name: str, label: str, lines: Sequence[Line]) -> Markup:
    """Draws ROC curves: the share of fakes found against the share of real clips taken for fake.

    Args:
      name: name of the chart, unique in the page; ids in the chart start with it.
      label: description of the chart for screen readers.
      lines: false (x) and true (y) positive rates.

    Returns:
      The SVG element.
    """

    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=QUIET_COLOUR, linewidth=0.8, dashes=(1, 3))
        for line in lines:
            axes.plot(*thinned(line.x, line.y), **_look(line.number))
        _unit_square(axes, "real clips taken for fake", "fakes found")

    return svg_chart(name, label, CURVE_HEIGHT, draw)


def precision_recall_chart(name: str, label: str, lines: Sequence[Line]) -> Markup:
    """Draws precision against recall, in steps whose area is the average precision.

    Args:
      name: as for `roc_chart`.
      label: as for `roc_chart`.
      lines: recall (x), rising, and precision (y).

    Returns:
      The SVG element.
    """

    def draw(axes: Axes) -> None:
        for line in lines:
            axes.plot(*thinned(line.x, line.y), drawstyle="steps-pre", **_look(line.number))
        _unit_square(axes, "fakes found (recall)", "precision")

    return svg_chart(name, label, CURVE_HEIGHT, draw)


def histogram_chart(name: str, label: str, groups: Mapping[str, tuple[int, np.ndarray]]) -> Markup:
    """Draws histograms of clip scores, in percent of each group; the group "real" is filled.

    Args:
      name: as for `roc_chart`.
      label: as for `roc_chart`.
      groups: name of each group -> (line number, scores).

    Returns:
      The SVG element.
    """
    edges = _edges(np.concatenate([score for _, score in groups.values()]).astype(np.float64))

    def draw(axes: Axes) -> None:
        for group, (number, score) in groups.items():
            percent = 100 * np.histogram(np.clip(score, edges[0], edges[-1]), edges)[0] / len(score)
            if group == FILLED:
                axes.stairs(percent, edges, fill=True, color=REAL_CLIPS, linewidth=0)
            else:
                axes.stairs(percent, edges, **_look(number))
        axes.set(xlabel="clip score (higher = more fake)", ylabel="% of clips", xlim=(edges[0], edges[-1]))

    return svg_chart(name, label, LOW, draw)


def timeline_chart(
    name: str, label: str, frames: Mapping[int, Float[np.ndarray, " T"]], segments: Sequence[tuple[float, float]]
) -> Markup:
    """Draws frame scores over time, with fake segments shaded.

    Args:
      name: as for `roc_chart`.
      label: as for `roc_chart`.
      frames: line number -> frame scores, 25 per second.
      segments: start and end of each fake segment, in seconds.

    Returns:
      The SVG element.
    """

    def draw(axes: Axes) -> None:
        for start, end in segments:
            axes.axvspan(start, end, color=SHADED, linewidth=0)
        for number, frame in frames.items():
            axes.plot(*envelope(frame), **_look(number, width=1.5))
        longest = max(len(frame) for frame in frames.values())
        axes.set(xlabel="seconds", ylabel="standardised score", xlim=(0, longest / FRAME_RATE))

    return svg_chart(name, label, LOW, draw)


def reliability_chart(name: str, label: str, line: Line) -> Markup:
    """Draws the share of fakes against the probability that clips were given; on the diagonal, the two agree.

    Args:
      name: as for `roc_chart`.
      label: as for `roc_chart`.
      line: mean probability (x) and share of fakes (y) of each group of clips.

    Returns:
      The SVG element.
    """

    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=QUIET_COLOUR, linewidth=0.8, dashes=(1, 3))
        axes.plot(line.x, line.y, marker="o", markersize=5, **_look(line.number))
        _unit_square(axes, "probability of a fake", "share of fakes")

    return svg_chart(name, label, CURVE_HEIGHT, draw)


def kept_chart(name: str, label: str, line: Line) -> Markup:
    """Draws the accuracy against the share of clips that are kept, those with the surest probabilities.

    Args:
      name: as for `roc_chart`.
      label: as for `roc_chart`.
      line: share of clips (x), rising, and accuracy (y).

    Returns:
      The SVG element.
    """

    def draw(axes: Axes) -> None:
        axes.plot(line.x, line.y, **_look(line.number))
        axes.set(xlabel="share of clips kept", ylabel="accuracy", xlim=(0, 1.01), ylim=(min(0.5, *line.y), 1.01))

    return svg_chart(name, label, CURVE_HEIGHT, draw)


def uniformity_chart(name: str, label: str, p_value: Float[np.ndarray, " N"]) -> Markup:
    """Draws the share of real clips with p-values up to each level; on the diagonal, p-values hold what they promise.

    Args:
      name: as for `roc_chart`.
      label: as for `roc_chart`.
      p_value: p-values of real clips.

    Returns:
      The SVG element.
    """

    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=QUIET_COLOUR, linewidth=0.8, dashes=(1, 3))
        share = np.arange(len(p_value) + 1) / len(p_value)
        axes.plot(*thinned(np.append(0.0, np.sort(p_value)), share), drawstyle="steps-post", **_look(0))
        _unit_square(axes, "p-value", "real clips with at most this")

    return svg_chart(name, label, CURVE_HEIGHT, draw)


def svg_chart(name: str, label: str, height: int, draw: Callable[[Axes], None]) -> Markup:
    """Draws a chart as an SVG element of a page.

    Args:
      name: name of the chart, unique in the page; ids in the chart start with it.
      label: description of the chart for screen readers.
      height: height in points; all charts are CHART_WIDTH wide.
      draw: draws on the chart's axes, in the placeholder colours.

    Returns:
      The SVG element.
    """
    with matplotlib.rc_context(cast(Any, STYLE | {"svg.hashsalt": name})):
        figure = Figure(figsize=(CHART_WIDTH / 72, height / 72))
        width = (CHART_WIDTH - MARGINS["left"] - MARGINS["right"]) / CHART_WIDTH
        inner = (height - MARGINS["top"] - MARGINS["bottom"]) / height
        axes = figure.add_axes((MARGINS["left"] / CHART_WIDTH, MARGINS["bottom"] / height, width, inner))
        draw(axes)
        axes.xaxis.set_major_locator(MaxNLocator(TICKS, steps=[1, 2, 5, 10]))
        axes.yaxis.set_major_locator(MaxNLocator(TICKS, steps=[1, 2, 5, 10]))
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return _inline(file.getvalue(), label, height)


def thinned(
    x: Float[np.ndarray, " P"], y: Float[np.ndarray, " P"]
) -> tuple[Float[np.ndarray, " Q"], Float[np.ndarray, " Q"]]:
    """Thins a curve in the unit square to its first point in each cell of a grid, plus its last point."""
    cell = np.floor(np.stack([x, y]) * GRID)
    kept = np.append(True, (np.diff(cell) != 0).any(axis=0))
    kept[-1] = True
    return x[kept], y[kept]


def _look(number: int, width: float = 1.8) -> dict[str, Any]:
    pattern = dash(number)
    style = (0, tuple(float(part) for part in pattern.split())) if pattern else "-"
    return {"color": LINES[number % len(LINES)], "linestyle": style, "linewidth": width}


def _edges(score: Float[np.ndarray, " N"]) -> Float[np.ndarray, " borders"]:
    finite = score[np.isfinite(score)] if np.isfinite(score).any() else np.zeros(1)
    return np.histogram_bin_edges(finite, BINS, range=tuple(np.percentile(finite, [TAIL, 100 - TAIL]).tolist()))


def _unit_square(axes: Axes, xlabel: str, ylabel: str) -> None:
    axes.set(xlabel=xlabel, ylabel=ylabel, xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))


def _inline(svg: str, label: str, height: int) -> Markup:
    """Turns an SVG file into an element of a page, with the page's font and colours and a label for screen readers."""
    body = svg[svg.index(">", svg.index("<svg")) + 1 :]
    for pattern, replacement in SHORTER:
        body = re.sub(pattern, replacement, body, flags=re.DOTALL)
    for placeholder, variable in VARIABLES.items():
        body = body.replace(placeholder, variable)
    head = Markup('<svg role="img" aria-label="{}" viewBox="0 0 {} {}">').format(printable(label), CHART_WIDTH, height)
    return head + Markup(body.strip())  # noqa: S704 (contains only text generated here)
