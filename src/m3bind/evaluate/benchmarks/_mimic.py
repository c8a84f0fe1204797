"""Common parts of the MIMIC data sets: subjects, tables, times, radiographs with their reports, ECG reports.

* `patient_of`, `subject_splits`: name and split of a subject, the same in all sets.
* `table_of`, `newest`: tables as published (.csv or .csv.gz) and folders of versions.
* `Radiograph`, `radiographs`: frontal images of MIMIC-CXR-JPG. `study_findings`: CheXpert labels of studies.
* `sections`, `report_place`, `open_reports`, `clean_caption`: reports, split into sections, cleaned by MGCA's rule.
* `ecg_reports`, `merl_report`, `medbind_report`: machine reports of MIMIC-IV-ECG.
"""

import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from m3bind.data.splits import patient_splits
from m3bind.errors import ManifestError
from m3bind.evaluate.benchmarks._chexpert import FINDINGS, positives, value
from m3bind.evaluate.benchmarks.base import read_table

FRACTIONS = {"train": 0.7, "valid": 0.1, "test": 0.2}
LICENCE = "PhysioNet Credentialed Health Data License 1.5.0"
CREDENTIALS = "A credentialed PhysioNet account, the CITI training and the signed agreement are needed."
METADATA, RECORDS = "mimic-cxr-2.0.0-metadata.csv", "record_list.csv"
SECTIONED, REPORT_ZIP = "mimic_cxr_sectioned.csv", "mimic-cxr-reports.zip"
MAX_REPORT = 1 << 20  # bytes
_HEADER = re.compile(r"^[ \t]*([A-Z][A-Z ()/,.&-]{1,60}):", re.MULTILINE)
_VIEWS = ("CHEST", "PORTABLE", "VIEW", "PA AND LAT", "AP AND LAT")

Reports = Callable[[str, str], str]  # (subject, study) -> caption, "" if missing


# --- subjects, tables, times ------------------------------------------------------------------------------------------


def patient_of(subject: str) -> str:
    """Name of the patient, the same in all MIMIC data sets."""
    return f"mimic-{subject}"


def subject_splits(subjects: Iterable[str]) -> dict[str, str]:
    """Subject -> split by a hash, 70 / 10 / 20 %: the same in all sets without an official split."""
    splits = patient_splits({patient_of(subject) for subject in subjects}, FRACTIONS)
    return {patient.removeprefix("mimic-"): split for patient, split in splits.items()}


def table_of(folder: Path, name: str) -> Path:
    """The table `name` or its compressed form."""
    return folder / name if (folder / name).is_file() else folder / f"{name}.gz"


def newest(root: Path, pattern: str) -> Path | None:
    """The folder of the last match of `pattern` ("mimic-iv-ecg/*/record_list.csv*"): the newest version."""
    tables = sorted(root.glob(pattern))
    return tables[-1].parent if tables else None


def study_time(date: str, clock: str) -> datetime | None:
    """ "21800506", "93012.5" -> 2180-05-06 09:30:12; None for cells of another format."""
    try:
        return datetime.strptime(f"{int(float(date))} {int(float(clock)):06d}", "%Y%m%d %H%M%S")
    except (ValueError, OverflowError):
        return None


def moment(text: str) -> datetime | None:
    """ "2180-05-06 09:30:12" as a time; None if it is not a time."""
    try:
        return datetime.fromisoformat(text).replace(tzinfo=None)
    except ValueError:
        return None


# --- MIMIC-CXR --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Radiograph:
    """An AP or PA image of MIMIC-CXR-JPG; `path` is below the folder of the data set."""

    row: int
    dicom: str
    subject: str
    study: str
    path: str
    date: str
    clock: str


def radiographs(folder: Path) -> Iterator[Radiograph]:
    """AP and PA images, in the order of the metadata.

    Raises:
        ManifestError: the table is missing or lacks a column.
    """
    columns = ("dicom_id", "subject_id", "study_id", "ViewPosition", "StudyDate", "StudyTime")
    for row, cells in read_table(table_of(folder, METADATA), columns):
        dicom, subject, study, view, date, clock = (cells[column] for column in columns)
        if view in ("AP", "PA"):
            path = f"files/p{subject[:2]}/p{subject}/s{study}/{dicom}.jpg"
            yield Radiograph(row, dicom, subject, study, path, date, clock)


def study_findings(folder: Path) -> dict[str, tuple[str, ...]]:
    """Study -> findings that CheXpert's labeller marks as present; empty if the table is missing."""
    table = table_of(folder, "mimic-cxr-2.0.0-chexpert.csv")
    findings = {}
    for _, cells in read_table(table, ("study_id", *FINDINGS)) if table.is_file() else ():
        findings[cells["study_id"]] = positives({name: value(cells[name]) or 0 for name in FINDINGS}, {})
    return findings


