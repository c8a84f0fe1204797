"""Signals in tables.

* * `read_csv`: a table with a header line of names: "time (ms),I (uV),II (uV),...". The rate comes from the time column
  or from a line `# rate 500` above the header, the unit from the names ("I (uV)", "lead_I_uV") or from a line
  `# unit uV`.
* * `read_npy`: (leads, T) or (T, leads) with a .json file of the same name beside it:
  {"rate": 500, "unit": "mV", "leads": ["I", "II", ...]}.

Shapes: T samples.
"""

import codecs
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from m3bind.errors import ReadError, in_words
from m3bind.modalities.formats import limits
from m3bind.modalities.formats.recording import AGAIN, MAX_HEADER, Recording, Signal, Values, check_size, decoding
from m3bind.modalities.formats.signals_units import SECONDS, number, split_unit

_EXAMPLE = '{"rate": 500, "unit": "mV", "leads": ["I", "II", ...]}'


def read_csv(path: Path) -> Recording:
    """A table of numbers below a header line of names; separated by commas, semicolons or tabs.

    In UTF-8, UTF-16 with a byte order mark, or a single-byte encoding. Decimal commas are read if cells are not
    separated by commas.

    Raises:
        ReadError: no header line, no rate, text in a cell, rows of unequal length, or times not evenly spaced.
    """
    import pandas as pd

    check_size(path, 2)
    head = _csv_head(path)
    names, units = _csv_columns(head.line.split(head.mark))
    if len(names) < 2 or all(re.fullmatch(r"[-+.\deE]*", name) for name in names):
        hint = "put a first line such as time (s),I (mV),II (mV),..."
        raise ReadError(path, "no header line with the names of the leads", hint)
    comma = _check_rows(path, head, len(names))
    try:
        table = pd.read_csv(path, sep=head.mark, header=None, skiprows=head.lines, comment="#", index_col=False,
                            dtype=np.float64, usecols=range(len(names)), skipinitialspace=True,
                            decimal="," if comma else ".", encoding=head.encoding,
                            encoding_errors="replace").to_numpy()  # fmt: skip
    except MemoryError:
        raise
    except Exception as error:  # a text cell, no rows
        text = isinstance(error, ValueError) and "convert" in str(error)
        reason = f"not a table of numbers below its header: {'a cell is not a number' if text else in_words(error)}"
        raise ReadError(path, reason, "retain only the lead columns and time in seconds") from None
    found = Recording([], steps=["decimal commas read"] if comma else [])
    rate = _csv_rate(path, head.notes.get("rate", ""), names, units, table, found.steps)
    for name, unit, values in zip(names, units, table.T):
        if not _is_time(name):
            found.signals.append(Signal(name, np.ascontiguousarray(values), unit or head.notes.get("unit", ""), rate))
    return found


@dataclass
class _TableHead:
    """The part above the rows of a table."""

    notes: dict[str, str]  # of the comment lines: "rate", "unit"
    line: str  # column names
    lines: int  # up to and including it
    mark: str  # between cells
    encoding: str


def _csv_head(path: Path) -> _TableHead:
    notes: dict[str, str] = {}
    mark = ""
    encoding = _encoding(path)
    with open(path, encoding=encoding, errors="replace") as handle:
        for count in range(1, 101):
            line = handle.readline(1 << 16)
            separator = re.match(r"\s*sep=([,;\t])\s*$", line)  # a hint for spreadsheet programs
            if separator:
                mark = separator[1]
            elif line.strip() and not line.startswith("#"):
                mark = mark or max((",", ";", "\t"), key=line.count)
                return _TableHead(notes, line.strip(), count, mark, encoding)
            note = re.match(r"#\s*(rate|unit)\s*[:=]?\s*(\S+)", line, re.IGNORECASE)
            if note:
                notes[note[1].lower()] = note[2]
    raise ReadError(path, "no header line within the first 100 lines", "add one with the names of the leads")


def _encoding(path: Path) -> str:
    """The encoding of a text file by its byte order mark, else by whether its beginning is UTF-8."""
    with open(path, "rb") as handle:
        head = handle.read(1 << 16)
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return "latin-1"
    return "utf-8-sig"


def _csv_rows(path: Path, head: _TableHead) -> Iterator[tuple[int, str]]:
    """Number and text of every row of cells."""
    with open(path, encoding=head.encoding, errors="replace") as handle:
        for count, line in enumerate(handle, start=1):
            if count > head.lines and line.strip() and not line.startswith("#"):
                yield count, line.rstrip("\r\n")


def _check_rows(path: Path, head: _TableHead, columns: int) -> bool:
    """Whether numbers are written with decimal commas.

    Raises ReadError: a row with too few or too many cells, or numbers with ambiguous commas.
    """
    short = 0
    commas: set[bool] = set()
    for count, line in _csv_rows(path, head):
        if short:
            raise ReadError(path, f"line {short:,} has fewer cells than the header names ({columns})", AGAIN)
        cells = line.count(head.mark) + 1
        if cells > columns and line.split(head.mark, columns)[columns].strip(f" {head.mark}"):
            raise ReadError(path, f"line {count:,} has {cells} cells, the header names {columns}", AGAIN)
        if cells < columns:
            short, short_cells = count, cells
        elif head.mark != "," and "," in line and count < head.lines + 1000:
            commas |= {number(cell) is not None for cell in line.split(head.mark) if "," in cell}
    if short:
        raise ReadError(path, f"cut short: its last line, {short:,}, has {short_cells} of {columns} cells", AGAIN)
    if commas == {False}:
        raise ReadError(path, "numbers with commas, either decimal or between thousands", "write decimal points")
    return bool(commas)


