"""Fills templates into one HTML file that needs no other, and prints numbers with the key they have in metrics.json."""

import base64
import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from avh_shards.text import printable

TEMPLATES = Path(__file__).parent / "templates"
UNDEFINED = "undefined"  # a metric without a value, e.g. for lack of a class
DECIMALS = 4  # of printed numbers
SMALLEST = 1e-4  # what is smaller but not zero gets an exponent

ENVIRONMENT = jinja2.Environment(
    loader=jinja2.FileSystemLoader(TEMPLATES),
    autoescape=True,
    finalize=lambda value: printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def render_page(template: str, script: str = "", **values: object) -> str:
    """Fills a template and returns the text of an HTML file.

    The page may fetch nothing and may run only its own script, by the script's hash: text of a clip list that were
    ever taken for HTML would still do nothing.

    Args:
      template: name of the template.
      script: name of the page's script in the templates' folder; "" = none.
      values: what the template names.
    """
    source = (TEMPLATES / script).read_text(encoding="utf-8") if script else ""
    digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
    return ENVIRONMENT.get_template(template).render(script=Markup(source), digest=digest, **values)  # noqa: S704


def format_number(value: float | int | None) -> str:
    """Prints a number as in every table: counts in full, fractions to four decimals, None as "undefined"."""
    if value is None:
        return UNDEFINED
    if isinstance(value, int):
        return str(value)
    return f"{value:.{DECIMALS}f}" if value == 0 or abs(value) >= SMALLEST else f"{value:.1e}"


def value_at(node: Any, pointer: str) -> Any:
    """Returns the value in nested dataclasses, sequences and dictionaries at a pointer such as "results/0/metrics/auc".

    The keys of a dictionary are compared as they are written in JSON.
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
    """Prints the number at a pointer, with the pointer as its data-key: so the page can be checked."""
    return Markup('<span data-key="{}">{}</span>').format(pointer, format_number(value_at(root, pointer)))
