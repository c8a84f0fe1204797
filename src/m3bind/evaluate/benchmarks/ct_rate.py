"""CT-RATE: 50,188 chest CT volumes of 25,692 scans with reports and 18 machine-predicted labels (Hamamci et al. 2024).

Its volumes were published twice. The first upload (folders `train`, `valid`) holds values as stored by the scanner:
    HU = RescaleSlope * stored + RescaleIntercept        from the metadata table
The second (`train_fixed`, `valid_fixed`) holds Hounsfield units already, while the metadata table still states slope
and intercept; applied again they corrupt the data. So the item's `rescale` is set only for values that need it: never
in a folder ..._fixed, elsewhere according to the voxels (`stored_as`); undecided volumes are quarantined. The first
upload also has blank headers: a volume whose header contradicts the metadata's spacing is quarantined.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from m3bind.core.stored import MAX_LIST, read_text
from m3bind.data.splits import patient_position
from m3bind.errors import in_words
from m3bind.evaluate.benchmarks._cells import is_one, literal
from m3bind.evaluate.benchmarks.base import Benchmark, BenchmarkItem, Fault, read_table

LABELS = (
    "Medical material", "Arterial wall calcification", "Cardiomegaly", "Pericardial effusion",
    "Coronary artery wall calcification", "Hiatal hernia", "Lymphadenopathy", "Emphysema", "Atelectasis",
    "Lung nodule", "Lung opacity", "Pulmonary fibrotic sequela", "Pleural effusion", "Mosaic attenuation pattern",
    "Peribronchial thickening", "Consolidation", "Bronchiectasis", "Interlobular septal thickening",
)  # fmt: skip
REPORTS = {"train": "train_reports.csv", "valid": "validation_reports.csv"}
METADATA = {"train": "train_metadata.csv", "valid": "validation_metadata.csv"}
VALID = 0.05  # of the training patients
AIR, TISSUE = (-1100.0, -800.0), (-150.0, 150.0)  # HU; every chest CT has both in most of its slices
SHARE = 0.01  # minimum share of air, and of tissue, in a slice
FETCH = "fetch the volumes of the folders train_fixed and valid_fixed"


class CtRate(Benchmark):
    """CT-RATE with all reconstructions; its validation patients are the test split, as in every publication."""

    name: ClassVar[str] = "ct_rate"
    title: ClassVar[str] = "CT-RATE"
    modalities: ClassVar[tuple[str, ...]] = ("ct",)
    role: ClassVar = "both"
    licence: ClassVar[str] = "CC BY-NC-SA 4.0, no redistribution"
    url: ClassVar[str] = "https://huggingface.co/datasets/ibrahimhamamci/CT-RATE"
    access: ClassVar[str] = "Gated: accept the terms on its page, then fetch the folder `dataset`, or a part of it."
    layout: ClassVar[str] = """\
train_fixed/train_1/train_1_a/train_1_a_1.nii.gz, ...       split_patient_scan_reconstruction
valid_fixed/valid_1/valid_1_a/valid_1_a_1.nii.gz, ...
radiology_text_reports/{train,validation}_reports.csv
multi_abnormality_labels/{train,valid}_predicted_labels.csv
metadata/{train,validation}_metadata.csv                    needed for the first upload (folders train, valid) only
"""
    needs: ClassVar[tuple[str, ...]] = (
        "radiology_text_reports/validation_reports.csv",
        "multi_abnormality_labels/valid_predicted_labels.csv",
        "valid*",
    )
    classes: ClassVar[tuple[str, ...]] = LABELS
    known: ClassVar[Mapping[str, int]] = {"test": 3039}
    notes: ClassVar[str] = (
        "Labels are predicted from the reports by a classifier. The published validation set (1,304 patients, 1,564 "
        "scans, 3,039 volumes) is test here; 5 % of the training patients, by a hash, are valid. The caption is "
        "findings and impression without quotation marks and brackets, as upstream at inference (upstream trains on "
        "the findings alone and joins without a space). Training scans on the publisher's no_chest lists are "
        "quarantined; the test split includes them, as upstream."
    )
    scans_once: ClassVar[bool] = False  # the first reconstruction of each scan only

    def items(self, root: Path, out: Path) -> Iterator[BenchmarkItem | Fault]:
        """One item per volume, training first, in the order of the label tables."""
        for split in ("train", "valid"):
            folder = next((name for name in (f"{split}_fixed", split) if (root / name).is_dir()), "")
            if not folder:
                yield Fault(0, f"no folder {split}_fixed; its volumes are left out", kind="without a folder")
                continue
            reports = _by_volume(root / "radiology_text_reports" / REPORTS[split])
            metadata = _by_volume(root / "metadata" / METADATA[split])
            excluded = _not_chest(root, split) if split == "train" else frozenset()
            seen: set[str] = set()
            table = root / "multi_abnormality_labels" / f"{split}_predicted_labels.csv"
            for line, row in read_table(table, ("VolumeName", *LABELS)):
                name = row["VolumeName"]
                parts = re.fullmatch(rf"({split}_\d+)_(\w+?)_(\d+)\.nii\.gz", name)
                if parts is None:
                    yield Fault(line, "VolumeName is not split_patient_scan_reconstruction.nii.gz", name, "unnamed")
                    continue
                patient, scan = parts[1], f"{parts[1]}_{parts[2]}"
                if name in excluded:
                    yield Fault(line, "not a chest CT, by the publisher's list", name, "of another body part")
                    continue
                if self.scans_once and scan in seen:
                    continue
                seen.add(scan)
                path = f"{folder}/{patient}/{scan}/{name}"
                first = folder == split and (root / path).is_file()
                rescale, reason = rescale_of(root / path, metadata.get(name)) if first else ("", "")
                if reason:
                    yield Fault(line, reason, path, "of unclear values")
                    continue
                yield BenchmarkItem(
                    path=path,
                    id=name.removesuffix(".nii.gz"),
                    split=_split(split, patient),
                    modality="ct",
                    patient=patient,
                    labels=tuple(label for label in LABELS if is_one(row[label])),
                    caption=_caption(reports.get(name, {})),
                    visit=scan,
                    rescale=rescale,
                )


class CtRateOnce(CtRate):
    """CT-RATE with the first reconstruction of every scan: half of the volumes."""

    name: ClassVar[str] = "ct_rate_once"
    title: ClassVar[str] = "CT-RATE, one reconstruction per scan"
    known: ClassVar[Mapping[str, int]] = {"test": 1564}
    scans_once: ClassVar[bool] = True


def _split(split: str, patient: str) -> str:
    if split == "valid":
        return "test"
    return "valid" if patient_position(patient) < VALID else "train"


def _by_volume(path: Path) -> dict[str, dict[str, str]]:
    """Rows of a table by volume; empty if the table is missing."""
    return {row["VolumeName"]: row for _, row in read_table(path, ("VolumeName",))} if path.is_file() else {}


def _not_chest(root: Path, split: str) -> frozenset[str]:
    """Names of volumes on the publisher's list of scans that are not of the chest."""
    lists = [*root.glob(f"no_chest_{split}.txt"), *root.glob(f"*/no_chest_{split}.txt")]
    lines = "\n".join(read_text(path, MAX_LIST) for path in lists).splitlines()
    return frozenset(line.strip().rpartition("/")[2] for line in lines if line.strip())