def _csv_columns(cells: Sequence[str]) -> tuple[list[str], list[str]]:
    """Names and units of columns: "I (uV)", "I [uV]", "lead_II_mV" and "time_ms" have one."""
    names, units = [], []
    for cell in cells:
        plain = cell.strip()[:80].strip("\"'").strip()  # the patterns below are slow on long texts
        time = re.fullmatch(r"(time)_(m?s)", plain, re.IGNORECASE)
        name, unit = (time[1], time[2]) if time else split_unit(plain)
        names.append(name)
        units.append(unit)
    return names, units


def _is_time(name: str) -> bool:
    return name.lower() in ("time", "t", "seconds", "timestamp")


def _csv_rate(
    path: Path, note: str, names: Sequence[str], units: Sequence[str], table: Values, steps: list[str]
) -> float:
    """The sampling rate in Hz, from the note and the time column, which must agree within 1 %."""
    rates = []
    if note:
        number = re.match(r"\d+(?:\.\d+)?", note)
        if number is None:
            raise ReadError(path, "its line `# rate` has no number", "write it as # rate 500")
        rates.append(float(number[0]))
    column = next((k for k, name in enumerate(names) if _is_time(name)), None)
    if column is not None and len(table) > 1:
        times = table[:, column]
        step = float(times[-1] - times[0]) / (len(times) - 1)
        if not step > 0 or not np.abs(times - times[0] - step * np.arange(len(times))).max() < 0.3 * step:
            raise ReadError(path, "times that are not evenly spaced", "resample it to a fixed rate")
        unit = units[column] or ("s" if step <= 0.05 else "")  # below 20 Hz it cannot be seconds
        if unit.lower() not in SECONDS:
            raise ReadError(path, "a time column without a known unit", "name it time (s) or time (ms)")
        rate = 1 / (step * SECONDS[unit.lower()])
        rate = float(round(rate)) if abs(rate - round(rate)) < 1e-3 * rate else rate  # times are written rounded
        rates.append(rate)
        steps.append(f"{rate:g} Hz from the time column")
    if not rates:
        raise ReadError(path, "no sampling rate", "add a line # rate 500 above the header, or a column time (s)")
    if len(rates) == 2 and abs(rates[0] - rates[1]) > 0.01 * rates[0]:
        raise ReadError(path, "its line `# rate` and its time column contradict each other", "correct one of them")
    return rates[0]


def read_npy(path: Path) -> Recording:
    """An array with a .json file of the same name beside it that states rate, unit and leads.

    Raises:
        ReadError: no such .json, or a shape in which the axis of the leads is ambiguous.
    """
    note = path.with_suffix(".json")
    if not note.is_file() or note.stat().st_size > MAX_HEADER:
        reason = "an array without a .json file beside it that states rate and leads: leads have no fixed positions"
        raise ReadError(path, reason, f"write {_EXAMPLE} to a file of the same name ending in .json")
    kind = "array with a .json file beside it"
    with decoding(path, kind):
        rate, unit, leads = _npy_note(path, note, kind)
        _check_npy(path)
        stored = np.load(path, mmap_mode="r", allow_pickle=False)
        if stored.ndim != 2 or stored.dtype.kind not in "fiu" or stored.shape.count(len(leads)) != 1:
            reason = f"shape {stored.shape} of type {stored.dtype} does not fit {len(leads)} leads in one way"
            raise ReadError(path, reason[:120], "save it as (leads, samples) of floating-point numbers")
        limits.check_count(path, stored.size, "samples")
        values = np.asarray(stored if stored.shape[0] == len(leads) else stored.T, dtype=np.float64)
    named = [split_unit(lead[:80]) for lead in leads]
    return Recording([Signal(name, signal, own or unit, rate) for (name, own), signal in zip(named, values)])


def _npy_note(path: Path, note: Path, kind: str) -> tuple[float, str, list[str]]:
    """Rate, unit and names of the leads of an array."""
    try:
        content: Any = json.loads(note.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError):
        raise ReadError(path, f"not a readable {kind}: the .json file is not JSON", f"write {_EXAMPLE}") from None
    leads, unit = (content.get("leads"), content.get("unit")) if isinstance(content, dict) else (None, None)
    try:
        rate = float(content["rate"])
    except (KeyError, TypeError, ValueError, OverflowError):
        raise ReadError(path, f"not a readable {kind}: the .json file states no rate", f"write {_EXAMPLE}") from None
    if not isinstance(leads, list) or not all(isinstance(lead, str) for lead in leads):
        raise ReadError(path, f"not a readable {kind}: the .json file states no leads", f"write {_EXAMPLE}")
    return rate, unit if isinstance(unit, str) else "", leads


def _check_npy(path: Path) -> None:
    """Raise ReadError if an array file has fewer values than its header declares."""
    with open(path, "rb") as handle:
        version = np.lib.format.read_magic(handle)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, kind = read(handle)
        stored = (path.stat().st_size - handle.tell()) // max(1, kind.itemsize)
    declared = int(np.prod(shape, dtype=object))
    if not kind.hasobject and stored < declared:
        raise ReadError(path, f"cut short: the header declares {declared:,} values, {stored:,} are stored", AGAIN)
