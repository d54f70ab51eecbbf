"""Pages: templates filled into one HTML file that needs no other, and numbers that tell where they come from."""

import base64
import hashlib
from pathlib import Path

import jinja2
from markupsafe import Markup

from avh_shards import atomic_write, printable
from avh_shards.paths import AnyPath

TEMPLATES = Path(__file__).parent / "templates"
UNDEFINED = "undefined"  # what is printed for a metric that a class or a clip too few leaves without a value
DECIMALS, SMALLEST = 4, 1e-4  # of printed numbers; what is smaller but not zero gets an exponent

ENVIRONMENT = jinja2.Environment(
    loader=jinja2.FileSystemLoader(TEMPLATES),
    autoescape=True,
    finalize=lambda value: printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def render_page(template: str, script: str = "", **values: object) -> str:
    """Fills a template: the text of an HTML file.

    The page may fetch nothing and may run its own script alone, by the script's hash: text of a clip list that were
    ever taken for HTML would still do nothing.

    Args:
      template: name of the template.
      script: name of the page's script in the templates' folder; "" = none.
      values: what the template names.
    """
    source = (TEMPLATES / script).read_text(encoding="utf-8") if script else ""
    digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
    return ENVIRONMENT.get_template(template).render(script=Markup(source), digest=digest, **values)  # noqa: S704


def write_page(path: AnyPath, template: str, script: str = "", **values: object) -> None:
    """Writes the page that `render_page` makes, whole or not at all."""
    text = render_page(template, script, **values)
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def format_number(value: float | int | None) -> str:
    """A number as every table prints it: counts in full, fractions to four decimals, None as "undefined"."""
    if value is None:
        return UNDEFINED
    if isinstance(value, int):
        return str(value)
    return f"{value:.{DECIMALS}f}" if value == 0 or abs(value) >= SMALLEST else f"{value:.1e}"


def value_at(tree: object, pointer: str) -> object:
    """What stands in nested lists and dictionaries at a pointer such as "results/0/metrics/auc"."""
    for key in pointer.split("/"):
        tree = tree[key] if isinstance(tree, dict) else tree[int(key)]
    return tree


def keyed_number(tree: object, pointer: str) -> Markup:
    """The number at a pointer, printed, with the pointer as its data-key: so the page can be checked."""
    return Markup('<span data-key="{}">{}</span>').format(pointer, format_number(value_at(tree, pointer)))
