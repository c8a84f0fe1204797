"""Electrocardiograms: WFDB, EDF, BDF, DICOM, CSV, npy, HL7 aECG -> (12, T) float32 in millivolt, standard lead order.

A path names a file, or a WFDB record: without extension (`00001_lr`), or any of its files (`00001_lr.hea`,
`00001_lr.dat`). `_signals` reads the formats; here signals become leads.
Leads are found by name, never by position. Missing limb leads follow from two others (Einthoven, Goldberger):
    III = II - I      aVR = -(I + II) / 2      aVL = I - II / 2      aVF = II - I / 2
"""

import re
from fractions import Fraction
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from m3bind.errors import ReadError
from m3bind.modalities import _dicom, _images, _limits, _signals
from m3bind.modalities._recording import Recording, to_millivolt
from m3bind.modalities._signals_wfdb import WFDB_SUFFIXES, header_of, record_stem
from m3bind.modalities.base import Cut, Modality, Sample

__all__ = ["ECG", "LEADS", "draw", "parse_lead", "record_stem"]

LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
MAX_MISSING = 4  # leads filled with zeros before the record is refused
MAX_VALUE = 1e9  # mV; beyond is no value at all, while raw 24-bit samples without a gain stay below
MAX_RATIO = 100  # between the sampling rates of two leads
NOISE = 0.06  # see `_noise`; resting ECGs have 0.01, at most 0.03, noise alone 0.17
DRIFT = 1.5  # mV by which the baseline of half of the leads moves; 0.1 is usual, 1.1 seen
CLIPPED = 0.01  # share of samples that stay exactly at the highest (or lowest) value; sound leads: below 0.005
_PREFIX = re.compile(r"(?:mdc_ecg_lead|ecg|ekg|lead)(?:\s+-\s+|[\s_:.]+|-)?")
_NAMES = {lead.lower(): lead for lead in LEADS} | {"di": "I", "dii": "II", "diii": "III"}

Array = NDArray[np.float32]
Values = NDArray[np.float64]


class ECG(Modality):
    """12-lead electrocardiograms."""

    name: ClassVar[str] = "ecg"
    title: ClassVar[str] = "12-lead ECG"
    color: ClassVar[str] = "#ee6677"
    suffixes: ClassVar[tuple[str, ...]] = _signals.SUFFIXES
    libraries: ClassVar[tuple[str, ...]] = ("wfdb", "pandas", "scipy.signal", "edfio", "pydicom")

    def read(self, path: Path | str) -> Sample:
        """`decode`, and doubts: short, flat, clipped, noisy, swapped leads ...

        Raises:
            ReadError: as `decode`.
        """
        sample = self.decode(path)
        sample.warnings += _doubts(sample.array, float(sample.rate or 0))
        return sample

    def decode(self, path: Path | str) -> Sample:
        """A record; array (12, T) in mV, `rate` in Hz. Nothing is cut: T is all of the record.

        Raises:
            ReadError: missing, damaged, over a limit, without names or rate, several segments, shorter than 1 s,
                mostly NaN, or leads missing that cannot be computed from others (more than `MAX_MISSING`).
        """
        path = Path(path)
        recording = _signals.read_signals(self._check(path))
        steps, warnings = recording.steps, recording.warnings
        signals = _fill_gaps(_millivolts(recording, path), path, warnings)
        rates = {signal.name: signal.rate for signal in recording.signals}
        signals, rate = _one_rate(signals, rates, path, steps, warnings)
        array = _standard_leads(signals, path, steps, warnings)
        return Sample(self.name, array, rate=rate, steps=steps, warnings=warnings, tags=recording.tags)

    def decode_parts(self, path: Path | str, cut: Cut) -> Sample:
        """`decode`; a record of two windows or more becomes windows (n, 12, W), `places` in seconds from its start.

        Windows follow each other without overlap; where they are more than `cut.most`, evenly chosen ones. What is left
        at the end is no window.

        Raises:
            ReadError: as `decode`.
        """
        sample = self.decode(path)
        rate = float(sample.rate or 0)
        width = round(cut.seconds * rate)
        count = sample.array.shape[1] // width if width else 0
        if count < 2:
            return sample
        chosen = np.unique(np.linspace(0, count - 1, min(count, cut.most)).round().astype(int))
        sample.array = np.stack([sample.array[:, k * width : (k + 1) * width] for k in chosen])
        sample.places = [[k * width / rate] for k in chosen.tolist()]
        sample.steps.append(f"{len(chosen)} of {count} windows of {cut.seconds:g} s")
        return sample

    def _check(self, path: Path) -> Path:
        """`path`, once there is something at it that this modality reads."""
        ending = _images.ending(path, self.suffixes)
        if ending in ("", *WFDB_SUFFIXES) and header_of(path).is_file():
            return path
        if not path.exists() and ending in ("", *WFDB_SUFFIXES):
            raise ReadError(path, "no WFDB header (.hea) of that name", "name the record without extension")
        refused = _signals.REFUSED.get(path.suffix.lower())
        if refused and path.is_file():
            raise ReadError(path, f"{refused[0]}, which is not read", refused[1])
        if not ending and path.is_file() and _dicom.is_dicom(path):
            return path
        return _images.check_file(path, self)

    def thumbnail(self, sample: Sample, size: int = 160) -> Image.Image:
        """Twelve leads of 2.5 s each (the same 2.5 s) in three rows of four on ECG paper."""
        return draw(sample.array, float(sample.rate or 500.0), size)


