"""The index of many videos' pages: one HTML file with a table of the verdicts, which a reader can sort."""

import base64
import dataclasses
import math
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any

from avh_shards.paths import FilePath, atomic_write
from jax_avh.report.page import format_number, render_page

JPEG = rb"\xff\xd8\xff"  # start of the file


@dataclasses.dataclass(frozen=True)
class Entry:
    """What the index shows of a verdict."""

    path: str
    error: str = ""
    no_page: str = ""
    passing: bool = False
    faces: str = ""  # what was found of faces and shots, in words
    warning: str = ""
    caveat: str = ""
    seconds: float = 0.0
    own_score: float = 0.0
    compared: bool = False  # whether there is a comparison with real clips, even if none has a similar length
    p_value: float | None = None  # of this comparison; None = there is none
    flagged: str = ""  # lowest false-alarm rate at which the video is flagged, as a decimal; "" = at none
    decided: str = ""  # lowest rate that the real clips of similar length suffice for; "" = they are too few for any
    undecided: bool = False  # whether they are too few for some rate
    unscored_seconds: float = 0.0  # of the video

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> "Entry":
        """Returns the entry of a verdict's fields and its property `faces`, as JSON holds them.

        Raises:
          ValueError: one is missing or has a different type.
        """
        texts = ("path", "error", "no_page", "faces", "warning", "caveat")
        kinds: dict[str, Any] = dict.fromkeys(texts, str) | {"passing": bool}
        numbers = ["seconds", "own_score"]
        found: dict[str, Any] = {name: fields.get(name) for name in (*kinds, *numbers)}
        found["no_page"] = fields.get("no_page", "")  # absent from older files
        if reference := fields.get("reference"):
            found["compared"] = True
            found["p_value"] = reference["p_value"]
            found["unscored_seconds"] = reference["unscored_seconds"]
            numbers.append("unscored_seconds")
            found["flagged"] = min(
                (rate for rate, flagged in reference["flagged"].items() if flagged), key=float, default=""
            )
            decided = [rate for rate, flagged in reference["flagged"].items() if flagged is not None]
            found["decided"] = min(decided, key=float, default="")
            found["undecided"] = len(decided) < len(reference["flagged"])
            numbers += [] if found["p_value"] is None else ["p_value"]
        kinds |= dict.fromkeys(numbers, int | float)
        if wrong := [name for name, kind in kinds.items() if not isinstance(found[name], kind)]:
            raise ValueError(f"its {wrong[0]} is missing or invalid")
        if wrong := [name for name in numbers if not math.isfinite(found[name])]:
            raise ValueError(f"its {wrong[0]} is not finite")
        return cls(**found)

    @property
    def rank(self) -> tuple:
        """Place in the order of suspicion: lower = more suspicious; failed videos come last."""
        return bool(self.error), self.compared and self.p_value is None, self.p_value or 0, -self.own_score, self.path


def write_index(path: FilePath, entries: Sequence[tuple[Entry, str]], thumbnail: str) -> None:
    """Writes the index: the most suspicious videos first, failed ones last.

    Args:
      path: the HTML file.
      entries: each video's entry, and the path of its page relative to the index, "" if it has none.
      thumbnail: suffix of the JPEG file next to a page, which the index embeds if it exists.

    Raises:
      UserError: the index cannot be written.
    """
    rows = [
        {
            "entry": entry,
            "page": urllib.parse.quote(page, errors="surrogateescape"),
            "picture": _data((path.parent / page).with_suffix(thumbnail)) if page else "",
        }
        for entry, page in sorted(entries, key=lambda row: row[0].rank)
    ]
    text = render_page(
        "index.html.jinja",
        "index.js",
        rows=rows,
        compared=any(entry.compared for entry, _ in entries),
        failed=sum(bool(entry.error) for entry, _ in entries),
        caveats=sorted({entry.caveat for entry, _ in entries} - {""}),
        number=format_number,
    )
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _data(picture: FilePath) -> str:
    """Returns a JPEG file as a data: URI; "" if there is none."""
    return f"data:image/jpeg;base64,{base64.b64encode(picture.read_bytes()).decode()}" if picture.exists() else ""
