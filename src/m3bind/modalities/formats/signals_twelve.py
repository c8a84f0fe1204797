"""The signals of a recording -> its twelve leads (12, T) in mV at one rate, on one time axis.

1. Names are mapped to leads (`signals_leads`), values to millivolt (`signals_units`). A lead without a calibration is
   missing: raw converter values are never taken as millivolt.
2. Gaps are interpolated linearly; a lead that is present in one part of the record only is that part.
3. Slower leads are resampled to the highest rate. Leads that overlap are cut to the common time; leads recorded in
   sequence (3 x 4) are placed where they were recorded, with zeros elsewhere.
4. Missing limb leads follow from two others that were recorded at the same time (Einthoven, Goldberger):
       III = II - I      aVR = -(I + II) / 2      aVL = I - II / 2      aVF = II - I / 2

Shapes: T samples.
"""

from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from m3bind.errors import ReadError
from m3bind.modalities.formats import limits
from m3bind.modalities.formats.recording import Recording, Signal, Values
from m3bind.modalities.formats.signals_leads import LEADS, parse_lead
from m3bind.modalities.formats.signals_units import AMBIGUOUS, to_millivolt, unit_text

MAX_MISSING = 4  # leads filled with zeros; with more the record is rejected
MAX_VALUE = 1e9  # mV; larger values are invalid
MAX_RATIO = 100  # between the sampling rates of two leads
MAX_SWING = 15.0  # mV, median over leads; resting ECGs have 1 to 5
MIN_PART = 2.0  # s of a lead that is present in a part of the record only; printed ECGs have 2.5
LIMB = {"I": (1.0, 0.0), "II": (0.0, 1.0), "III": (-1.0, 1.0),
        "aVR": (-0.5, -0.5), "aVL": (1.0, -0.5), "aVF": (-0.5, 1.0)}  # fmt: skip


@dataclass
class _Lead:
    """One lead in mV: `values` (T,) at `rate` Hz from `start` seconds on."""

    values: Values
    rate: float
    start: float

    @property
    def begin(self) -> int:
        """Its first sample on the common time axis."""
        return round(self.start * self.rate)

    @property
    def end(self) -> int:
        """The sample after its last one on the common time axis."""
        return self.begin + len(self.values)


def twelve_leads(path: Path, recording: Recording) -> tuple[NDArray[np.float32], float]:
    """Array (12, T) in mV in the order `LEADS`, and its rate in Hz; adds to the steps and warnings of `recording`.

    Raises:
        ReadError: no standard lead, none with a calibration, rates too far apart, values that cannot be millivolt, or
            more than `MAX_MISSING` leads missing.
    """
    leads, faults = _calibrated(path, recording)
    leads = _without_gaps(path, leads, recording.warnings)
    rate = _one_rate(path, leads, recording.steps)
    _one_time(leads, rate, recording.warnings)
    _derive(leads, recording.steps)
    missing = [lead for lead in LEADS if lead not in leads]
    if len(missing) > MAX_MISSING:
        why = "".join(f"; {text}" for text in _fault_texts(faults))
        raise ReadError(path, f"leads {', '.join(missing)} are missing{why}", "a 12-lead record is needed")
    if missing:
        recording.warnings.append(f"leads {', '.join(missing)} are missing; filled with zeros")
    first = min(lead.begin for lead in leads.values())
    length = max(lead.end for lead in leads.values()) - first
    limits.check_count(path, 12 * length, "samples")
    array = np.zeros((12, length), dtype=np.float32)
    for row, name in zip(array, LEADS):
        if name in leads:
            row[leads[name].begin - first : leads[name].end - first] = leads[name].values
    return array, rate


# --- 1. names and units -----------------------------------------------------------------------------------------------


