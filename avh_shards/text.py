"""Functions that make outside text (file names, notes in files, library errors) safe to print, and text tables."""

import difflib
import sys
import unicodedata
from collections.abc import Iterable, Sequence


def one_line(text: object) -> str:
    r"""Returns text on one line, with everything that could control a terminal written out as an escape.

    Runs of white space become one blank; other unprintable characters (terminal escapes, zero-width characters,
    changes of writing direction, lone surrogates) become `\x1b`, `\u200b`, ...
    """
    return printable(" ".join(str(text).split()))


def printable(text: str) -> str:
    """Returns text with every unprintable character, including line breaks, written out as an escape."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode("ascii") for c in text)


def format_table(rows: Sequence[Sequence[str]], right: bool = False) -> str:
    """Returns rows of cells as lines of aligned columns; cells may hold text from outside.

    Args:
      rows: rows of equal length, the headings first.
      right: whether cells are aligned right instead of left.
    """
    shown = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    adjust = str.rjust if right else str.ljust
    lines = ("  ".join(adjust(cell, width) for cell, width in zip(row, widths, strict=True)) for row in shown)
    return "\n".join(line.rstrip() for line in lines)


def nearest(name: str, names: Iterable[str], prefix: str = "") -> str:
    """Returns "; did you mean NAME?" with the name in `names` most similar to `name`, or "" if none is similar.

    Args:
      name: the unknown name.
      names: the known names.
      prefix: precedes NAME in the result, for example "--".
    """
    found = difflib.get_close_matches(name, names, 1)
    return f"; did you mean {prefix}{found[0]}?" if found else ""


def unprintable(text: str) -> str:
    """Names the first unprintable character of a text ("U+200B ZERO WIDTH SPACE"); "" if there is none."""
    if text.isprintable():
        return ""
    character = next(c for c in text if not c.isprintable())
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # Python's surrogate escapes of undecodable bytes in file names
        return f"the byte 0x{code - 0xDC00:02X}, which is not UTF-8"
    return f"U+{code:04X} {unicodedata.name(character, '')}".rstrip()


def warn(text: object) -> None:
    """Prints a warning to standard error, on one line."""
    print(f"warning: {one_line(text)}", file=sys.stderr)
