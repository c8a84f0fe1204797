"""A contact sheet of a cohort: one row per syndrome, one column per modality, drawn from the written files.

* `contact_sheet`: write the sheet as PNG.
"""

import csv
from pathlib import Path

import nibabel
import numpy as np
import wfdb
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from m3bind.core.files import atomic_path
from m3bind.data.phantom.state import MODALITIES, SEVERITIES

CELL, LABEL, GAP = 224, 150, 4
WIDTHS = {"xray": CELL, "ct": CELL, "retina": CELL, "ecg": 2 * CELL, "pathology": CELL}
TITLES = {
    "xray": "Chest X-ray",
    "ct": "CT (lung window)",
    "retina": "Fundus",
    "ecg": "12-lead ECG",
    "pathology": "H&E tile",
}


def contact_sheet(folder: Path | str, out_png: Path | str) -> Path:
    """Write the contact sheet of the cohort in `folder` to `out_png`: the most severe complete patient per syndrome."""
    folder, out = Path(folder), Path(out_png)
    with open(folder / "manifest.csv", encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle))
    patients: dict[str, dict[str, dict[str, str]]] = {}
    for row in rows:
        patients.setdefault(row["patient"], {})[row["modality"]] = row
    chosen: dict[str, dict[str, dict[str, str]]] = {}
    for files in patients.values():
        row = next(iter(files.values()))
        best = chosen.get(row["label"])
        if best is None or _rank(files) > _rank(best):
            chosen[row["label"]] = files
    width = LABEL + sum(WIDTHS.values()) + GAP * len(WIDTHS)
    sheet = Image.new("RGB", (width, 26 + len(chosen) * (CELL + GAP)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    left = LABEL
    for modality in MODALITIES:
        pen.text((left + 4, 4), TITLES[modality], fill="black", font=font)
        left += WIDTHS[modality] + GAP
    pen.text((4, 4), "SYNTHETIC", fill="#a00000", font=font)
    for number, files in enumerate(chosen.values()):
        top, left = 26 + number * (CELL + GAP), LABEL
        first = next(iter(files.values()))
        words = [*first["label"].split(), f"({first['severity']})"]
        pen.multiline_text((4, top + 60), "\n".join(words), fill="black", font=font)
        for modality in MODALITIES:
            if modality in files:
                sheet.paste(_thumbnail(folder / files[modality]["path"], modality), (left, top))
            left += WIDTHS[modality] + GAP
    with atomic_path(out) as temporary:
        sheet.save(temporary, format="PNG")
    return out


def _rank(files: dict[str, dict[str, str]]) -> tuple[int, int]:
    return len(files), SEVERITIES.index(next(iter(files.values()))["severity"])


def _thumbnail(path: Path, modality: str) -> Image.Image:
    if modality == "ct":
        return _slices(path)
    if modality == "ecg":
        return _traces(path)
    return Image.open(path).convert("RGB").resize((CELL, CELL))


def _slices(path: Path) -> Image.Image:
    """Four axial slices from low to high, lung window."""
    volume = np.asarray(nibabel.load(path).dataobj).transpose(2, 1, 0)
    slices = volume[[10, 14, 18, 22], 12:-12]
    grey = np.clip((slices + 1000) / 1350 * 255, 0, 255).astype(np.uint8)
    grid = np.vstack([np.hstack(list(grey[:2])), np.hstack(list(grey[2:]))])
    return Image.fromarray(grid).resize((CELL, CELL)).convert("RGB")


def _traces(path: Path) -> Image.Image:
    """Twelve leads in the usual 3 x 4 layout, 2.5 s each, and 10 s of lead II, on ECG paper."""
    record = wfdb.rdrecord(str(path))
    signal: NDArray[np.float64] = record.p_signal.T
    image = Image.new("RGB", (2 * CELL, CELL), "#fff4f4")
    pen = ImageDraw.Draw(image)
    second, height = 2 * CELL / 10, CELL / 4
    for x in np.arange(0, 2 * CELL, second / 5).tolist():
        pen.line([(x, 0), (x, CELL)], fill="#f6cccc")
    for y in range(0, CELL, 9):
        pen.line([(0, y), (2 * CELL, y)], fill="#f6cccc")
    window = int(2.5 * record.fs)
    strips = [
        (signal[lead, (lead // 3) * window : (lead // 3 + 1) * window], lead // 3, lead % 3) for lead in range(12)
    ]
    for values, column, row in [*strips, (signal[1], 0, 3)]:
        x = column * 2.5 * second + np.arange(len(values)) / record.fs * second
        y = (row + 0.55) * height - values * 18
        trace: list[float] = np.stack([x, y], 1).ravel().tolist()
        pen.line(trace, fill="black", width=1)
    for lead in range(12):
        pen.text((lead // 3 * 2.5 * second + 2, lead % 3 * height), record.sig_name[lead], fill="#404040")
    return image