def _calibrated(path: Path, recording: Recording) -> tuple[dict[str, _Lead], dict[str, str]]:
    """The leads in mV, and the faults of those without a calibration.

    Of several signals of one lead, calibrated ones are preferred, then ones that are not inverted, then the first.
    """
    named = [(*parse_lead(signal.name), signal, _fault(signal)) for signal in recording.signals]
    named = sorted((item for item in named if item[0]), key=lambda item: (bool(item[3]), -item[1]))
    if not named:
        reason = f"none of the 12 standard leads is among its {len(recording.signals)} signals"
        raise ReadError(path, reason, f"signals need the names {' '.join(LEADS)}; positions are not used")
    leads: dict[str, _Lead] = {}
    faults: dict[str, str] = {}
    unstated, odd, twice = set(), set(), set()
    for name, sign, signal, fault in named:
        if name in leads or name in faults:
            twice.add(name)
        elif fault:
            faults[name] = fault
        else:
            factor = sign * (to_millivolt(signal.unit) or 1.0)
            with np.errstate(all="ignore"):  # damaged files contain infinities
                values = signal.values * factor
                values = np.where(np.abs(values) < MAX_VALUE, values, np.nan)
            leads[name] = _Lead(values, signal.rate, signal.start)
            if sign < 0:
                recording.steps.append(f"{name} is stored inverted (-{name}); negated")
            unstated |= set() if signal.unit.strip() else {name}
            odd |= {name} if signal.unit.strip() in AMBIGUOUS else set()
    if not leads:
        why = "; ".join(dict.fromkeys(faults.values()))
        raise ReadError(path, f"none of its leads is calibrated: {why}", "export it with gain and unit")
    recording.warnings += [f"{text}; taken as missing" for text in _fault_texts(faults)]
    if unstated:
        _check_unstated(path, [leads[name].values for name in unstated])
        recording.warnings.append(f"unit not known in {_listed(unstated)}; millivolt assumed")
    if odd:
        recording.warnings.append(f"unit MV (literally megavolt) in {_listed(odd)}; millivolt taken")
    if twice:
        recording.warnings.append(f"several signals named {_listed(twice)}; the first is taken")
    return leads, faults


def _fault(signal: Signal) -> str:
    """Why the signal cannot be converted to millivolt, or ""."""
    unknown = signal.unit.strip() and to_millivolt(signal.unit) is None
    return signal.fault or (f"the unit {unit_text(signal.unit)} is not a voltage" if unknown else "")


def _fault_texts(faults: dict[str, str]) -> list[str]:
    """One text for all leads of each fault."""
    texts = []
    for fault in dict.fromkeys(faults.values()):
        names = {name for name in faults if faults[name] == fault}
        texts.append(f"lead{'s' if len(names) > 1 else ''} {_listed(names)} not calibrated ({fault})")
    return texts


