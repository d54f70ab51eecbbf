"""Text of others (file names, notes in files, errors of libraries), made fit to be printed."""


def one_line(text: object) -> str:
    r"""Returns text on one line, with whatever a terminal would obey written out as an escape.

    Runs of white space become one blank; other characters that do not print (terminal escapes, zero-width characters,
    changes of writing direction, lone surrogates) become `\x1b`, `\u200b`, ...
    """
    words = " ".join(str(text).split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode("ascii") for c in words)
