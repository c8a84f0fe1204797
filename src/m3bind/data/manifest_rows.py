"""The rows of a manifest file in blocks of columns: standard names, normalised cells, faults of unreadable lines.

* `is_manifest`: whether a file is a manifest. `read_blocks`: its rows as `RowBlock`s. `quoted`: a cell for messages.
* `per_distinct`: a function of texts, computed once for each distinct one.
"""

import contextlib
import csv
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from m3bind.core.stored import StoredFileError, read_parquet
from m3bind.data.batching import IntArray
from m3bind.data.cells import column, identifier, lost_digits, plain
from m3bind.data.tables import HEAD, LINES, header, layout, lines_of, most_unpacked, open_table
from m3bind.errors import ManifestError

COLUMNS = ("id", "modality", "set", "path", "label", "labels", "caption", "patient", "split", "visit",
            "rescale", "licence")  # fmt: skip
BLOCK = 1 << 14  # rows handled together
_OTHER_NAMES = {"text": "caption", "report": "caption", "file": "path", "image": "path", "dataset": "set",
                "patient_id": "patient", "subject_id": "patient", "license": "licence"}  # fmt: skip
_REQUIRED = ("modality", "path")
_PARQUET, _JSON_LINES = (".parquet", ".pq"), (".jsonl", ".ndjson")
SUFFIXES = (".csv", ".tsv", ".csv.gz", ".tsv.gz", *_PARQUET, *_JSON_LINES)
_SURROGATE = re.compile("[\ud800-\udfff]")  # represents a byte that is not UTF-8
_MAX_LINES, _MAX_LETTERS = 500, 1 << 21  # of the quoted cells of a row
# Cells that normalisation leaves alone: identifiers of printable ASCII that are neither a number in disguise nor "no
# value"; texts that start and end with printable ASCII and have more letters and digits than "no value" has characters.
_PLAIN_NAME = r"^[!-~]+( [!-~]+)*$"
_ODD_NAME = r"^['+-]|^\d+[.eE]|^(?i:nan|null|n/a|#n/a|#n/a n/a|#na|<na>|nat|1\.#qnan|1\.#ind|na|none)$"
_PLAIN_TEXT, _LONG_TEXT = r"(?s)^[!-~].*[!-~]$", r"(?s)^([^0-9A-Za-z]*[0-9A-Za-z]){10}"

Fault = tuple[str, str]  # the kind of a bad row, and the reason
_Row = tuple[int, Sequence[str], Fault | None]  # number, cells in the order of the columns, fault


@dataclass(frozen=True)
class RowBlock:
    """Consecutive rows: their numbers, normalised cells by column name, and the faults of unusable ones by position."""

    numbers: IntArray
    cells: Mapping[str, pa.Array]  # large_string, for each of COLUMNS
    faults: dict[int, Fault]
    shortened: NDArray[np.bool_]  # the patient is a number of which a spreadsheet dropped digits


def read_blocks(path: Path) -> Iterator[RowBlock]:
    """The rows of a CSV (.csv, .tsv, also .gz), JSONL (.jsonl, .ndjson) or Parquet file.

    Raises:
        ManifestError: missing, unreadable, of another type, or without the required columns.
    """
    name = path.name.lower()
    if not path.exists():
        raise ManifestError(f"{path}: no such manifest; check the path")
    if name.endswith(_PARQUET):
        yield from _parquet_blocks(path)
        return
    if not name.endswith(SUFFIXES):
        raise ManifestError(f"{path}: a manifest is a .csv, .tsv, .jsonl or .parquet file")
    with open_table(path) as handle:
        lines = lines_of(path, handle, LINES)
        if name.endswith(_JSON_LINES):
            rows = _json_rows(path, lines)
        else:
            rows = _csv_rows(path, lines, "\t" if ".tsv" in name else ",")
        names = COLUMNS if name.endswith(_JSON_LINES) else next(rows)[1]
        while block := list(islice(rows, BLOCK)):
            yield _block(names, block)


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


# --- formats ----------------------------------------------------------------------------------------------------------


