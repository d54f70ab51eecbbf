"""Readers for lists that people write or programs export: text files, their lines, and CSV tables with a header."""

import collections
import csv
import difflib
import io
from collections.abc import Iterator, Sequence

from avh_shards.errors import UserError
from avh_shards.paths import GZIP, HDF5, ZIP, AnyPath, as_path
from avh_shards.text import one_line, warn

LARGEST_FILE = 2**31  # bytes; the largest released metadata, that of AV-Deepfake1M++, has 557 MB
DELIMITERS = ",;\t|"
BYTE_ORDER_MARKS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}  # anything else is UTF-8, with or without a mark
NOT_TEXT = {  # first bytes of other kinds of files that people name .csv
    ZIP: "a spreadsheet or another zip archive; save the spreadsheet as CSV",
    b"\xd0\xcf\x11\xe0": "an Excel workbook; save it as CSV",  # before Excel 2007
    GZIP: "compressed by gzip; unpack it",
    HDF5: "an HDF5 file, not a list",
}
ALIKE = 0.76  # least difflib ratio of a misspelt column: `lable`, `catagory`, `segments` for `fake_segments`
SHOWN_COLUMNS = 8  # most columns that a message names


def read_text(path: AnyPath, remedy: str = "") -> str:
    """Reads a text file in UTF-8, or in UTF-16 with a byte order mark, as spreadsheets save it.

    Args:
      path: a regular file; reading a pipe or a device might never end.
      remedy: what to do about a missing file, for the message.

    Raises:
      UserError: the file is missing, not a regular file, too large or not text; where possible, the message names the
        line.
    """
    path = as_path(path)
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{path}: is {'a folder' if path.is_dir() else 'a pipe or a device'}; name a text file")
        if (size := path.stat().st_size) > LARGEST_FILE:
            raise UserError(f"{path}: has {size:,} bytes, but a list may have at most {LARGEST_FILE:,}; split it")
        data = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file{remedy and f'; {remedy}'}") from None
    except UserError:
        raise
    except Exception as error:  # each fsspec file system raises its own errors
        reason = one_line(getattr(error, "strerror", None) or error)
        raise UserError(f"{path}: cannot be read ({reason}); name a readable file") from None
    for start, what in NOT_TEXT.items():
        if data.startswith(start):
            raise UserError(f"{path}: is {what}")
    encoding = BYTE_ORDER_MARKS.get(data[:2], "UTF-8")
    try:
        text = data.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = data[: error.start].decode(encoding, "replace").count("\n") + 1
        what = f"byte 0x{data[error.start]:02x} is not {encoding}; save the file as UTF-8"
        raise UserError(f"{path}, line {line}: {what}") from None
    before, found, _ = text.partition("\0")
    if found:  # UTF-16 without a byte order mark, or a damaged file
        line = before.count("\n") + 1
        raise UserError(f"{path}, line {line}: holds a NUL character; save the file as UTF-8")
    return text


def read_lines(path: AnyPath, remedy: str = "") -> Iterator[tuple[int, str]]:
    """Yields each line of a text file that is not blank, stripped, with its number.

    Args:
      path: as for `read_text`.
      remedy: as for `read_text`.

    Yields:
      (number of the line from 1, text).

    Raises:
      UserError: as for `read_text`.
    """
    for number, line in enumerate(io.StringIO(read_text(path, remedy), newline=None), 1):
        if text := line.strip():
            yield number, text


def read_table(
    path: AnyPath,
    columns: Sequence[str],
    required: Sequence[str] = (),
    unread: Sequence[str] = (),
    remedy: str = "",
) -> Iterator[tuple[int, dict[str, str]]]:
    """Yields the rows of a CSV table that are not blank.

    The delimiter is the comma, semicolon, tab or bar that finds the most columns in the header. Column names match
    regardless of case and surrounding blanks. A warning lists columns that are not read.

    Args:
      path: a text file with a header.
      columns: the columns that the caller reads, spelt as the keys of the rows.
      required: columns that must be present.
      unread: other columns that do not cause a warning.
      remedy: what to do about a missing file, for the message.

    Yields:
      (number of the row's first line, {column: stripped text}).

    Raises:
      UserError: as for `read_text`; or a column is missing, misspelt or duplicate, or a row does not match the header.
    """
    text = read_text(path, remedy)
    rows = _rows(path, text, _delimiter(text, columns))
    line, header = next(rows, (1, []))
    names = _read_header(f"{path}, line {line}", header, columns, required, unread)
    for line, row in rows:
        if len(row) != len(names):
            fields = f"the number of fields differs from the header: {len(row)}, not {len(names)} ({_listed(names)})"
            raise UserError(f"{path}, line {line}: {fields}; correct the line, or quote fields that hold a delimiter")
        yield line, dict(zip(names, map(str.strip, row), strict=True))


def _rows(path: AnyPath, text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yields (number of its first line, fields) for each row that is not blank."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            row = next(reader, None)
        except csv.Error as error:  # "unexpected end of data" does not say where the unclosed quote is
            what = f"not readable as CSV ({error}); check the quotes from this line on"
            raise UserError(f"{path}, line {line}: {what}") from None
        if row is None:
            return
        if any(map(str.strip, row)):
            yield line, row


def _delimiter(text: str, columns: Sequence[str]) -> str:
    header = io.StringIO(text.lstrip(), newline=None).readline()
    plain = {name.casefold() for name in columns}
    return max(DELIMITERS, key=lambda d: sum(name.strip(' "\n').casefold() in plain for name in header.split(d)))


def _read_header(
    where: str, header: Sequence[str], columns: Sequence[str], required: Sequence[str], unread: Sequence[str]
) -> list[str]:
    """Returns the names of a table's columns, those in `columns` and `unread` in the spelling given there."""
    spelling = {name.casefold(): name for name in (*columns, *unread)}
    names = [spelling.get(name.strip().casefold(), name.strip()) for name in header]
    counts = collections.Counter(name.casefold() for name in names if name)
    if twice := [name for name, count in counts.items() if count > 1]:
        raise UserError(f"{where}: names the column `{one_line(twice[0])}` twice; remove or rename one of them")
    absent = [name for name in columns if name not in names]
    # pandas calls a column without a name "Unnamed: 0".
    others = [name for name in names if name.casefold() not in spelling and name and not name.startswith("Unnamed:")]
    for name in others:
        if meant := difflib.get_close_matches(name.casefold(), absent, 1, ALIKE):
            raise UserError(f"{where}: no column `{meant[0]}`, but `{one_line(name)}`; rename it")
    if missing := [name for name in required if name in absent]:
        there = f"({_listed(names)})" if names else "(the file is empty)"
        raise UserError(f"{where}: no column `{missing[0]}` in the header {there}; name the columns in the first line")
    if others:
        warn(f"{where}: columns that are not read: {_listed(others)}")
    return names


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(map(one_line, names[:SHOWN_COLUMNS]))
    return shown if len(names) <= SHOWN_COLUMNS else f"{shown}, ..."
