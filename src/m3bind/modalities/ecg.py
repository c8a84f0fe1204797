"""Electrocardiograms: WFDB, EDF, BDF, DICOM, CSV, npy, HL7 aECG -> (12, T) float32 in millivolt, standard lead order.

A path names a file, or a WFDB record: without extension (`00001_lr`), or any of its files (`00001_lr.hea`,
`00001_lr.dat`). `signals` reads the formats, `signals_twelve` maps signals to leads by name, never by position. This
module checks for signals unlike a resting ECG, and draws.
"""

from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from m3bind.errors import ReadError
from m3bind.modalities.base import Cut, Modality, Sample
from m3bind.modalities.formats import dicom, images, signals
from m3bind.modalities.formats.signals_leads import LEADS, parse_lead
from m3bind.modalities.formats.signals_twelve import MAX_SWING, twelve_leads
from m3bind.modalities.formats.signals_wfdb_header import WFDB_SUFFIXES, header_of, record_stem

__all__ = ["ECG", "LEADS", "draw", "parse_lead", "record_stem"]

WILD = 50.0  # mV of swing of a single lead, impossible for a heart
NOISE = 0.06  # see `_noise`; resting ECGs have 0.01, at most 0.03, noise alone 0.17
DRIFT = 1.5  # mV by which the baseline of half of the leads moves; 0.1 is usual, 1.1 seen
CLIPPED = 0.01  # fraction of samples that stay exactly at the extreme value; valid leads: below 0.005

Array = NDArray[np.float32]


class ECG(Modality):
    """12-lead electrocardiograms."""

    name: ClassVar[str] = "ecg"
    title: ClassVar[str] = "12-lead ECG"
    color: ClassVar[str] = "#ee6677"
    version: ClassVar[int] = 2  # without calibration a lead is missing; leads of several groups are merged
    suffixes: ClassVar[tuple[str, ...]] = signals.SUFFIXES
    libraries: ClassVar[tuple[str, ...]] = ("wfdb", "pandas", "scipy.signal", "edfio", "pydicom")

    def read(self, path: Path | str) -> Sample:
        """`decode`, with warnings: short, flat, clipped, noisy, swapped leads ...

        Raises:
            ReadError: as `decode`.
        """
        sample = self.decode(path)
        sample.warnings += _doubts(sample.array, float(sample.rate or 0))
        return sample

    def decode(self, path: Path | str) -> Sample:
        """A record; array (12, T) in mV, `rate` in Hz; T is the whole record.

        Raises:
            ReadError: missing, damaged, cut short, over a limit, without names, calibration or rate, shorter than 1 s,
                mostly NaN, or leads missing that cannot be computed from others (more than 4).
        """
        path = Path(path)
        found = signals.read_signals(self._check(path))
        array, rate = twelve_leads(path, found)
        return Sample(self.name, array, rate=rate, steps=found.steps, warnings=found.warnings, tags=found.tags)

    def decode_parts(self, path: Path | str, cut: Cut) -> Sample:
        """`decode`; a record of two windows or more becomes windows (n, 12, W), `places` in seconds from its start.

        Windows do not overlap; of more than `cut.most`, evenly spaced ones are taken. An incomplete one is dropped.

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
        """`path`, once it is known to be readable by this modality."""
        ending = images.ending(path, self.suffixes)
        if ending in ("", *WFDB_SUFFIXES) and header_of(path).is_file():
            return path
        if not path.exists() and ending in ("", *WFDB_SUFFIXES):
            raise ReadError(path, "no WFDB header (.hea) of that name", "name the record without extension")
        refused = signals.REFUSED.get(path.suffix.lower())
        if refused and path.is_file():
            raise ReadError(path, f"{refused[0]}, which is not read", refused[1])
        if not ending and path.is_file() and dicom.is_dicom(path):
            return path
        return images.check_file(path, self)

    def thumbnail(self, sample: Sample, size: int = 160) -> Image.Image:
        """The same 2.5 s of the twelve leads, in three rows of four on ECG paper."""
        return draw(sample.array, float(sample.rate or 500.0), size)


def _doubts(array: Array, rate: float) -> list[str]:
    """Warnings about a (12, T) signal that is unlikely to be a resting ECG."""
    found = []
    seconds = array.shape[1] / rate
    if seconds < 5:
        found.append(f"only {seconds:.1f} s long")
    if not 50 <= rate <= 2000:
        found.append(f"unusual sampling rate {rate:g} Hz")
    some = array[:, :: max(1, array.shape[1] // 2000)]  # a sufficient sample for statistics
    low, middle, high = np.quantile(some, [0.002, 0.5, 0.998], axis=1)
    swing = high - low
    if float(swing.max()) < 0.05:
        return [*found, "all leads are flat"]
    if float(np.median(swing)) > MAX_SWING:
        found.append(f"very high voltage (median swing {np.median(swing):.0f} mV): wrong gain or unit?")
    elif wild := [lead for lead, value in zip(LEADS, swing) if value > WILD]:
        found.append(f"very high voltage in {', '.join(wild)} (up to {swing.max():,.0f} mV): wrong gain or unit?")
    flat = [lead for lead, value in zip(LEADS, swing) if value < 0.01]
    if flat:
        found.append(f"flat leads: {', '.join(flat)}")
    clipped = [lead for lead, is_so in zip(LEADS, _is_clipped(array, middle, swing)) if is_so]
    if clipped:
        found.append(f"clipped (saturated) leads: {', '.join(clipped)}")
    if _noise(array, rate, swing) > NOISE:
        found.append("very noisy: hardly any quiet interval between the beats")
    drift = _drift(array, rate)
    if drift > DRIFT:
        found.append(f"the baseline wanders by {drift:.1f} mV in half of the leads")
    limb = array[:3, (array[:3] != 0).all(axis=0)]  # leads recorded one after another are zero elsewhere
    misfit = float(np.abs(limb[0] + limb[2] - limb[1]).mean()) if limb.size else 0.0
    if limb.size and misfit > 0.25 * float(np.abs(limb).mean()) + 0.02:
        found.append("I + III differs from II: limb leads swapped, mislabelled or filtered apart?")
    return found


def _is_clipped(array: Array, middle: NDArray[np.floating], swing: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Whether each lead of (12, T) stays exactly at its highest or lowest value, far from its median."""
    clipped = np.zeros(len(array), dtype=bool)
    for edge in (array.max(axis=1), array.min(axis=1)):
        at = array == edge[:, None]
        far = (np.abs(edge - middle) > 0.2 * swing) & (swing > 0.05)
        clipped |= far & ((at[:, 1:] & at[:, :-1]).mean(axis=1) > CLIPPED)
    return clipped


