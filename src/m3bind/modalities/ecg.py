"""Electrocardiograms: WFDB records (.hea with .dat or .mat) -> (12, T) float32 in millivolt, standard lead order.

A path names a record: without extension (`00001_lr`), or any of its files (`00001_lr.hea`, `00001_lr.dat`).
Leads are found by name. Missing limb leads follow from two others (Einthoven, Goldberger):
    III = II - I      aVR = -(I + II) / 2      aVL = I - II / 2      aVF = II - I / 2
"""

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from m3bind.errors import ReadError
from m3bind.modalities import _images
from m3bind.modalities.base import Modality, Sample

LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
MAX_VALUES = 50_000_000  # signals x samples: 12 leads for more than an hour at 1000 Hz
MAX_MISSING = 4  # leads filled with zeros before the record is refused
_TO_MV = {"mv": 1.0, "uv": 1e-3, "µv": 1e-3, "μv": 1e-3, "v": 1e3, "nv": 1e-6}

Array = NDArray[np.float32]


class ECG(Modality):
    """12-lead electrocardiograms."""

    name: ClassVar[str] = "ecg"
    title: ClassVar[str] = "12-lead ECG"
    color: ClassVar[str] = "#ee6677"
    suffixes: ClassVar[tuple[str, ...]] = (".hea", ".dat", ".mat")

    def read(self, path: Path | str) -> Sample:
        """Decode a WFDB record; array (12, T) in mV, `rate` in Hz.

        Raises:
            ReadError: no header, damaged, several segments, shorter than 1 s, mostly NaN, or leads missing that cannot
                be computed from others (more than `MAX_MISSING`).
        """
        stem = record_stem(path)
        header = stem.with_name(stem.name + ".hea")
        if not header.is_file():
            if Path(path).is_file():
                _images.check_file(path, self)
            raise ReadError(path, "no WFDB header (.hea) of that name", "name the record without extension")
        record = _load(stem)
        steps, warnings = [f"{record.fs:g} Hz, {len(record.sig_name)} signals"], list[str]()
        signals = _millivolts(record, warnings)
        signals = _fill_gaps(signals, Path(path), warnings)
        array = _standard_leads(signals, Path(path), steps, warnings)
        return Sample(self.name, array, rate=float(record.fs), steps=steps,
                      warnings=warnings + _doubts(array, float(record.fs)))  # fmt: skip

    def thumbnail(self, sample: Sample, size: int = 160) -> Image.Image:
        """Twelve leads of 2.5 s each (the same 2.5 s) in three rows of four on ECG paper."""
        return draw(sample.array, float(sample.rate or 500.0), size)


def record_stem(path: Path | str) -> Path:
    """The record a path names: the path without the ending of one of its files."""
    path = Path(path)
    ending = _images.ending(path, ECG.suffixes)
    return path.with_name(path.name[: -len(ending)]) if ending else path


def _load(stem: Path) -> Any:
    """The wfdb record with physical signals, after checks on its header."""
    import wfdb  # slow to import

    again = "fetch or export it again"
    try:
        header = wfdb.rdheader(str(stem))
        if isinstance(header, wfdb.MultiRecord):
            raise ReadError(stem, "a record of several segments", "cut out one segment as a record of its own")
        if not header.n_sig or not header.sig_len or not header.fs:
            raise ReadError(stem, "the header names no signals, length or sampling rate", again)
        if header.n_sig * header.sig_len > MAX_VALUES:
            raise ReadError(stem, f"{header.sig_len:,} samples, too long", "cut out the 10 s of interest")
        if header.sig_len < header.fs:
            raise ReadError(stem, f"only {header.sig_len / header.fs:.2f} s long", "at least 1 s is needed, 10 s usual")
        return wfdb.rdrecord(str(stem))
    except ReadError:
        raise
    except FileNotFoundError as error:
        raise ReadError(stem, "a signal file named by the header is missing", "copy .hea and .dat together") from error
    except Exception as error:  # wfdb raises many kinds for damaged records
        reason = f"not a readable WFDB record ({type(error).__name__}: {str(error)[:80]})"
        raise ReadError(stem, reason, again) from error


def _millivolts(record: Any, warnings: list[str]) -> dict[str, NDArray[np.float64]]:
    """Signals in mV by standard lead name; others are left out. The first of two signals of one name counts."""
    found: dict[str, NDArray[np.float64]] = {}
    odd = set()
    for name, unit, signal in zip(record.sig_name, record.units, record.p_signal.T):
        lead = lead_name(name)
        if lead and lead not in found:
            factor = _TO_MV.get(str(unit).strip().lower())
            if factor is None:
                odd.add(lead)
            found[lead] = signal * (factor or 1.0)
    if odd:
        warnings.append(f"unit not known in {', '.join(sorted(odd, key=LEADS.index))}; millivolt assumed")
    return found


def lead_name(name: str) -> str:
    """The standard lead a signal's name means ("AVR", "lead avr", "aVR " -> "aVR"), or ""."""
    plain = name.strip().lower().removeprefix("lead").strip(" _-.")
    return next((lead for lead in LEADS if lead.lower() == plain), "")


def _fill_gaps(
    signals: dict[str, NDArray[np.float64]], path: Path, warnings: list[str]
) -> dict[str, NDArray[np.float64]]:
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


def _standard_leads(
    signals: dict[str, NDArray[np.float64]], path: Path, steps: list[str], warnings: list[str]
) -> Array:
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
    swing = np.quantile(array, 0.998, axis=1) - np.quantile(array, 0.002, axis=1)
    if float(swing.max()) < 0.05:
        return [*found, "all leads are flat"]
    if float(np.median(swing)) > 15:
        found.append(f"very high voltage (median swing {np.median(swing):.0f} mV): wrong gain or unit?")
    flat = [lead for lead, value in zip(LEADS, swing) if value < 0.01]
    if flat:
        found.append(f"flat leads: {', '.join(flat)}")
    misfit = float(np.abs(array[0] + array[2] - array[1]).mean())
    if misfit > 0.25 * float(np.abs(array[:3]).mean()) + 0.02:
        found.append("I + III differs from II: limb leads swapped, mislabelled or filtered apart?")
    return found


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