def _check_unstated(path: Path, values: list[Values]) -> None:
    """Raise ReadError if signals without a unit cannot be in mV."""
    some = [lead[:: max(1, len(lead) // 2000)] for lead in values]
    swings = [float(np.ptp(np.nanquantile(lead, [0.002, 0.998]))) for lead in some if np.isfinite(lead).any()]
    if swings and np.median(swings) > MAX_SWING:
        reason = f"no unit is stated, and values that swing by {np.median(swings):,.4g} cannot be millivolt"
        raise ReadError(path, reason, "state the unit, for example I (uV)")


def _listed(leads: set[str]) -> str:
    return ", ".join(sorted(leads, key=LEADS.index))


# --- 2. gaps ----------------------------------------------------------------------------------------------------------


def _without_gaps(path: Path, leads: dict[str, _Lead], warnings: list[str]) -> dict[str, _Lead]:
    """Leads with only finite values.

    Gaps are interpolated linearly. A lead that is NaN in half of its samples or more is missing, unless its values form
    one part of at least `MIN_PART` seconds.
    """
    found = {}
    gaps = []
    for name, lead in leads.items():
        good = np.isfinite(lead.values)
        if good.mean() <= 0.5:
            part = _one_part(lead, good)
            if part is None:
                warnings.append(f"lead {name} has no value in most of the record; taken as missing")
                continue
            lead, good = part, np.isfinite(part.values)
        if not good.all():
            gaps.append(1 - good.mean())
            filled = np.interp(np.arange(len(good)), np.flatnonzero(good), lead.values[good])
            lead = _Lead(filled, lead.rate, lead.start)
        found[name] = lead
    if gaps:
        warnings.append(f"{len(gaps)} leads have gaps (up to {max(gaps):.1%}), interpolated linearly")
    if not found:
        raise ReadError(path, "none of the 12 standard leads has values", f"expected signals {' '.join(LEADS)}")
    return found


def _one_part(lead: _Lead, good: NDArray[np.bool_]) -> _Lead | None:
    """The part of the record in which a lead is present; None if it is intermittent or too short."""
    where = np.flatnonzero(good)
    if not where.size:
        return None
    first, last = int(where[0]), int(where[-1]) + 1
    if (last - first) / lead.rate < MIN_PART or where.size < 0.95 * (last - first):
        return None
    return _Lead(lead.values[first:last], lead.rate, lead.start + first / lead.rate)


# --- 3. one rate, one time --------------------------------------------------------------------------------------------


def _one_rate(path: Path, leads: dict[str, _Lead], steps: list[str]) -> float:
    """Resample all leads to the highest of their rates, which is returned."""
    highest = max(lead.rate for lead in leads.values())
    slower = [name for name, lead in leads.items() if lead.rate != highest]
    if any(highest > MAX_RATIO * leads[name].rate for name in slower):
        raise ReadError(path, f"sampling rates that differ more than {MAX_RATIO} times", "damaged, or malicious")
    if slower:
        from scipy.signal import resample_poly

        total = sum(len(lead.values) * highest / lead.rate for lead in leads.values())
        limits.check_count(path, int(total), "samples")
        kinds = " and ".join(f"{rate:g}" for rate in sorted({leads[name].rate for name in slower}))
        for name in slower:
            lead = leads[name]
            ratio = Fraction(highest / lead.rate).limit_denominator(1000)
            values = resample_poly(lead.values, ratio.numerator, ratio.denominator, padtype="line")
            leads[name] = _Lead(values, highest, lead.start)
        steps.append(f"{', '.join(slower)} resampled from {kinds} to {highest:g} Hz")
    return highest


def _one_time(leads: dict[str, _Lead], rate: float, warnings: list[str]) -> None:
    """Cut leads to their common time if that is at least half of the longest; else leave them unchanged."""
    begin, end = max(lead.begin for lead in leads.values()), min(lead.end for lead in leads.values())
    longest = max(len(lead.values) for lead in leads.values())
    if end - begin >= longest / 2:
        if longest > end - begin + 1:
            warnings.append(f"leads of different length, cut to the shortest: {(end - begin) / rate:g} s")
        for name, lead in leads.items():
            leads[name] = _Lead(lead.values[begin - lead.begin : end - lead.begin], rate, begin / rate)
        return
    first = min(lead.begin for lead in leads.values())
    parts: dict[tuple[int, int], set[str]] = {}
    for name, lead in leads.items():
        parts.setdefault((lead.begin - first, lead.end - first), set()).add(name)
    texts = [f"{_listed(names)} {low / rate:.3g}-{high / rate:.3g} s" for (low, high), names in sorted(parts.items())]
    warnings.append(f"leads recorded for a part of the time each ({'; '.join(texts)}), zeros elsewhere")


# --- 4. limb leads ----------------------------------------------------------------------------------------------------


def _derive(leads: dict[str, _Lead], steps: list[str]) -> None:
    """Add missing limb leads: each is a fixed linear combination of I and II, solved from two of the same time."""
    known = combinations([name for name in LIMB if name in leads], 2)
    same = ((a, b) for a, b in known if (leads[a].begin, leads[a].end) == (leads[b].begin, leads[b].end))
    pair = next(same, None)
    if pair is None:
        return
    mixture = np.array([LIMB[name] for name in pair])
    first, second = np.linalg.solve(mixture, np.stack([leads[name].values for name in pair]))
    for name in [name for name in LIMB if name not in leads]:
        values = LIMB[name][0] * first + LIMB[name][1] * second
        leads[name] = _Lead(values, leads[pair[0]].rate, leads[pair[0]].start)
        steps.append(f"{name} computed from {pair[0]} and {pair[1]}")
