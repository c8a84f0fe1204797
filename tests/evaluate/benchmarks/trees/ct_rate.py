"""CT-RATE: volumes, reports, labels, metadata with bracketed spacing; the fixed upload, or the first one."""

from pathlib import Path

import numpy as np

from evaluate.benchmarks.trees._tiny import chest, save_nifti, write_csv
from m3bind.data.splits import patient_position
from m3bind.evaluate.benchmarks.ct_rate import LABELS, VALID

SPACING = (0.7, 0.7, 1.5)
SLOPE, INTERCEPT = 1.0, -1024.0


def present(volume: int, label: int) -> bool:
    """Which labels a volume has: each label is there in some and not in others of every five in a row."""
    return (volume * (1 + label % 4) + label) % 5 < 2


def make(root: Path, n: int = 12, seed: int = 0, upload: int = 2) -> None:
    """n training patients, 2 that the hash puts into valid, 8 test patients; the second has two reconstructions.

    `upload` 1 stores raw values in folders `train` and `valid`, 2 Hounsfield units in `train_fixed`, `valid_fixed`.
    """
    rng = np.random.default_rng(seed)
    names = [f"train_{k}" for k in range(1, 2000)]
    patients = [name for name in names if patient_position(name) >= VALID][: max(n, 8)]
    patients += [name for name in names if patient_position(name) < VALID][:2]
    for split, people in (("train", patients), ("valid", [f"valid_{k}" for k in range(1, 9)])):
        reports, labels, metadata = [], [], []
        for k, person in enumerate(people):
            for reconstruction in (1, 2) if k == 1 else (1,):
                name = f"{person}_a_{reconstruction}.nii.gz"
                folder = split + ("_fixed" if upload == 2 else "")
                values = chest(rng, k)
                if upload == 1:
                    values = (values - INTERCEPT) / SLOPE
                save_nifti(root / folder / person / f"{person}_a" / name, values, SPACING)
                reports.append((name, "Not given.", "CT", f'Findings "of case {k}" (no effusion).', "Not given."))
                labels.append((name, *(int(present(k, j)) for j in range(len(LABELS)))))
                metadata.append((name, SLOPE, INTERCEPT, f"[{SPACING[0]}, {SPACING[1]}]", SPACING[2]))
        labels.append((f"{split}_99999_a_1.nii.gz", *[0] * len(LABELS)))  # its volume is gone
        labels.append((f"{split}.nii.gz", *[0] * len(LABELS)))
        word = {"train": "train", "valid": "validation"}[split]
        header = ("VolumeName", "ClinicalInformation_EN", "Technique_EN", "Findings_EN", "Impressions_EN")
        write_csv(root / "radiology_text_reports" / f"{word}_reports.csv", header, reports)
        header = ("VolumeName", *LABELS)
        write_csv(root / "multi_abnormality_labels" / f"{split}_predicted_labels.csv", header, labels)
        header = ("VolumeName", "RescaleSlope", "RescaleIntercept", "XYSpacing", "ZSpacing")
        write_csv(root / "metadata" / f"{word}_metadata.csv", header, metadata)
