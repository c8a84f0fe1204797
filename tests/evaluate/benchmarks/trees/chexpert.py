"""A small CheXpert: per finding of the competition `n` patients that have it alone and `n` that have more."""

from pathlib import Path

from evaluate.benchmarks.trees._small import write_image, write_table
from m3bind.evaluate.benchmarks._chexpert import COMPETITION, FINDINGS

HEADER = ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *FINDINGS)


def make(root: Path, n: int = 12, seed: int = 0, folder: str = "CheXpert-v1.0") -> None:
    """The first patient of each finding has a second study with more findings; uncertain cells and a lateral view."""
    train = []
    for k, task in enumerate(COMPETITION):
        other = COMPETITION[(k + 1) % len(COMPETITION)]
        for j in range(n):
            alone, more = f"patient{2 * (k * n + j) + 1:05d}", f"patient{2 * (k * n + j) + 2:05d}"
            train.append((alone, 1, {task: 1, "No Finding": None, "Fracture": 0}, "Frontal"))
            train.append((more, 1, {task: 1, "Support Devices": 1, other: -1}, "Frontal"))
            if j == 0:
                train.append((alone, 2, {task: 1, other: 1}, "Frontal"))
                train.append((more, 1, {task: 1}, "Lateral"))
    tested = max(3, n // 3)
    valid = [
        (f"patient{64541 + k * tested + j}", 1, {**dict.fromkeys(FINDINGS, 0), task: 1}, "Frontal")
        for k, task in enumerate(COMPETITION)
        for j in range(tested)
    ]
    for split, studies in (("train", train), ("valid", valid)):
        rows = []
        for number, (patient, study, values, view) in enumerate(studies):
            inner = f"{split}/{patient}/study{study}/view{1 + (view == 'Lateral')}_{view.lower()}.jpg"
            write_image(root / folder / inner, seed + number)
            cells = [values.get(finding) for finding in FINDINGS]
            marks = ["" if value is None else f"{value}.0" for value in cells]
            rows.append((f"{folder}/{inner}", "Male", 60, view, "AP" if view == "Frontal" else "", *marks))
        write_table(root / folder / f"{split}.csv", HEADER, rows)