def _noise(array: Array, rate: float, swing: NDArray[np.floating]) -> float:
    """Median change within 10 ms over the swing, median over leads: small if most samples lie between beats."""
    lag = max(1, round(rate / 100))
    if array.shape[1] <= lag:
        return 0.0
    step = max(1, array.shape[1] // 2000)
    change = np.median(np.abs(array[:, lag::step] - array[:, :-lag:step]), axis=1)
    return float(np.median(change / np.maximum(swing, 1e-3)))


def _drift(array: Array, rate: float) -> float:
    """Range of the medians of 1 s blocks in mV, median over leads."""
    block = max(1, round(rate))
    count = array.shape[1] // block
    medians = np.median(array[:, : count * block].reshape(12, count, block), axis=2)
    return float(np.median(np.ptp(medians, axis=1)))


def draw(array: Array, rate: float, size: int) -> Image.Image:
    """A (12, T) signal in mV as an RGB image `size` wide: rows I-aVR-V1-V4, II-aVL-V2-V5, III-aVF-V3-V6.

    25 mm/s on a grid of 5 mm; 10 mm/mV, doubled or halved for all leads to fit. Lead names from 400 pixels on.
    """
    factor, seconds = 3, 2.5  # supersampled for smooth lines
    width, height = size * factor, round(size * 0.7) * factor
    mm = width / (4 * seconds * 25)
    image = Image.new("RGB", (width, height), (255, 250, 248))
    pen = ImageDraw.Draw(image)
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
    return image.resize((size, height // factor), Image.Resampling.LANCZOS)
