"""Text of others (file names, notes in files, errors of libraries), made fit to be printed."""

import sys
import unicodedata


def one_line(text: object) -> str:
    r"""Returns text on one line, with whatever a terminal would obey written out as an escape.

    Runs of white space become one blank; other characters that do not print (terminal escapes, zero-width characters,
    changes of writing direction, lone surrogates) become `\x1b`, `\u200b`, ...
    """
    words = " ".join(str(text).split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode("ascii") for c in words)


def unprintable(text: str) -> str:
    """Names the first character of a text that does not print: "U+200B ZERO WIDTH SPACE"; "" if all print."""
    if text.isprintable():
        return ""
    character = next(c for c in text if not c.isprintable())
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # how Python writes such bytes of file names
        return f"the byte 0x{code - 0xDC00:02X}, which is not UTF-8"
    return f"U+{code:04X} {unicodedata.name(character, '')}".rstrip()


def warn(text: object) -> None:
    """Prints a warning on standard error, on one line."""
    print(f"warning: {one_line(text)}", file=sys.stderr)