def sections(text: str) -> dict[str, str]:
    """ "impression" and "findings" of a report: the last section of each that is not empty.

    A section begins at a line that starts with a title in capitals and a colon. Titles with view names ("CHEST,
    PA AND LATERAL:") begin findings.
    """
    parts: dict[str, str] = {}
    heads = list(_HEADER.finditer(text))
    for head, end in zip(heads, [*(head.start() for head in heads[1:]), len(text)]):
        title, body = head[1], " ".join(text[head.end() : end].split())
        if "IMPRESSION" in title or "CONCLUSION" in title:
            name = "impression"
        elif title.startswith("FINDING") or title.startswith(_VIEWS):
            name = "findings"
        else:
            continue
        if body:
            parts[name] = body
    return parts


def clean_caption(impression: str, findings: str) -> str:
    """Impression and findings by MGCA's rule (`models.chest.clean_report`); "" for fewer than three words."""
    from m3bind.models.layers.chest import clean_report  # slow to import

    text = clean_report(" ".join(f"{impression} {findings}".split()))
    return text if len(text.split()) >= 3 else ""


def report_place(folder: Path) -> Path | None:
    """Place of the reports: a sectioned table, the published zip file, or the folder of its unpacked files."""
    for place in (table_of(folder, SECTIONED), folder / REPORT_ZIP):
        if place.is_file():
            return place
    for files in (folder / "mimic-cxr-reports" / "files", folder / "files"):
        if next(files.glob("p1*/p1*/s*.txt"), None):
            return files
    return None


def open_reports(place: Path) -> Reports:
    """Cleaned reports of a `report_place` by subject and study.

    Raises:
        ManifestError: the table lacks a column, or the zip file is damaged.
    """
    if place.is_dir():
        return lambda subject, study: _caption(_text(place.parent / _inner(subject, study)))
    if place.suffix == ".zip":
        try:
            archive = zipfile.ZipFile(place)
        except zipfile.BadZipFile:
            raise ManifestError(f"{place}: the zip file is damaged; download it again") from None
        sizes = {info.filename: info.file_size for info in archive.infolist()}

        def unpacked(subject: str, study: str) -> str:
            name = _inner(subject, study)
            small = 0 < sizes.get(name, 0) <= MAX_REPORT
            return _caption(archive.read(name).decode("utf-8", "replace")) if small else ""

        return unpacked
    columns = ("study", "impression", "findings")
    rows = [[cells[column] for column in columns] for _, cells in read_table(place, columns)]
    parts = {study.removeprefix("s"): (impression, findings) for study, impression, findings in rows}
    return lambda subject, study: clean_caption(*parts.get(study, ("", "")))


def _inner(subject: str, study: str) -> str:
    return f"files/p{subject[:2]}/p{subject}/s{study}.txt"


def _text(path: Path) -> str:
    small = path.is_file() and path.stat().st_size <= MAX_REPORT
    return path.read_text(encoding="utf-8", errors="replace") if small else ""


def _caption(text: str) -> str:
    parts = sections(text)
    return clean_caption(parts.get("impression", ""), parts.get("findings", ""))


# --- MIMIC-IV-ECG -----------------------------------------------------------------------------------------------------


def ecg_reports(folder: Path, rule: Callable[[Sequence[str]], str]) -> dict[str, str]:
    """Study -> text that `rule` makes of the lines of the cart's report.

    Raises:
        ManifestError: the table is missing or lacks a column.
    """
    lines = tuple(f"report_{k}" for k in range(18))
    reports = {}
    for _, cells in read_table(table_of(folder, "machine_measurements.csv"), ("study_id", *lines)):
        reports[cells["study_id"]] = rule([cells[line] for line in lines if cells[line]])
    return reports


def merl_report(lines: Sequence[str]) -> str:
    """MERL's text: lines joined by ". ", ECG for EKG, without rules of stars and equals signs, lower case, a full stop.

    "" for fewer than four words.
    """
    text = ". ".join(lines).replace("EKG", "ECG").replace("ekg", "ecg").strip(" *").strip("=-").lower()
    words = text.split()
    return " ".join(words) + "." if len(words) >= 4 else ""


def medbind_report(lines: Sequence[str]) -> str:
    """MedBind's text: "ECG presents {first}. Additional findings include the following: {others}." """
    if not lines:
        return ""
    others = f" Additional findings include the following: {', '.join(lines[1:])}." if len(lines) > 1 else ""
    return f"ECG presents {lines[0]}.{others}"