def _parquet_blocks(path: Path) -> Iterator[RowBlock]:
    try:
        table = read_parquet(path, most_unpacked(path))
        names = _renamed([str(name) for name in table.column_names])
        columns = {name: _texts(table.column(at)) for at, name in enumerate(names) if name in COLUMNS}
    except StoredFileError as error:
        raise ManifestError(f"{error}; malicious, or the same again and again: save it as CSV") from error
    except Exception as error:  # pyarrow raises many types
        raise ManifestError(f"{path}: cannot be read (not a Parquet table, or damaged); export it again") from error
    _columns(path, [str(name) for name in table.column_names])
    for start in range(0, table.num_rows, BLOCK):
        numbers = np.arange(start + 1, min(start + BLOCK, table.num_rows) + 1)
        yield _checked(numbers, {name: column[start : start + BLOCK] for name, column in columns.items()}, {})


def _texts(values: pa.ChunkedArray) -> Sequence[str] | pa.Array:
    """The cells of a typed column as text."""
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        values.validate(full=True)
        texts = pc.fill_null(values.cast(pa.large_string()), "").combine_chunks()
        return pc.if_else(pc.is_in(texts, pa.array(["<NA>", "NaT", "nan"], pa.large_string())), "", texts)
    return [_cell(value) for value in values.to_pandas()]


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


def _csv_rows(path: Path, lines: Iterator[str], default: str) -> Iterator[_Row]:
    """The header, as a row of standard names, then the rows.

    A quotation mark that is never closed invalidates one line, not the rest of the file.
    """
    window = _Window(lines)
    shape = layout(window.lines[:20], default, _REQUIRED)
    window.at, delimiter = shape.skip, shape.delimiter
    columns: list[str] = []
    while window.fill():
        rows = _simple_rows(window, delimiter) if columns else None
        for number, cells, fault in _next_row(window, delimiter, len(columns)) if rows is None else rows:
            if not fault and not any(map(str.strip, cells)):
                continue
            if not columns:
                columns = _columns(path, cells)
                yield number, columns, None
            elif not fault and len(cells) != len(columns):
                reason = f"{len(cells)} cells, the header has {len(columns)}; put texts in quotes"
                yield number, _fitted(cells, len(columns)), ("with wrong columns", reason)
            else:
                yield number, _fitted(cells, len(columns)) if fault else cells, fault
    if not columns:
        raise ManifestError(f"{path}: the file is empty; a header line and rows are needed")