def parse_lead(name: str) -> tuple[str, int]:
    """The standard lead a signal's name means, and -1 for an inverted one, else 1; ("", 1) for other names.

    "AVR", "lead avr", "ECG aVR-ref", "MDC_ECG_LEAD_AVR", "Lead aVR (Goldberger)" -> aVR; "-aVR", "aVRneg" -> inverted;
    "DI" -> I. "V", "MLII" and "C3" (an EEG electrode too) are no standard leads.
    """
    plain = re.sub(r"\s*\(.*\)\s*$", "", name.strip().lower()[:80])
    plain = _PREFIX.sub("", plain, count=1) if _PREFIX.match(plain) else plain
    plain = re.sub(r"[\s_-]+ref$", "", plain)
    positive = re.sub(r"^(?:[-\u2212\u2013]|minus\s|inverted\s)\s*|neg$|\s*inverted$", "", plain)
    lead = _NAMES.get(positive.strip(" _-.:"), "")
    return lead, -1 if lead and positive != plain else 1


def _millivolts(recording: Recording, path: Path) -> dict[str, Values]:
    """Signals in mV by standard lead; others are left out of `recording`, whose signals get the leads' names.

    The first of several signals of one lead counts, one as it is before an inverted one.
    """
    named = [(*parse_lead(signal.name), signal) for signal in recording.signals]
    named = sorted((item for item in named if item[0]), key=lambda item: -item[1])
    found: dict[str, Values] = {}
    kept, odd, twice = [], set(), set()
    for lead, sign, signal in named:
        if lead in found:
            twice.add(lead)
            continue
        factor = to_millivolt(signal.unit)
        if factor is None:
            odd.add(lead)
        with np.errstate(all="ignore"):  # damaged files hold infinities
            values = signal.values * (sign * (factor or 1.0))
            found[lead] = np.where(np.abs(values) < MAX_VALUE, values, np.nan)
        if sign < 0:
            recording.steps.append(f"{lead} is stored inverted (-{lead}); negated")
        signal.name = lead
        kept.append(signal)
    if not found:
        reason = f"none of the 12 standard leads is among its {len(recording.signals)} signals"
        raise ReadError(path, reason, f"signals need the names {' '.join(LEADS)}; position does not count")
    recording.signals = kept
    if odd:
        recording.warnings.append(f"unit not known in {_listed(odd)}; millivolt assumed")
    if twice:
        recording.warnings.append(f"several signals named {_listed(twice)}; the first counts")
    return found


def _listed(leads: set[str]) -> str:
    return ", ".join(sorted(leads, key=LEADS.index))


