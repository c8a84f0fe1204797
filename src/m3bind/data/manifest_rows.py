"""The rows of a manifest file: columns by their standard names, normalised cells, and faults of unreadable lines.

* `is_manifest`: whether a file is a manifest. `read_rows`: its rows as `ManifestRow`. `quoted`: a cell for messages.
"""

import csv
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from m3bind.core.stored import StoredFileError, read_parquet
from m3bind.data.cells import column, identifier, lost_digits, plain
from m3bind.data.tables import HEAD, all_lines, header, layout, most_unpacked, open_table
from m3bind.errors import ManifestError

COLUMNS = ("id", "modality", "set", "path", "label", "labels", "caption", "patient", "split", "visit",
            "rescale", "licence")  # fmt: skip
_OTHER_NAMES = {"text": "caption", "report": "caption", "file": "path", "image": "path", "dataset": "set",
                "patient_id": "patient", "subject_id": "patient", "license": "licence"}  # fmt: skip
_REQUIRED = ("modality", "path")
_NAMES = ("id", "patient", "visit")  # columns whose cells are identifiers
_PARQUET, _JSON_LINES = (".parquet", ".pq"), (".jsonl", ".ndjson")
SUFFIXES = (".csv", ".tsv", ".csv.gz", ".tsv.gz", *_PARQUET, *_JSON_LINES)
_SURROGATE = re.compile("[\ud800-\udfff]")  # represents a byte that is not UTF-8
_MAX_LINES, _MAX_LETTERS = 500, 1 << 21  # of the quoted cells of a row


@dataclass(frozen=True)
class ManifestRow:
    """One row: its cells by column name, or the fault (kind, reason) that makes it unusable."""

    number: int
    cells: dict[str, str]
    fault: tuple[str, str] | None = None
    shortened: bool = False  # the patient is a number of which a spreadsheet dropped digits


def read_rows(path: Path) -> Iterator[ManifestRow]:
    """The rows of a CSV (.csv, .tsv, also .gz), JSONL (.jsonl, .ndjson) or Parquet file.

    Raises:
        ManifestError: missing, unreadable, of another type, or without the required columns.
    """
    name = path.name.lower()
    if not path.exists():
        raise ManifestError(f"{path}: no such manifest; check the path")
    if name.endswith(_PARQUET):
        yield from _parquet_rows(path)
        return
    if not name.endswith(SUFFIXES):
        raise ManifestError(f"{path}: a manifest is a .csv, .tsv, .jsonl or .parquet file")
    with open_table(path) as handle:
        lines = all_lines(path, handle)
    if name.endswith(_JSON_LINES):
        yield from _json_rows(path, lines)
    else:
        yield from _csv_rows(path, lines, "\t" if ".tsv" in name else ",")


def is_manifest(path: Path) -> bool:
    """Whether a file is a table with the columns of a manifest; a CSV without them may be a signal.

    Raises:
        ManifestError: it cannot be read.
    """
    if not path.is_file() or not path.name.lower().endswith(SUFFIXES):
        return False
    if path.name.lower().endswith((*_PARQUET, *_JSON_LINES)):
        return True
    with open_table(path) as handle:
        lines = [handle.readline(HEAD) for _ in range(2)]
    shape = layout(lines, "\t" if ".tsv" in path.name.lower() else ",", _REQUIRED)
    return set(_REQUIRED) <= set(_renamed(header(lines[shape.skip], shape.delimiter)))


def _parquet_rows(path: Path) -> Iterator[ManifestRow]:
    try:
        table = read_parquet(path, most_unpacked(path)).to_pandas()
    except StoredFileError as error:
        raise ManifestError(f"{error}; malicious, or the same again and again: save it as CSV") from error
    except Exception as error:  # pyarrow raises many types
        raise ManifestError(f"{path}: cannot be read (not a Parquet table, or damaged); export it again") from error
    columns = _columns(path, [str(name) for name in table.columns])
    for number, values in enumerate(table.itertuples(index=False, name=None), 1):
        yield _checked(number, dict(zip(columns, map(_cell, values))), None)


def _cell(value: object) -> str:
    """A cell of a typed table as text: "" for missing values, "a|b" for lists."""
    if isinstance(value, (list, tuple, np.ndarray)):
        return "|".join(_cell(item) for item in value)
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    return "" if value is None or str(value) in ("<NA>", "NaT", "nan") else str(value)


