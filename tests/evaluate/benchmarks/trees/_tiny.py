"""Small files for the trees: tables, Excel sheets; tiles, ECGs, chest volumes that look different by class number."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

LEADS = ("I", "II", "III", "AVR", "AVL", "AVF", "V1", "V2", "V3", "V4", "V5", "V6")


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(header)
        writer.writerows(rows)


def write_sheet(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    from openpyxl import Workbook

    path.parent.mkdir(parents=True, exist_ok=True)
    book = Workbook()
    for row in (header, *rows):
        book.active.append(list(row))
    book.save(path)


def tile(rng: np.random.Generator, kind: int, size: int = 32) -> np.ndarray:
    """(size, size, 3) uint8 of a colour that belongs to `kind`, with noise."""
    colour = 120 + 90 * np.sin(np.array([1.0, 2.0, 3.0]) * (kind + 1))
    return np.clip(colour + rng.normal(0, 12, (size, size, 3)), 0, 255).astype(np.uint8)


def save_tile(path: Path, rng: np.random.Generator, kind: int, size: int = 32) -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(tile(rng, kind, size)).save(path)


def ecg(rng: np.random.Generator, kind: int, rate: int, seconds: float) -> np.ndarray:
    """(12, T) mV; the beat's rate and shape depend on `kind`, the limb leads obey Einthoven's law."""
    t = np.arange(int(rate * seconds)) / rate
    phase = t % (0.6 + 0.08 * kind)
    beat = np.exp(-((phase - 0.2) ** 2) / 3e-4) + 0.2 * (kind % 3) * np.exp(-((phase - 0.42) ** 2) / 3e-3)
    noise = rng.normal(0, 0.01, (8, len(t)))
    first, second = 0.6 * beat + noise[0], beat + noise[1]
    limb = [first, second, second - first, -(first + second) / 2, first - second / 2, second - first / 2]
    return np.stack([*limb, *(beat * (k + 1) / 4 + noise[2 + k] for k in range(6))])


def write_record(stem: Path, signal: np.ndarray, rate: int, leads: Sequence[str] = LEADS) -> None:
    """A WFDB record (.hea, .dat) as PhysioNet has them."""
    import wfdb

    stem.parent.mkdir(parents=True, exist_ok=True)
    wfdb.wrsamp(stem.name, fs=rate, units=["mV"] * len(leads), sig_name=list(leads), p_signal=signal.T,
                fmt=["16"] * len(leads), write_dir=str(stem.parent))  # fmt: skip


def chest(rng: np.random.Generator, kind: int, shape: tuple[int, int, int] = (24, 24, 10)) -> np.ndarray:
    """(x, y, z) HU: a body in air, two lungs, a dense spot whose place depends on `kind`."""
    volume = np.full(shape, -1000.0)
    volume[3:-3, 3:-3] = 40
    volume[5:10, 8:16] = volume[14:19, 8:16] = -850
    place = 5 + kind % 4
    volume[place : place + 3, 9:12, 3:7] = 300
    return volume + rng.normal(0, 15, shape)


def save_nifti(path: Path, values: np.ndarray, spacing: Sequence[float] = (0.7, 0.7, 1.5)) -> None:
    """int16 volume (x, y, z); `spacing` in its order."""
    import nibabel

    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(np.round(values).astype(np.int16), np.diag([-spacing[0], -spacing[1], spacing[2], 1]))
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)
