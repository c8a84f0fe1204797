"""EDF, EDF+ and BDF; names of persons, dates and texts of the header never leave this module.

A signal's value is  physical minimum + (stored - digital minimum) x physical range / digital range.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from m3bind.errors import ReadError
from m3bind.modalities.formats.recording import AGAIN, Recording, Signal, check_size, decoding
from m3bind.modalities.formats.signals_units import number

_WIDTHS = (16, 80, 8, 8, 8, 8, 8, 80, 8, 32)  # of a signal's header fields: label, transducer, unit, four limits ...
_UNREADABLE = "not a readable EDF file: "
_LIMITS = ("physical minimum", "physical maximum", "digital minimum", "digital maximum")


def read_edf(path: Path) -> Recording:
    """An EDF, EDF+ or BDF file; each signal has its own rate.

    Raises:
        ReadError: damaged, cut short, annotations only, or with gaps between its records (EDF+D).
    """
    import edfio

    with open(path, "rb") as handle:
        head = handle.read(256)
    kind = {b"\xffBIOSEMI": "BDF", b"0       ": "EDF"}.get(head[:8])
    if kind is None or len(head) < 256:
        raise ReadError(path, "not an EDF or BDF file by its first bytes", AGAIN)
    width = 3 if kind == "BDF" else 2
    check_size(path, width)
    with decoding(path, f"{kind} file"):
        found = Recording([])
        fields = _fields(path, head)
        _check_header(path, head, fields)
        _check_length(path, head, fields, width, found.warnings)
        if kind == "BDF":
            edf: edfio.Edf | edfio.Bdf = edfio.read_bdf(path, header_encoding="latin-1")
        else:
            edf = edfio.read_edf(path, header_encoding="latin-1")
        if not edf.signals:
            raise ReadError(path, f"{kind}+ with annotations only, no signals", "name the file with the signals")
        if not edf.is_continuous:
            raise ReadError(path, f"a discontinuous {kind}+ file", "cut out one continuous part")
        ordinary = [field for field in fields if not field.annotations]
        found.signals = [_signal(signal, field) for signal, field in zip(edf.signals, ordinary, strict=True)]
        turned = sum(field.negative and not signal.fault for field, signal in zip(ordinary, found.signals))
        if turned:
            found.warnings.append(f"{turned} signals of negative gain (physical minimum above maximum), inverted so")
    return found


@dataclass
class _Fields:
    """The header of one signal, unconverted."""

    label: str
    unit: str
    limits: tuple[float | None, ...]  # in the order of `_LIMITS`; None: not a number
    samples: int  # per data record

    @property
    def annotations(self) -> bool:
        """Whether it contains annotations instead of samples."""
        return self.label in ("EDF Annotations", "BDF Annotations")

    @property
    def negative(self) -> bool:
        """Whether its gain is below zero."""
        low, high = self.limits[:2]
        return low is not None and high is not None and low > high

    def fault(self) -> str:
        """Why stored numbers cannot be converted to physical values, or ""."""
        for name, value in zip(_LIMITS, self.limits):
            if value is None:
                return f"its {name} is not a number"
        low, high, least, most = (value or 0.0 for value in self.limits)
        if low == high:
            return f"physical minimum = maximum = {low:g}"
        if least == most:
            return f"digital minimum = maximum = {least:g}"
        if least > most:
            return f"digital minimum {least:g} above maximum {most:g}"
        return "" if self.unit.strip(" \0") else "no unit, which in EDF means not calibrated"


def _fields(path: Path, head: bytes) -> list[_Fields]:
    """The headers of all signals."""
    count = number(head[252:256].decode("latin-1"))
    size = path.stat().st_size
    if count is None or not 0 < count <= 9999 or count != int(count):
        raise ReadError(path, f"{_UNREADABLE}its header states no number of signals", AGAIN)
    count = int(count)
    if size < 256 + 256 * count:
        reason = f"{_UNREADABLE}cut short, a header of {256 + 256 * count:,} bytes, {size:,} are stored"
        raise ReadError(path, reason, AGAIN)
    with open(path, "rb") as handle:
        handle.seek(256)
        text = handle.read(256 * count).decode("latin-1")
    columns, at = [], 0
    for width in _WIDTHS:
        columns.append([text[at + k * width : at + (k + 1) * width] for k in range(count)])
        at += width * count
    fields = []
    for label, _, unit, *limits, _, samples, _ in zip(*columns):
        per_record = number(samples)
        if per_record is None or per_record < 0 or per_record != int(per_record):
            raise ReadError(path, f"{_UNREADABLE}its header states no number of samples of a signal", AGAIN)
        fields.append(_Fields(label.strip(), unit, tuple(map(number, limits)), int(per_record)))
    return fields


def _check_header(path: Path, head: bytes, fields: list[_Fields]) -> None:
    """Raise ReadError if the header's length does not match its signals, or data records have no duration."""
    length = number(head[184:192].decode("latin-1"))
    if length != 256 + 256 * len(fields):
        stated = "no length" if length is None else f"a length of {length:,.0f} bytes"
        reason = f"its header states {stated}, its {len(fields)} signals need {256 + 256 * len(fields):,}"
        raise ReadError(path, _UNREADABLE + reason, AGAIN)
    duration = number(head[244:252].replace(b",", b"?").decode("latin-1"))
    if not all(field.annotations for field in fields) and not (duration and duration > 0):
        raise ReadError(path, f"{_UNREADABLE}its data records have no duration, hence no sampling rate", AGAIN)


def _check_length(path: Path, head: bytes, fields: list[_Fields], width: int, warnings: list[str]) -> None:
    """Raise ReadError if fewer data records are stored than declared, or none; -1 declares an open recording."""
    declared = number(head[236:244].decode("latin-1"))
    record = width * sum(field.samples for field in fields)
    stored = path.stat().st_size - 256 - 256 * len(fields)
    count = stored // record if record else 0
    if declared is None:
        raise ReadError(path, f"{_UNREADABLE}its header states no number of data records", AGAIN)
    if declared > count or not count:
        counts = f"the header declares {declared:,.0f} data records, {count:,} are stored"
        raise ReadError(path, f"{_UNREADABLE}cut short, {counts}", AGAIN)
    if declared == -1:
        warnings.append(f"the recording was not closed: the header states no number of data records ({count:,})")
    elif declared < count:
        warnings.append(f"the header declares {declared:,.0f} data records, {count:,} are stored; all are read")
    elif stored > count * record:
        warnings.append(f"{stored - count * record:,} bytes after the last data record")


def _signal(signal: Any, field: _Fields) -> Signal:
    """One signal in physical values."""
    fault, rate = field.fault(), float(signal.sampling_frequency)
    if fault:
        return Signal(field.label, np.asarray(signal.digital, dtype=np.float64), "", rate, fault=fault)
    low, high, least, most = (value or 0.0 for value in field.limits)
    gain = (high - low) / (most - least)
    values = (signal.digital + (high / gain - most)) * gain
    return Signal(field.label, values, field.unit, rate)