def _columns(path: Path, names: Sequence[str]) -> list[str]:
    """Standard column names.

    Raises:
        ManifestError: a required column is missing, or a column occurs twice.
    """
    columns = _renamed(names)
    shown = ", ".join(quoted(name) for name in names[:30])
    for name in COLUMNS:
        if columns.count(name) > 1:
            raise ManifestError(f"{path}: two columns mean {name!r}; keep one. Found {shown}")
    for name in _REQUIRED:
        if name not in columns:
            raise ManifestError(f"{path}: no column {name!r}; found {shown}")
    if not {"caption", "label", "labels"} & set(columns):
        raise ManifestError(f"{path}: none of the columns caption, label, labels; found {shown}")
    return columns


def _renamed(names: Sequence[str]) -> list[str]:
    return [_OTHER_NAMES.get(name, name) for name in map(column, names)]


def _csv_rows(path: Path, lines: Sequence[str], default: str) -> Iterator[ManifestRow]:
    """Rows of a CSV. A quotation mark that is never closed invalidates one line, not the rest of the file."""
    columns: list[str] = []
    shape = layout(lines[:20], default, _REQUIRED)
    at, delimiter = shape.skip, shape.delimiter
    odd = [line.count('"') % 2 == 1 for line in lines]
    while at < len(lines):
        first, open_, letters = at, odd[at], len(lines[at])
        while open_ and at + 1 < len(lines) and at - first < _MAX_LINES and letters < _MAX_LETTERS:
            at += 1
            open_, letters = open_ != odd[at], letters + len(lines[at])
        at += 1
        text = "".join(lines[first:at])
        fault: tuple[str, str] | None = None
        try:
            cells = next(csv.reader([text], delimiter=delimiter), [])
        except csv.Error as error:
            cells, fault = [], ("unreadable", f"not readable as CSV ({error})")
        if not any(cell.strip() for cell in cells) and not fault:
            continue
        if not columns:
            columns = _columns(path, cells)
            continue
        wrong = len(cells) != len(columns)
        if at - first > 1 and (wrong or open_):
            at = first + 1  # read the following lines again, each by itself
            fault = ("unreadable", "a quotation mark is not closed; double it or close it")
        elif wrong and not fault:
            fault = ("with wrong columns", f"{len(cells)} cells, the header has {len(columns)}; put texts in quotes")
        yield _checked(first + 1, dict(zip(columns, cells)), fault)
    if not columns:
        raise ManifestError(f"{path}: the file is empty; a header line and rows are needed")


def _json_rows(path: Path, lines: Sequence[str]) -> Iterator[ManifestRow]:
    """Rows of a JSONL file: one object per line."""
    names: dict[str, None] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            yield ManifestRow(number, {}, ("unreadable", "not a JSON object"))
            continue
        names |= dict.fromkeys(value)
        cells = dict(zip(_renamed(list(value)), map(_cell, value.values())))
        yield _checked(number, cells, None)
    _columns(path, list(names))


def _checked(number: int, cells: dict[str, str], fault: tuple[str, str] | None) -> ManifestRow:
    """The row with normalised cells, and a fault if a cell of a known column is not UTF-8."""
    for used in COLUMNS:
        if _SURROGATE.search(cells.get(used, "")):
            cells = {name: cell.encode("utf-8", "replace").decode() for name, cell in cells.items()}
            fault = fault or ("badly encoded", f"column {used} is not UTF-8; save the file as UTF-8")
    normalised = {name: _normalised(name, cell) for name, cell in cells.items()}
    return ManifestRow(number, normalised, fault, lost_digits(cells.get("patient", "")))


def _normalised(column: str, cell: str) -> str:
    if column in _NAMES:
        return identifier(cell)
    if column in ("path", "caption"):
        return cell.strip() if plain(cell) else ""
    return "|".join(filter(None, map(plain, cell.split("|")))) if column in COLUMNS else cell


def quoted(value: str) -> str:
    """A cell in quotes, unless it may be a report."""
    return repr(value) if len(value) <= 30 and value.count(" ") <= 3 else "(a long text: are the columns shifted?)"
