"""A small RSNA set: `n` images of each class as DICOM, the first of them MONOCHROME1; positives have two boxes."""

import uuid
from pathlib import Path

import numpy as np

from evaluate.benchmarks.trees._small import write_dicom, write_table
from m3bind.evaluate.benchmarks.rsna_pneumonia import split_ids


def make(root: Path, n: int = 12, seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    ids = sorted(str(uuid.UUID(bytes=rng.bytes(16))) for _ in range(2 * n))
    positive = {name for names in split_ids(ids).values() for name in names[::2]}
    rows: list[tuple[object, ...]] = []
    for number, name in enumerate(ids):
        write_dicom(root / "stage_2_train_images" / f"{name}.dcm", seed + number, inverted=number == 0)
        boxes = [(264, 152, 213, 379), (562, 152, 256, 453)] if name in positive else [(None,) * 4]
        rows += [(name, *box, int(name in positive)) for box in boxes]
    write_table(root / "stage_2_train_labels.csv", ("patientId", "x", "y", "width", "height", "Target"), rows)
