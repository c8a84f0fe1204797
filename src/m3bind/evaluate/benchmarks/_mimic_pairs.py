"""Radiographs and ECGs of one visit: MIMIC-PAIR's rule on the published tables.

* `MimicFile`: a file with its subject, time and hospital stay. `Stays`: the stay at a time.
* `belong`: the rule. `match`: pairs of one subject that do not match each other.
* `Archives`: the two data sets with the texts of both.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from m3bind.errors import ManifestError
from m3bind.evaluate.benchmarks._mimic import (
    METADATA,
    RECORDS,
    ecg_reports,
    merl_report,
    moment,
    newest,
    open_reports,
    patient_of,
    report_place,
    study_findings,
)
from m3bind.evaluate.benchmarks.base import BenchmarkItem, Fault, read_table

DAY = timedelta(hours=24)
CXR_TABLE, ECG_TABLE = f"mimic-cxr-jpg/*/{METADATA}*", f"mimic-iv-ecg/*/{RECORDS}*"
NEEDS = (CXR_TABLE, ECG_TABLE, "mimic-iv-ecg/*/machine_measurements.csv*")
LAYOUT = """
    mimic-cxr-jpg/2.1.0/     MIMIC-CXR-JPG (see mimic_cxr; its reports may lie in mimic-cxr/2.1.0/, or be absent)
    mimic-iv-ecg/1.0/        MIMIC-IV-ECG (see mimic_iv_ecg)
    """


@dataclass(frozen=True)
class MimicFile:
    """A file of one subject; `stay` is its hospital admission (hadm_id), "" if unknown."""

    path: str
    study: str
    subject: str
    time: datetime
    stay: str = ""


def belong(a: MimicFile, b: MimicFile) -> bool:
    """Whether two files match: same subject, and the same stay if both have one, otherwise at most 24 h apart."""
    if a.subject != b.subject:
        return False
    return a.stay == b.stay if a.stay and b.stay else abs(a.time - b.time) <= DAY


def match(xrays: Sequence[MimicFile], ecgs: Sequence[MimicFile]) -> list[tuple[MimicFile, MimicFile]]:
    """Pairs of one subject, nearest in time first, without pairs of which a file matches an earlier pair.

    A right answer of one pair is therefore never a wrong answer of another one.
    """
    fitting = [(x, e) for x in xrays for e in ecgs if belong(x, e)]
    fitting.sort(key=lambda pair: (abs(pair[0].time - pair[1].time), pair[0].path, pair[1].path))
    taken: list[tuple[MimicFile, MimicFile]] = []
    for x, e in fitting:
        if not any(belong(x, other) or belong(e, other) for pair in taken for other in pair):
            taken.append((x, e))
    return taken


class Stays:
    """Hospital admissions by subject, from the available tables of MIMIC-IV and MIMIC-IV-ED."""

    def __init__(self, root: Path) -> None:
        self._stays: dict[str, list[tuple[datetime, datetime, str]]] = defaultdict(list)
        for pattern, columns in (
            ("mimiciv/*/hosp/admissions.csv*", ("subject_id", "hadm_id", "admittime", "dischtime")),
            ("mimic-iv-ed/*/ed/edstays.csv*", ("subject_id", "hadm_id", "intime", "outtime")),
        ):
            for table in sorted(root.glob(pattern))[-1:]:
                for _, cells in read_table(table, columns):
                    subject, stay, *times = (cells[column] for column in columns)
                    begin, end = map(moment, times)
                    if stay and begin and end:
                        self._stays[subject].append((begin, end, stay.removesuffix(".0")))

    def at(self, subject: str, time: datetime) -> str:
        """The stay at `time`, the latest if there are several; "" if there is none."""
        return max(((b, stay) for b, e, stay in self._stays.get(subject, ()) if b <= time <= e), default=("", ""))[1]


class Archives:
    """MIMIC-CXR-JPG and MIMIC-IV-ECG in one folder."""

    def __init__(self, root: Path) -> None:
        """Find both, read labels and reports.

        Raises:
            ManifestError: one is missing.
        """
        cxr, ecg = newest(root, CXR_TABLE), newest(root, ECG_TABLE)
        if cxr is None or ecg is None:
            raise ManifestError(f"{root}: MIMIC-CXR-JPG or MIMIC-IV-ECG is missing.\n{LAYOUT}")
        self.root, self.cxr, self.ecg = root, cxr, ecg
        self._prefix = {folder: folder.relative_to(root).as_posix() for folder in (cxr, ecg)}
        texts = newest(root, "mimic-cxr/*/mimic-cxr-reports*")
        place = report_place(cxr) or (report_place(texts) if texts else None)
        self._reports = open_reports(place) if place else None
        self._findings = study_findings(cxr)
        self._ecg_reports = ecg_reports(ecg, merl_report)

    def items(self, x: MimicFile, e: MimicFile, split: str, visit: str) -> Iterator[BenchmarkItem | Fault]:
        """The two rows of a visit, or one fault; a file in several visits has a separate id in each."""
        image, record = (f"{self._prefix[folder]}/{r.path}" for folder, r in ((self.cxr, x), (self.ecg, e)))
        report = self._reports(x.subject, x.study) if self._reports else ""
        labels, ecg_report = self._findings.get(x.study, ()), self._ecg_reports.get(e.study, "")
        missing = not (self.root / image).is_file() or not (self.root / f"{record}.hea").is_file()
        if missing or not ecg_report or not (report or labels):
            reason = "a file of its visit is missing" if missing else "a file of its visit has no report"
            yield Fault(0, reason, image, "of an incomplete visit")
            return
        patient, visit_id = patient_of(x.subject), f"mimic-{visit}"
        for path, modality, found, text in ((image, "xray", labels, report), (record, "ecg", (), ecg_report)):
            item_id = f"{path}@{visit}"
            yield BenchmarkItem(path, split, modality, patient, item_id, labels=found, caption=text, visit=visit_id)
