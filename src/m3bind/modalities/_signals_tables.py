"""Signals in tables.

* `read_csv`: a table with a header line of names: "time (ms),I (uV),II (uV),...". The rate comes from the time column
  or from a line `# rate 500` above the header, the unit from brackets behind the names or from a line `# unit uV`.
* `read_npy`: (leads, T) or (T, leads) with a file of the same name that ends in .json beside it:
  {"rate": 500, "unit": "mV", "leads": ["I", "II", ...]}.

Shapes: T samples.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from m3bind.errors import ReadError, in_words
from m3bind.modalities import _limits
from m3bind.modalities._recording import MAX_HEADER, SECONDS, Recording, Signal, Values, check_size, decoding


def read_csv(path: Path) -> Recording:
    """A table of numbers below a header line of names; separated by commas, semicolons or tabs.

    Raises:
        ReadError: no header line, no rate, text in a cell, or times that are not evenly spaced.
    """
    import pandas as pd

    check_size(path, 2)
    notes, header, skipped = _csv_head(path)
    mark = max((",", ";", "\t"), key=header.count)
    names, units = _csv_columns(header.split(mark))
    if len(names) < 2 or all(re.fullmatch(r"[-+.\deE]*", name) for name in names):
        hint = "put a first line such as time (s),I (mV),II (mV),..."
        raise ReadError(path, "no header line with the names of the leads", hint)
    try:
        table = pd.read_csv(path, sep=mark, header=None, skiprows=skipped, comment="#", index_col=False,
                            dtype=np.float64, usecols=range(len(names)), skipinitialspace=True,
                            encoding="utf-8", encoding_errors="replace").to_numpy()  # fmt: skip
    except MemoryError:
        raise
    except Exception as error:  # a text cell, rows of unequal length, no rows
        reason = f"not a table of numbers below its header ({in_words(error)})"
        raise ReadError(path, reason, "keep the lead columns and time in seconds, decimal points") from None
    found = Recording([])
    rate = _csv_rate(path, notes.get("rate", ""), names, units, table, found.steps)
    for name, unit, values in zip(names, units, table.T):
        if not _is_time(name):
            found.signals.append(Signal(name, np.ascontiguousarray(values), unit or notes.get("unit", ""), rate))
    return found


def _csv_head(path: Path) -> tuple[dict[str, str], str, int]:
    """Notes of the comment lines ("rate", "unit"), the header line, and how many lines these are."""
    notes: dict[str, str] = {}
    with open(path, encoding="utf-8-sig", errors="replace") as handle:
        for count in range(1, 101):
            line = handle.readline(1 << 16)
            if line.strip() and not line.startswith("#"):
                return notes, line.strip(), count
            note = re.match(r"#\s*(rate|unit)\s*[:=]?\s*(\S+)", line, re.IGNORECASE)
            if note:
                notes[note[1].lower()] = note[2]
    raise ReadError(path, "no header line within the first 100 lines", "put one with the names of the leads first")


def _csv_columns(cells: Sequence[str]) -> tuple[list[str], list[str]]:
    """Names and units of columns: "I (uV)", "I [uV]" and "time_ms" have one."""
    names, units = [], []
    for cell in cells:
        plain = cell.strip()[:80].strip("\"'").strip()  # the patterns below take long on long texts
        parts = re.fullmatch(r"(.*?)\s*[(\[]\s*([^)\]]*?)\s*[)\]]", plain) or re.fullmatch(r"(time)_(m?s)", plain)
        names.append(parts[1] if parts else plain)
        units.append(parts[2] if parts else "")
    return names, units


def _is_time(name: str) -> bool:
    return name.lower() in ("time", "t", "seconds", "timestamp")


def _csv_rate(
    path: Path, note: str, names: Sequence[str], units: Sequence[str], table: Values, steps: list[str]
) -> float:
    """The sampling rate in Hz, from the note and the time column; both have to agree within 1 %."""
    rates = []
    if note:
        number = re.match(r"\d+(?:\.\d+)?", note)
        if number is None:
            raise ReadError(path, "its line `# rate` holds no number", "write it as # rate 500")
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
    """An array with a .json file of the same name beside it that says rate, unit and leads.

    Raises:
        ReadError: no such .json, or a shape in which the axis of the leads is not the only one of its length.
    """
    note = path.with_suffix(".json")
    example = '{"rate": 500, "unit": "mV", "leads": ["I", "II", ...]}'
    if not note.is_file() or note.stat().st_size > MAX_HEADER:
        reason = "an array without a .json file beside it that says rate and leads: leads are never taken by position"
        raise ReadError(path, reason, f"write {example} to a file of the same name ending in .json")
    with decoding(path, "array with a .json file beside it"):
        said = json.loads(note.read_text(encoding="utf-8"))
        rate, unit, leads = float(said["rate"]), str(said.get("unit", "")), [str(lead) for lead in said["leads"]]
        stored = np.load(path, mmap_mode="r", allow_pickle=False)
        if stored.ndim != 2 or stored.dtype.kind not in "fiu" or stored.shape.count(len(leads)) != 1:
            reason = f"shape {stored.shape} of type {stored.dtype} does not fit {len(leads)} leads in one way"
            raise ReadError(path, reason[:120], "save it as (leads, samples) of floating-point numbers")
        _limits.check_count(path, stored.size, "samples")
        values = np.asarray(stored if stored.shape[0] == len(leads) else stored.T, dtype=np.float64)
    return Recording([Signal(lead, signal, unit, rate) for lead, signal in zip(leads, values)])
