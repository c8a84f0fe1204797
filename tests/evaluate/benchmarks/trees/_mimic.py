"""Small MIMIC-CXR-JPG and MIMIC-IV-ECG folders from lists of studies."""

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from evaluate.benchmarks.trees._small import write_ecg, write_image, write_table
from m3bind.evaluate.benchmarks._chexpert import FINDINGS

LEADS = ("I", "II", "III", "aVR", "aVF", "aVL", "V1", "V2", "V3", "V4", "V5", "V6")  # aVF before aVL, as published
REPORT = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)

 INDICATION:  ___F with {finding}.

 COMPARISON:  None.

 FINDINGS:

 The cardiac silhouette is unremarkable. There is {finding}
 at the left base. 2. No pneumothorax. Stable.

 IMPRESSION:

 {Finding}, number {number}.
"""
HEADER = ("study", "impression", "findings", "last_paragraph", "comparison")
LINES = ("Sinus rhythm", "Left axis deviation", "Possible anterior infarct", "Borderline EKG")


@dataclass
class Study:
    """A study of MIMIC-CXR: images by view, findings (1 present, -1 uncertain), report ("" for none)."""

    subject: str
    study: str
    date: str = "21800506"
    clock: str = "213014.531"
    views: Sequence[str] = ("PA", "LATERAL")
    values: dict[str, int] = field(default_factory=lambda: {"Pneumonia": 1})
    report: str | None = None  # None: one made of the findings
    split: str = "train"

    def text(self) -> str:
        found = ", ".join(name.lower() for name, value in self.values.items() if value == 1) or "no focal opacity"
        made = REPORT.format(finding=found, Finding=found.capitalize(), number=self.study)
        return made if self.report is None else self.report

    def path(self, view: str) -> str:
        return f"files/p{self.subject[:2]}/p{self.subject}/s{self.study}/{self.dicom(view)}.jpg"

    def dicom(self, view: str) -> str:
        return f"{int(self.study):08x}-{view.lower()}"


@dataclass
class Record:
    """A record of MIMIC-IV-ECG."""

    subject: str
    study: str
    time: str = "2180-05-06 20:00:00"
    lines: Sequence[str] = LINES

    @property
    def path(self) -> str:
        return f"files/p{self.subject[:4]}/p{self.subject}/s{self.study}/{self.study}"


def write_cxr(folder: Path, studies: Sequence[Study], reports: str = "zip") -> None:
    """MIMIC-CXR-JPG with its reports as "zip", "files" or "sectioned"."""
    images = [(s, view) for s in studies for view in s.views]
    for number, (s, view) in enumerate(images):
        write_image(folder / s.path(view), number)
    write_table(
        folder / "mimic-cxr-2.0.0-metadata.csv.gz",
        ("dicom_id", "subject_id", "study_id", "PerformedProcedureStepDescription", "ViewPosition", "Rows", "Columns",
         "StudyDate", "StudyTime"),
        [(s.dicom(v), s.subject, s.study, "CHEST (PA AND LAT)", v, 48, 48, s.date, s.clock) for s, v in images],
    )  # fmt: skip
    write_table(
        folder / "mimic-cxr-2.0.0-split.csv.gz",
        ("dicom_id", "study_id", "subject_id", "split"),
        [(s.dicom(v), s.study, s.subject, s.split) for s, v in images],
    )
    write_table(
        folder / "mimic-cxr-2.0.0-chexpert.csv.gz",
        ("subject_id", "study_id", *sorted(FINDINGS)),
        [(s.subject, s.study, *(_label(s.values.get(name)) for name in sorted(FINDINGS))) for s in studies],
    )
    if reports == "sectioned":
        rows = [(f"s{s.study}", f"Found here in {s.study} again.\nAnd so on.", "", "", "") for s in studies]
        write_table(folder / "mimic_cxr_sectioned.csv", HEADER, rows)
        return
    texts = {f"files/p{s.subject[:2]}/p{s.subject}/s{s.study}.txt": s.text() for s in studies}
    if reports == "zip":
        with zipfile.ZipFile(folder / "mimic-cxr-reports.zip", "w") as archive:
            for name, text in texts.items():
                archive.writestr(name, text)
    for name, text in texts.items() if reports == "files" else ():
        (folder / name).write_text(text)


def _label(value: int | None) -> str:
    return "" if value is None else f"{value}.0"


def write_ecgs(folder: Path, records: Sequence[Record]) -> None:
    """MIMIC-IV-ECG."""
    for number, record in enumerate(records):
        write_ecg(folder / record.path, number, LEADS)
    write_table(
        folder / "record_list.csv",
        ("subject_id", "study_id", "file_name", "ecg_time", "path"),
        [(r.subject, r.study, r.study, r.time, r.path) for r in records],
    )
    blank = [""] * 18
    write_table(
        folder / "machine_measurements.csv",
        (
            "subject_id",
            "study_id",
            "cart_id",
            "ecg_time",
            *(f"report_{k}" for k in range(18)),
            "bandwidth",
            "rr_interval",
        ),
        [(r.subject, r.study, "6848296", r.time, *[*r.lines, *blank][:18], "0.005-150 Hz", 659) for r in records],
    )
