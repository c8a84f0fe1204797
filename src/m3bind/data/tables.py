"""Text tables of any encoding, delimiter and compression.

* `open_table`: the text of a table: UTF-8 or UTF-16, with or without a byte order mark, gzip or not.
* `lines_of`: its lines, of bounded length and number. `most_unpacked`: the limit on its unpacked size.
* `layout`, `header`: the delimiter, and whether a line "sep=;" comes first; the column names.
* `read_rows`: the rows of such a table. `csv_text`: rows as CSV.
"""

import codecs
import contextlib
import csv
import gzip
import io
import math
import re
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TextIO

from m3bind.data.cells import column
from m3bind.errors import ManifestError

csv.field_size_limit(1 << 27)  # characters of a cell: reports, lists of readings
LINE, LINES = 1 << 27, 50_000_000  # characters of a line; lines of a manifest
HEAD = 4096  # bytes from which the encoding is detected
_CHUNK = 1 << 20  # letters read at once
SLACK, RATIO = 1 << 30, 50  # bytes that any table may unpack to, and additional bytes per stored byte
_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
          (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))  # fmt: skip


@contextlib.contextmanager
def open_table(path: Path, errors: str = "surrogateescape") -> Iterator[TextIO]:
    """The text of a table, with unchanged line ends; gzip and UTF-16 are detected by the first bytes, not by the name.

    `errors`: treatment of bytes that are not UTF-8, as in `open`.

    Raises:
        ManifestError: missing, damaged or truncated; also while reading.
    """
    if path.exists() and not path.is_file():  # opening a pipe would block
        raise ManifestError(f"{path}: not a plain file, but a folder, a pipe or a device; name a table")
    try:
        with open(path, "rb") as raw:
            packed = raw.peek(2)[:2] == b"\x1f\x8b"
            data = gzip.GzipFile(fileobj=raw) if packed else raw
            if isinstance(data, gzip.GzipFile):
                _check_unpacked(path, data)
            head = data.read(HEAD)
            data.seek(0)
            encoding = _encoding(head)
            strict = "strict" if encoding.startswith(("utf-16", "utf-32")) else errors
            yield io.TextIOWrapper(data, encoding=encoding, errors=strict, newline="")
    except FileNotFoundError:
        raise ManifestError(f"{path}: no such table; check the path") from None
    except UnicodeDecodeError as error:
        raise ManifestError(f"{path}: starts as {error.encoding.upper()} but is not; save it as UTF-8") from error
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or "it is damaged or cut short"
        raise ManifestError(f"{path}: cannot be read ({reason}); export it again") from error


def lines_of(path: Path, handle: TextIO, maximum: float = math.inf) -> Iterator[str]:
    """The lines of an open table, with their ends.

    Raises:
        ManifestError: a line is longer than `LINE`, or there are more than `maximum`.
    """
    count, rest = 0, ""  # `rest`: the start of a line, or a carriage return that a line feed may follow
    while chunk := handle.read(max(_CHUNK, len(rest))):
        lines = io.StringIO(rest + chunk, newline="").readlines()
        if len(lines[0]) >= LINE:  # the others are part of one chunk
            raise ManifestError(f"{path}: a line of more than {LINE:,} letters; not a table, or a damaged one")
        rest = lines.pop()
        count += len(lines)
        if count > maximum:
            break
        yield from lines
    if count + bool(rest) > maximum:
        raise ManifestError(f"{path}: more than {maximum:,} lines; give it in parts")
    if rest:
        yield rest


def most_unpacked(path: Path) -> int:
    """Bytes that a table may unpack to; larger ones are repetitive and probably malicious."""
    return SLACK + RATIO * path.stat().st_size


def _check_unpacked(path: Path, data: gzip.GzipFile) -> None:
    """Check the unpacked size before a row is used.

    Raises:
        ManifestError: it is above `most_unpacked`.
    """
    most = most_unpacked(path)
    while data.read(1 << 20):
        if data.tell() > most:
            raise ManifestError(f"{path}: unpacks to more than {most:,} bytes; if it is valid, unpack it first")
    data.seek(0)


def _encoding(head: bytes) -> str:
    """By the byte order mark, or by the positions of the zero bytes of ASCII letters."""
    for mark, name in _MARKS:
        if head.startswith(mark):
            return name
    pairs = len(head) // 2
    if pairs and head[: 2 * pairs : 2].count(0) > pairs / 3:
        return "utf-16-be"
    return "utf-16-le" if pairs and head[1 : 2 * pairs : 2].count(0) > pairs / 3 else "utf-8"


@dataclass(frozen=True)
class TableLayout:
    """`delimiter` between cells, `skip` lines before the header."""

    delimiter: str
    skip: int


def layout(lines: Sequence[str], default: str, required: Iterable[str]) -> TableLayout:
    """The layout of the table that starts with `lines`; `default` unless another delimiter has all `required` columns.

    A line "sep=;" before the header, as in Excel, takes precedence. Names are compared by `column`.
    """
    stated = re.fullmatch(r"[\"']?sep=(.)[\"']?\s*", lines[0], re.I | re.S) if lines else None
    if stated:
        return TableLayout(stated[1], 1)
    head = next((line for line in lines if line.strip()), "")
    for delimiter in (default, ",", ";", "\t", "|"):
        if set(required) <= set(header(head, delimiter)):
            return TableLayout(delimiter, 0)
    return TableLayout(default, 0)


def csv_text(columns: Collection[str], rows: Iterable[Mapping[str, str]]) -> str:
    """A CSV with a header, lines separated by line feeds."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def header(line: str, delimiter: str) -> list[str]:
    """The column names of a header line; empty if it cannot be split into cells."""
    try:
        return [column(cell) for cell in next(csv.reader([line], delimiter=delimiter), [])]
    except csv.Error:
        return []


def read_rows(path: Path, required: Iterable[str], default: str = ",") -> Iterator[tuple[int, dict[str, str]]]:
    """Rows of a text table as (line number, cells by column name); a missing cell is "".

    `default` delimiter; `required` columns have the given spelling in the result.

    Raises:
        ManifestError: missing, damaged, not a table, or without a `required` column.
    """
    spelling = {column(name): name for name in required}
    with open_table(path, errors="replace") as handle:
        lines = lines_of(path, handle)
        first = list(islice(lines, 20))
        shape = layout(first, default, spelling)
        try:
            reader = csv.reader(chain(first[shape.skip :], lines), delimiter=shape.delimiter)
            names = [spelling.get(column(name), name.strip("\ufeff ")) for name in next(reader, [])]
            if missing := [name for name in spelling.values() if name not in names]:
                columns = ", ".join(names[:30])
                raise ManifestError(f"{path}: no column {', '.join(map(repr, missing))}; found {columns}")
            for row in reader:
                if any(cell.strip() for cell in row):
                    cells = [cell.strip() for cell in row] + [""] * (len(names) - len(row))
                    yield reader.line_num + shape.skip, dict(zip(names, cells))
        except csv.Error as error:
            raise ManifestError(f"{path}: line {reader.line_num} cannot be split into cells ({error})") from error
