"""Charts as SVG inside a page: the page's style sheet gives their colours, so they follow light and dark."""

import io
import re
from collections.abc import Callable

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from avh_shards import printable

WIDTH = 340  # points
MARGINS = {"left": 50, "right": 10, "top": 8, "bottom": 40}  # points
TICKS = 6  # of an axis, at most
COLOURS = 6  # of lines

# Placeholders that matplotlib writes for colours, and the page's variables that take their place.
VARIABLES = {f"#fe00e{n}": f"var(--line-{n})" for n in range(COLOURS)}
VARIABLES |= {"#fe00f0": "var(--quiet)", "#fe00f1": "var(--rule)", "#fe00f2": "var(--shade)", "#fe00f3": "var(--real)"}
LINES = tuple(VARIABLES)[:COLOURS]
QUIET, RULE, SHADE, REAL_CLIPS = tuple(VARIABLES)[COLOURS:]
# What a page does not need of matplotlib's files, or has itself.
SHORTER = [
    (r"<!--.*?-->|<metadata>.*?</metadata>|<style.*?</style>", ""),
    (r'<g id="[^"]*"', "<g"),
    (r" font-family: [^;]*;", ""),
    (r' transform="rotate\(-0 [^"]*"', ""),
    (r"(\d\.\d)\d+(?=[^<>]*>)", r"\1"),  # coordinates, never a tick's label
    (r"\s*\n\s*([A-Zz<])?", r"\1"),
    (r"<g/>|<defs></defs>", ""),
]
STYLE = {
    "axes.axisbelow": True,
    "axes.edgecolor": QUIET,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.labelcolor": QUIET,
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
    "xtick.color": QUIET,
    "xtick.major.size": 0,
    "ytick.color": QUIET,
    "ytick.major.size": 0,
}


def svg_chart(name: str, label: str, height: int, draw: Callable[[Axes], None]) -> Markup:
    """A chart as an SVG element of a page.

    Args:
      name: of the chart, unique in the page: its ids are made of it.
      label: what the chart shows, for who cannot see it.
      height: in points; all charts are WIDTH wide.
      draw: draws on the chart's axes, in the placeholders' colours.
    """
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": name}):
        figure = Figure(figsize=(WIDTH / 72, height / 72))
        axes = figure.add_axes(_place(height))
        draw(axes)
        axes.xaxis.set_major_locator(MaxNLocator(TICKS, steps=[1, 2, 5, 10]))
        axes.yaxis.set_major_locator(MaxNLocator(TICKS, steps=[1, 2, 5, 10]))
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return _inline(file.getvalue(), label, height)


def _place(height: int) -> tuple[float, float, float, float]:
    """The axes' box in a figure, in parts of it."""
    inner = WIDTH - MARGINS["left"] - MARGINS["right"], height - MARGINS["top"] - MARGINS["bottom"]
    return MARGINS["left"] / WIDTH, MARGINS["bottom"] / height, inner[0] / WIDTH, inner[1] / height


def _inline(svg: str, label: str, height: int) -> Markup:
    """An SVG file as part of a page: the page's font and colours, a name for screen readers."""
    body = svg[svg.index(">", svg.index("<svg")) + 1 :]
    for pattern, replacement in SHORTER:
        body = re.sub(pattern, replacement, body, flags=re.DOTALL)
    for placeholder, variable in VARIABLES.items():
        body = body.replace(placeholder, variable)
    head = Markup('<svg role="img" aria-label="{}" viewBox="0 0 {} {}">').format(printable(label), WIDTH, height)
    return head + Markup(body.strip())  # noqa: S704 (holds no text but our own)
