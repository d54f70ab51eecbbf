"""Renders templates as self-contained HTML files; formats numbers with their keys in metrics.json, and timelines."""

import base64
import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from jaxtyping import Float
from markupsafe import Markup

from avh_shards.clip import FRAME_RATE
from avh_shards.text import printable

TEMPLATES = Path(__file__).parent / "templates"
UNDEFINED = "undefined"  # text for a metric without a value, e.g. for lack of a class
DECIMALS = 4  # decimals of printed numbers
SMALLEST = 1e-4  # smaller numbers other than zero get an exponent
BUCKETS = 200  # buckets of a timeline, each reduced to its lowest and highest frame

ENVIRONMENT = jinja2.Environment(
    loader=jinja2.FileSystemLoader(TEMPLATES),
    autoescape=True,
    finalize=lambda value: printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def render_page(template: str, script: str = "", **values: object) -> str:
    """Renders a template and returns the text of an HTML file.

    The page may fetch nothing and may run only its own script, identified by hash: even if text of a clip list were
    interpreted as HTML, it could not run.

    Args:
      template: name of the template.
      script: name of the page's script in the templates' folder; "" = none.
      values: variables of the template.
    """
    source = (TEMPLATES / script).read_text(encoding="utf-8") if script else ""
    digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
    return ENVIRONMENT.get_template(template).render(script=Markup(source), digest=digest, **values)  # noqa: S704


def format_number(value: float | int | None) -> str:
    """Formats a number for tables: counts in full, fractions to four decimals, None as "undefined"."""
    if value is None:
        return UNDEFINED
    if isinstance(value, int):
        return str(value)
    return f"{value:.{DECIMALS}f}" if value == 0 or abs(value) >= SMALLEST else f"{value:.1e}"


def envelope(frame: Float[np.ndarray, " T"]) -> tuple[Float[np.ndarray, " Q"], Float[np.ndarray, " Q"]]:
    """Returns seconds and scores of a timeline's points: every frame, or the lowest and highest of each bucket.

    The last frame's score is repeated at its end, so that the line spans the clip.
    """
    index = np.arange(len(frame))
    if len(frame) > 2 * BUCKETS:
        parts = np.array_split(index, BUCKETS)
        index = np.unique([[part[frame[part].argmin()], part[frame[part].argmax()]] for part in parts])
    seconds = np.append(index, len(frame)) / FRAME_RATE
    return seconds, np.append(frame[index], frame[-1]).astype(np.float64)


def value_at(node: Any, pointer: str) -> Any:
    """Returns the value in nested dataclasses, sequences and dictionaries at a pointer such as "results/0/metrics/auc".

    Keys of dictionaries are compared as text, as JSON writes them.
    """
    for key in pointer.split("/"):
        if dataclasses.is_dataclass(node):
            node = getattr(node, key)
        elif isinstance(node, dict):
            node = {str(name): value for name, value in node.items()}[key]
        else:
            node = node[int(key)]
    return node


def keyed_number(root: Any, pointer: str) -> Markup:
    """Formats the number at a pointer, with the pointer as its data-key, by which the page can be checked."""
    return Markup('<span data-key="{}">{}</span>').format(pointer, format_number(value_at(root, pointer)))