def _caption(report: Mapping[str, str]) -> str:
    """Findings and impression of a report; "Not given." counts as empty."""
    parts = [report.get(column, "") for column in ("Findings_EN", "Impressions_EN")]
    return " ".join(re.sub(r"[\"'()]", "", part) for part in parts if part and part != "Not given.")


# --- values of the first upload ---------------------------------------------------------------------------------------


def rescale_of(path: Path, metadata: Mapping[str, str] | None) -> tuple[str, str]:
    """ "slope;intercept" that a volume's values still need ("" for none), and the reason if undecided (or "")."""
    import nibabel

    metadata = metadata or {}
    try:
        slope, intercept = float(metadata.get("RescaleSlope", "")), float(metadata.get("RescaleIntercept", ""))
    except ValueError:
        return "", f"no slope and intercept in the metadata table; add the table or {FETCH}"
    try:
        image = nibabel.load(path)
        difference = spacing_difference(image.header.get_zooms()[:3], metadata)
        form = stored_as(image, slope, intercept) if not difference and (slope, intercept) != (1, 0) else "hu"
    except Exception as error:  # nibabel and zlib raise many types for damaged files
        return "", f"not a readable NIfTI file ({in_words(error)}); fetch it again"
    if difference:
        return "", f"{difference}; {FETCH}, or write the metadata into the header (fix_metadata.py of the publisher)"
    if not form:
        return "", (
            f"its values may be Hounsfield units or need slope {slope:g} and intercept {intercept:g}; {FETCH}, "
            "or rename the folder to ..._fixed if you have checked that they are Hounsfield units"
        )
    return ("" if form == "hu" else f"{slope:g};{intercept:g}"), ""


def stored_as(image: Any, slope: float, intercept: float) -> Literal["hu", "raw", ""]:
    """Whether a NIfTI image holds Hounsfield units, or stored values that still need slope and intercept.

    Under the right interpretation a slice has both air and soft tissue, under the wrong one not: decided by the shares
    in the first slice, then in the middle one. "" if both are undecided.
    """
    for k in (0, image.shape[2] // 2):
        values = np.asarray(image.dataobj[:, :, k], dtype=np.float64)
        hu, raw = _chest_like(values), _chest_like(values * slope + intercept)
        if max(hu, raw) >= SHARE and min(hu, raw) < max(hu, raw) / 10:
            return "hu" if hu > raw else "raw"
    return ""


def _chest_like(values: NDArray[np.float64]) -> float:
    """The smaller of the shares of air and of soft tissue."""
    return min(float(((values >= low) & (values <= high)).mean()) for low, high in (AIR, TISSUE))


def spacing_difference(header: Sequence[float], metadata: Mapping[str, str]) -> str:
    """How a header's voxel size (x, y, z) differs from the metadata's by more than 2 %; "" if it does not.

    XYSpacing is a list written as text ("[0.74, 0.74]"), ZSpacing a number; if one is missing, the result is "".
    """
    plane = literal(metadata.get("XYSpacing", ""), list)
    try:
        stated = [float(side) for side in (*(plane or ()), metadata.get("ZSpacing", ""))]
    except (TypeError, ValueError):
        return ""
    if len(stated) != 3 or np.allclose([float(side) for side in header], stated, rtol=0.02):
        return ""
    return f"its header states voxels of {_size(header)} mm, the metadata {_size(stated)}"


def _size(sides: Sequence[float]) -> str:
    return " x ".join(f"{side:.3g}" for side in sides)
