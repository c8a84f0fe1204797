"""MIMIC-CXR-JPG: frontal radiographs with reports and CheXpert's labels, official split."""

from collections.abc import Iterator
from pathlib import Path

from m3bind.errors import ManifestError
from m3bind.evaluate.benchmarks._chexpert import FINDINGS
from m3bind.evaluate.benchmarks._mimic import (
    CREDENTIALS,
    LICENCE,
    METADATA,
    REPORT_ZIP,
    SECTIONED,
    open_reports,
    patient_of,
    radiographs,
    report_place,
    study_findings,
    table_of,
)
from m3bind.evaluate.benchmarks.base import Benchmark, BenchmarkItem, Fault, read_table

SPLIT_TABLE = "mimic-cxr-2.0.0-split.csv"
_SPLITS = {"train": "train", "validate": "valid", "test": "test"}


class MimicCxr(Benchmark):
    """MIMIC-CXR-JPG."""

    name = "mimic_cxr"
    title = "MIMIC-CXR-JPG"
    modalities = ("xray",)
    role = "both"
    licence = LICENCE
    url = "https://physionet.org/content/mimic-cxr-jpg/"
    access = CREDENTIALS + f" The reports are in MIMIC-CXR ({REPORT_ZIP}): put that file into the same folder."
    layout = f"""
    files/p10/p10000032/s50414267/{{dicom_id}}.jpg
    mimic-cxr-2.0.0-metadata.csv(.gz), -split.csv(.gz), -chexpert.csv(.gz)
    reports, one of:
        {REPORT_ZIP}                      as published in MIMIC-CXR
        mimic-cxr-reports/files/p10/p10000032/s50414267.txt    the same, unpacked (also below files/)
        {SECTIONED}                    study, impression, findings, ... (MIMIC-CXR's create_section_files.py)
    """
    needs = (f"{METADATA}*", f"{SPLIT_TABLE}*", "files/p1*")
    classes = FINDINGS
    notes = (
        "AP and PA views only. The text is impression and findings by MGCA's rule: lower case, no punctuation, no "
        "sentences of one word; images whose report has neither, or fewer than three words, are quarantined. MGCA "
        "merges validate and test into one. Findings that the labeller calls uncertain count as absent. Official test "
        "subjects are few (293); MedBind split the subjects again and did not publish its list."
    )

    def check(self, root: Path) -> None:
        """Check that images, tables and reports exist.

        Raises:
            ManifestError: with the layout and how to get the data.
        """
        super().check(root)
        if report_place(root) is None:
            raise ManifestError(f"{root}: no reports of MIMIC-CXR found.\n{self.layout}\n{self.access}")

    def items(self, root: Path, out: Path) -> Iterator[BenchmarkItem | Fault]:
        """One row per frontal image with a report."""
        table = table_of(root, SPLIT_TABLE)
        splits = {cells["dicom_id"]: cells["split"] for _, cells in read_table(table, ("dicom_id", "split"))}
        findings = study_findings(root)
        place = report_place(root)
        reports = open_reports(place) if place else None
        for image in radiographs(root):
            split = _SPLITS.get(splits.get(image.dicom, ""))
            caption = reports(image.subject, image.study) if reports else ""
            if split is None:
                yield Fault(image.row, "not in the table of splits", image.path, "without a split")
            elif not caption:
                yield Fault(image.row, "its report has no impression or findings", image.path, "without a report")
            else:
                patient, labels = patient_of(image.subject), findings.get(image.study, ())
                yield BenchmarkItem(image.path, split, "xray", patient, labels=labels, caption=caption)