def _one_rate(
    signals: dict[str, Values], rates: dict[str, float], path: Path, steps: list[str], warnings: list[str]
) -> tuple[dict[str, Values], float]:
    """Signals at the highest of their rates, all of the length of the shortest."""
    highest = max(rates[lead] for lead in signals)
    slower = [lead for lead in signals if rates[lead] != highest]
    if any(highest > MAX_RATIO * rates[lead] for lead in slower):
        raise ReadError(path, f"sampling rates that differ more than {MAX_RATIO} times", "damaged, or made to harm")
    if slower:
        from scipy.signal import resample_poly

        total = sum(len(signal) * highest / rates[lead] for lead, signal in signals.items())
        _limits.check_count(path, int(total), "samples")
        for lead in slower:
            ratio = Fraction(highest / rates[lead]).limit_denominator(1000)
            signals[lead] = resample_poly(signals[lead], ratio.numerator, ratio.denominator, padtype="line")
        kinds = " and ".join(f"{rate:g}" for rate in sorted({rates[lead] for lead in slower}))
        steps.append(f"{', '.join(slower)} resampled from {kinds} to {highest:g} Hz")
    shortest = min(len(signal) for signal in signals.values())
    longest = max(len(signal) for signal in signals.values())
    if longest > shortest + 1:
        warnings.append(f"leads of different length, cut to the shortest: {shortest / highest:g} s")
    return {lead: signal[:shortest] for lead, signal in signals.items()}, highest


def _fill_gaps(signals: dict[str, Values], path: Path, warnings: list[str]) -> dict[str, Values]:
    """Interpolate NaN linearly; a lead that is NaN in more than half of its samples counts as missing."""
    kept = {}
    gaps = []
    for lead, signal in signals.items():
        good = np.isfinite(signal)
        if good.mean() <= 0.5:
            warnings.append(f"lead {lead} has no value in most of the record; taken as missing")
            continue
        if not good.all():
            gaps.append(1 - good.mean())
            signal = np.interp(np.arange(len(signal)), np.flatnonzero(good), signal[good])
        kept[lead] = signal
    if gaps:
        warnings.append(f"{len(gaps)} leads have gaps (up to {max(gaps):.1%}), filled by straight lines")
    if not kept:
        raise ReadError(path, "none of the 12 standard leads holds values", f"expected signals {' '.join(LEADS)}")
    return kept


def _standard_leads(signals: dict[str, Values], path: Path, steps: list[str], warnings: list[str]) -> Array:
    """Stack the 12 leads in standard order, computing limb leads that are missing."""
    limb = {"I": (1.0, 0.0), "II": (0.0, 1.0), "III": (-1.0, 1.0),
            "aVR": (-0.5, -0.5), "aVL": (1.0, -0.5), "aVF": (-0.5, 1.0)}  # fmt: skip
    known = [lead for lead in limb if lead in signals]
    if 2 <= len(known) < len(limb):
        # each limb lead is a fixed mixture of I and II: solve for both from the first two that are there
        mixture = np.array([limb[lead] for lead in known[:2]])
        first, second = np.linalg.solve(mixture, np.stack([signals[lead] for lead in known[:2]]))
        for lead in [lead for lead in limb if lead not in signals]:
            signals[lead] = limb[lead][0] * first + limb[lead][1] * second
            steps.append(f"{lead} computed from {known[0]} and {known[1]}")
    missing = [lead for lead in LEADS if lead not in signals]
    if len(missing) > MAX_MISSING:
        raise ReadError(path, f"leads {', '.join(missing)} are missing", "a 12-lead record is needed")
    if missing:
        warnings.append(f"leads {', '.join(missing)} are missing; filled with zeros")
    length = len(next(iter(signals.values())))
    return np.stack([signals.get(lead, np.zeros(length)) for lead in LEADS]).astype(np.float32)