class _Window:
    """The lines of a CSV from `at` on, as many as a row may have and more; `odd`: an odd number of quotes."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._rest = lines
        self.lines: list[str] = []
        self.odd: list[bool] = []
        self.passed = self.at = 0  # lines before the first of `lines`; the next one in `lines`
        self.careful = 0  # rows that start before this line are read one by one
        self.fill()

    def fill(self) -> bool:
        """Read on if few lines are left; whether there are any."""
        if len(self.lines) - self.at <= _MAX_LINES:
            more = list(islice(self._rest, BLOCK))
            while more and self.at == len(self.lines) and not "".join(more).strip():  # millions of empty lines
                self.passed += len(more)
                more = list(islice(self._rest, BLOCK))
            if more:
                self.lines = self.lines[self.at :] + more
                self.odd = self.odd[self.at :] + _odd(more)
                self.passed, self.careful, self.at = self.passed + self.at, self.careful - self.at, 0
        return self.at < len(self.lines)


def _odd(lines: list[str]) -> list[bool]:
    if '"' not in "".join(lines):
        return [False] * len(lines)
    return [line.count('"') % 2 == 1 for line in lines]


def _simple_rows(window: _Window, delimiter: str) -> list[_Row] | None:
    """Consecutive rows of one line each without empty ones; None if the next may have several, or may be damaged."""
    start = window.at
    if start < window.careful or window.odd[start]:
        return None
    stop = len(window.lines)
    with contextlib.suppress(ValueError):
        stop = window.odd.index(True, start)
    try:
        rows = list(csv.reader(window.lines[start:stop], delimiter=delimiter))
    except csv.Error:
        rows = []
    if len(rows) != stop - start:  # a quotation mark inside a cell: some row goes over several lines
        window.careful = stop
        return None
    window.at = stop
    return [(window.passed + at + 1, cells, None) for at, cells in enumerate(rows, start) if cells]


def _next_row(window: _Window, delimiter: str, width: int) -> list[_Row]:
    """The next row, of one or several lines; with a fault if it is damaged. `width`: cells of the header, 0 before."""
    lines, odd, first = window.lines, window.odd, window.at
    at, open_, letters = first, odd[first], len(lines[first])
    while open_ and at + 1 < len(lines) and at - first < _MAX_LINES and letters < _MAX_LETTERS:
        at += 1
        open_, letters = open_ != odd[at], letters + len(lines[at])
    window.at = at + 1
    fault: Fault | None = None
    try:
        cells = next(csv.reader(["".join(lines[first : at + 1])], delimiter=delimiter), [])
    except csv.Error as error:
        cells, fault = [], ("unreadable", f"not readable as CSV ({error})")
    blank = not fault and not any(cell.strip() for cell in cells)
    if at > first and width and not blank and (len(cells) != width or open_):
        window.at = first + 1  # read the following lines again, each by itself
        fault = ("unreadable", "a quotation mark is not closed; double it or close it")
    return [(window.passed + first + 1, cells, fault)]


def _fitted(cells: Sequence[str], width: int) -> list[str]:
    return [*cells[:width], *[""] * (width - len(cells))]


def _json_rows(path: Path, lines: Iterator[str]) -> Iterator[_Row]:
    """Rows of a JSONL file, one object per line, as cells of COLUMNS."""
    names: dict[str, None] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            yield number, [""] * len(COLUMNS), ("unreadable", "not a JSON object")
            continue
        names |= dict.fromkeys(value)
        cells = dict(zip(_renamed(list(value)), map(_cell, value.values())))
        yield number, [cells.get(name, "") for name in COLUMNS], None
    _columns(path, list(names))


def _block(names: Sequence[str], rows: Sequence[_Row]) -> RowBlock:
    numbers, cells, faults = zip(*rows)
    columns = dict(zip(names, zip(*cells)))
    known = {at: fault for at, fault in enumerate(faults) if fault}
    return _checked(np.array(numbers, np.int64), {name: columns[name] for name in COLUMNS if name in columns}, known)


# --- cells ------------------------------------------------------------------------------------------------------------


def _checked(numbers: IntArray, columns: Mapping[str, Sequence[str] | pa.Array], faults: dict[int, Fault]) -> RowBlock:
    """The rows with normalised cells, and a fault for each with a cell that is not UTF-8."""
    encoded: dict[str, pa.Array] = {}
    for name in COLUMNS:  # the first such column names the fault
        values = columns.get(name)
        if values is None:
            values = pa.nulls(len(numbers), pa.large_string()).fill_null("")
        elif not isinstance(values, pa.Array):
            try:
                values = pa.array(values, pa.large_string())
            except UnicodeEncodeError:
                for at, cell in enumerate(values):
                    if _SURROGATE.search(cell):
                        faults.setdefault(at, ("badly encoded", f"column {name} is not UTF-8; save the file as UTF-8"))
                values = pa.array([cell.encode("utf-8", "replace").decode() for cell in values], pa.large_string())
        encoded[name] = values
    shortened = np.zeros(len(numbers), bool)
    patient = encoded["patient"]
    odd = np.flatnonzero(pc.match_substring_regex(patient, r"\d\.\d+[eE]|[^ -~]").to_numpy(zero_copy_only=False))
    shortened[odd] = [lost_digits(cell) for cell in patient.take(pa.array(odd)).to_pylist()]
    return RowBlock(numbers, {name: _normalised(name, cells) for name, cells in encoded.items()}, faults, shortened)


def _normalised(name: str, cells: pa.Array) -> pa.Array:
    if name in ("id", "patient", "visit"):
        odd = pc.or_(
            pc.invert(pc.match_substring_regex(cells, _PLAIN_NAME)), pc.match_substring_regex(cells, _ODD_NAME)
        )
        return per_distinct(identifier, cells, odd)
    if name in ("path", "caption"):
        usual = pc.and_(pc.match_substring_regex(cells, _PLAIN_TEXT), pc.match_substring_regex(cells, _LONG_TEXT))
        return per_distinct(lambda cell: cell.strip() if plain(cell) else "", cells, pc.invert(usual))
    return per_distinct(lambda cell: "|".join(filter(None, map(plain, cell.split("|")))), cells)


def per_distinct(function: Callable[[str], str], cells: pa.Array, where: pa.Array | None = None) -> pa.Array:
    """`function` of each cell, or of those at a mask; computed once for each distinct one."""
    chosen = cells if where is None else cells.filter(where)
    distinct = chosen.dictionary_encode()
    results = pa.array(map(function, distinct.dictionary.to_pylist()), pa.large_string())
    computed = results.take(distinct.indices)
    return computed if where is None else pc.replace_with_mask(cells, where, computed)


def quoted(value: str) -> str:
    """A cell in quotes, unless it may be a report."""
    return repr(value) if len(value) <= 30 and value.count(" ") <= 3 else "(a long text: are the columns shifted?)"
