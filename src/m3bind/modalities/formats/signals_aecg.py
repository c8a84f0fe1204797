"""HL7 annotated ECG (XML): value = origin + digit x scale, in the unit of the scale."""

import math
import re
from datetime import datetime
from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np

from m3bind.errors import ReadError
from m3bind.modalities.formats.recording import AGAIN, Recording, Signal, check_size, decoding
from m3bind.modalities.formats.signals_leads import differing, name_of_code
from m3bind.modalities.formats.signals_sets import SignalSet, combined
from m3bind.modalities.formats.signals_units import SECONDS, number, to_millivolt
from m3bind.modalities.formats.signals_xml import read_xml

_RECORDED = "component/series/component/sequenceSet"
_DERIVED = "component/series/derivation/derivedSeries/component/sequenceSet"  # averaged beats
_VENDOR_XML = {"restingecgdata": "Philips XML", "RestingECG": "GE MUSE XML", "CardiologyXML": "GE CardioSoft XML"}


def read_aecg(path: Path) -> Recording:
    """The sequence sets of an HL7 aECG file that are the recording.

    Raises:
        ReadError: XML of another kind, with a document type declaration (it could define entities), or damaged.
    """
    check_size(path, 2)
    with decoding(path, "HL7 aECG file"):
        root = read_xml(path)
        if root.tag != "AnnotatedECG":
            kind = _VENDOR_XML.get(root.tag, "XML of another kind")
            raise ReadError(path, f"{kind}, not HL7 aECG", "export it as HL7 aECG or DICOM")
        found = Recording([])
        sets = []
        for place in (_RECORDED, _DERIVED):
            every = (_set(path, element, place is _DERIVED, found.warnings) for element in root.findall(place))
            named = [signal_set for signal_set in every if signal_set.names]
            first = min((signal_set.start for signal_set in named), default=0.0)
            for signal_set in named:
                signal_set.start -= first
            sets += named
        if not sets:
            raise ReadError(path, "an HL7 aECG file without signals", AGAIN)
        found.signals, found.steps, warnings = combined(sets, "sequence set")
        found.warnings += warnings
    return found


def _set(path: Path, element: Element, derived: bool, warnings: list[str]) -> SignalSet:
    """One sequence set."""
    rate, start = 0.0, 0.0
    found: list[tuple[str, Element]] = []
    codes: list[tuple[str, str, str, str]] = []
    for sequence in element.findall("component/sequence"):
        code, value = sequence.find("code"), sequence.find("value")
        if value is None:
            continue
        name = "" if code is None else code.get("code", "")
        if name.startswith("TIME_"):
            rate, start = _time(path, value, rate)
        elif value.find("digits") is not None:
            more = ("", "") if code is None else (code.get("codeSystemName", ""), code.get("displayName", ""))
            codes.append((name, *more, ""))
            found.append((name_of_code(*codes[-1]), value))
    longest = max((len((value.findtext("digits") or "").split()) for _, value in found), default=0)

    def read() -> list[Signal]:
        warnings.extend(differing(codes))
        return [_signal(path, name, value, rate, result.start) for name, value in found]

    seconds = longest / rate if rate > 0 else math.inf  # rejected by read_signals
    result = SignalSet([name for name, _ in found], seconds, start, derived, f"{len(found)} signals", read)
    return result


def _time(path: Path, value: Element, rate: float) -> tuple[float, float]:
    """Rate in Hz and beginning in seconds of a sequence set."""
    head, increment = value.find("head"), value.find("increment")
    start = 0.0
    if head is not None:
        text = head.get("value", "")
        start = (number(text) or 0.0) * SECONDS.get(head.get("unit", ""), 0.0) if head.get("unit") else _moment(text)
    if increment is None:
        return rate, start
    step, unit = number(increment.get("value", "")), SECONDS.get(increment.get("unit", "").strip().lower())
    if step is None or step <= 0 or unit is None:
        raise ReadError(path, "not a readable HL7 aECG file: its time increment is not a number of seconds", AGAIN)
    return 1 / (step * unit), start


def _moment(text: str) -> float:
    """Seconds of an HL7 time stamp (20200131120000.250) since 1970; 0 if it states no seconds."""
    parts = re.match(r"(\d{14})(\.\d{1,9})?", text, re.ASCII)
    try:
        day = datetime.strptime(parts[1], "%Y%m%d%H%M%S") if parts else None
    except ValueError:
        return 0.0
    return (day - datetime(1970, 1, 1)).total_seconds() + float(parts[2] or 0) if day and parts else 0.0


def _signal(path: Path, name: str, value: Element, rate: float, start: float) -> Signal:
    """One lead."""
    try:
        digits = np.array((value.findtext("digits") or "").split(), dtype=np.float64)
    except ValueError:
        raise ReadError(path, "a signal whose digits are not all numbers", AGAIN) from None
    scale, unit = _quantity(value.find("scale"))
    origin, other = _quantity(value.find("origin"))
    fault = ""
    if value.find("scale") is None:
        fault = "no scale"
    elif scale is None or origin is None:
        fault = "its scale or origin is not a number"
    elif scale == 0:
        fault = "its scale is 0"
    elif not unit.strip():
        fault = "no unit of its scale"
    elif origin and to_millivolt(other) != to_millivolt(unit):
        raise ReadError(path, "a signal whose origin and scale are in different units", AGAIN)
    return Signal(name, (origin or 0.0) + (scale or 1.0) * digits, unit, rate, start, fault)


def _quantity(element: Element | None) -> tuple[float | None, str]:
    return (0.0, "") if element is None else (number(element.get("value", "")), element.get("unit", ""))