def _doubts(array: Array, rate: float) -> list[str]:
    """Warnings about a (12, T) signal that is unlikely to be a resting ECG."""
    found = []
    seconds = array.shape[1] / rate
    if seconds < 5:
        found.append(f"only {seconds:.1f} s long")
    if not 50 <= rate <= 2000:
        found.append(f"unusual sampling rate {rate:g} Hz")
    some = array[:, :: max(1, array.shape[1] // 2000)]  # enough for statistics
    low, middle, high = np.quantile(some, [0.002, 0.5, 0.998], axis=1)
    swing = high - low
    if float(swing.max()) < 0.05:
        return [*found, "all leads are flat"]
    if float(np.median(swing)) > 15:
        found.append(f"very high voltage (median swing {np.median(swing):.0f} mV): wrong gain or unit?")
    flat = [lead for lead, value in zip(LEADS, swing) if value < 0.01]
    if flat:
        found.append(f"flat leads: {', '.join(flat)}")
    clipped = [lead for lead, is_so in zip(LEADS, _is_clipped(array, middle, swing)) if is_so]
    if clipped:
        found.append(f"clipped (saturated) leads: {', '.join(clipped)}")
    if _noise(array, rate, swing) > NOISE:
        found.append("very noisy: hardly any quiet stretch between the beats")
    drift = _drift(array, rate)
    if drift > DRIFT:
        found.append(f"the baseline wanders by {drift:.1f} mV in half of the leads")
    misfit = float(np.abs(array[0] + array[2] - array[1]).mean())
    if misfit > 0.25 * float(np.abs(array[:3]).mean()) + 0.02:
        found.append("I + III differs from II: limb leads swapped, mislabelled or filtered apart?")
    return found


def _is_clipped(array: Array, middle: NDArray[np.floating], swing: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Whether each lead of (12, T) rests exactly at its highest or lowest value, far from its median."""
    clipped = np.zeros(len(array), dtype=bool)
    for edge in (array.max(axis=1), array.min(axis=1)):
        at = array == edge[:, None]
        far = (np.abs(edge - middle) > 0.2 * swing) & (swing > 0.05)
        clipped |= far & ((at[:, 1:] & at[:, :-1]).mean(axis=1) > CLIPPED)
    return clipped


def _noise(array: Array, rate: float, swing: NDArray[np.floating]) -> float:
    """Typical change within 10 ms over the swing, median over leads: small where most samples lie between beats."""
    lag = max(1, round(rate / 100))
    if array.shape[1] <= lag:
        return 0.0
    step = max(1, array.shape[1] // 2000)
    change = np.median(np.abs(array[:, lag::step] - array[:, :-lag:step]), axis=1)
    return float(np.median(change / np.maximum(swing, 1e-3)))


def _drift(array: Array, rate: float) -> float:
    """Range of the medians of seconds in mV, median over leads."""
    block = max(1, round(rate))
    count = array.shape[1] // block
    medians = np.median(array[:, : count * block].reshape(12, count, block), axis=2)
    return float(np.median(np.ptp(medians, axis=1)))


def draw(array: Array, rate: float, size: int) -> Image.Image:
    """A (12, T) signal in mV as an RGB picture `size` wide: rows I-aVR-V1-V4, II-aVL-V2-V5, III-aVF-V3-V6.

    25 mm/s on a grid of 5 mm; 10 mm/mV, doubled or halved (all leads alike) to what fits. Names from 400 pixels on.
    """
    factor, seconds = 3, 2.5  # drawn larger, then shrunk, for smooth lines
    width, height = size * factor, round(size * 0.7) * factor
    mm = width / (4 * seconds * 25)
    picture = Image.new("RGB", (width, height), (255, 250, 248))
    pen = ImageDraw.Draw(picture)
    for step, tone in ((5, (250, 224, 220)), (25, (240, 194, 188))):
        for k in range(0, round(width / mm) + 1, step):
            pen.line([(k * mm, 0), (k * mm, height)], fill=tone, width=1)
            pen.line([(0, k * mm), (width, k * mm)], fill=tone, width=1)
    count = min(array.shape[1], round(seconds * rate))
    start = (array.shape[1] - count) // 2
    shown = array[:, start : start + count] - np.median(array, axis=1, keepdims=True)
    room = height / 6 / (10 * mm)  # mV from the middle of a row to its edge at 10 mm/mV
    peak = max(float(np.quantile(np.abs(shown), 0.998)), 1e-6)
    gain = next((g for g in (2.0, 1.0) if peak * g <= 1.3 * room), 0.5)
    for lead in range(12):
        row, column = lead % 3, lead // 3
        x = (column + np.arange(count) / (seconds * rate)) * width / 4
        y = (row + 0.55) * height / 3 - np.clip(shown[lead] * gain, -room, 1.3 * room) * 10 * mm
        pen.line([*map(tuple, np.stack([x, y], axis=1).tolist())], fill=(25, 25, 40), width=factor)
        if size >= 400:
            pen.text((column * width / 4 + 2 * mm, row * height / 3 + mm), LEADS[lead], fill=(60, 60, 90),
                     font_size=11 * factor)  # fmt: skip
    return picture.resize((size, height // factor), Image.Resampling.LANCZOS)
