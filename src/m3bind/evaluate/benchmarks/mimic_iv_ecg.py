"""MIMIC-IV-ECG: 12-lead ECGs with the cart's report in the wording of MERL or MedBind."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from m3bind.evaluate.benchmarks._mimic import (
    RECORDS,
    ecg_reports,
    medbind_report,
    merl_report,
    patient_of,
    subject_splits,
    table_of,
)
from m3bind.evaluate.benchmarks.base import Benchmark, BenchmarkItem, Fault, read_table


class MimicIvEcg(Benchmark):
    """MIMIC-IV-ECG with MERL's texts."""

    name = "mimic_iv_ecg"
    title = "MIMIC-IV-ECG 1.0"
    modalities = ("ecg",)
    role = "both"
    licence = "Open Data Commons Open Database License v1.0"
    url = "https://physionet.org/content/mimic-iv-ecg/"
    access = "Open: download it from PhysioNet (90 GB)."
    layout = """
    record_list.csv             subject_id, study_id, file_name, ecg_time, path
    machine_measurements.csv    subject_id, study_id, ..., report_0 ... report_17
    files/p1000/p10000032/s40689238/40689238.hea, .dat    10 s, 500 Hz
    """
    needs = (f"{RECORDS}*", "machine_measurements.csv*", "files/p1*")
    notes = (
        "There is no official split: 70 / 10 / 20 % by a hash of the subject, the same as in mimic_pair. Reports of "
        "fewer than four words are quarantined (MERL: 771,693 of 800,035 remain). Files hold aVF before aVL; leads are "
        "identified by their names in the header. MERL's own valid split is by record, so it leaks."
    )
    report: "ClassVar[staticmethod[[Sequence[str]], str]]" = staticmethod(merl_report)  # the cart's lines -> text

    def items(self, root: Path, out: Path) -> Iterator[BenchmarkItem | Fault]:
        """One row per record with a report."""
        table = read_table(table_of(root, RECORDS), ("subject_id", "study_id", "path"))
        records = [(row, cells["subject_id"], cells["study_id"], cells["path"]) for row, cells in table]
        captions = ecg_reports(root, self.report)
        splits = subject_splits({subject for _, subject, _, _ in records})
        for row, subject, study, path in records:
            caption = captions.get(study, "")
            if caption:
                yield BenchmarkItem(path, splits[subject], "ecg", patient_of(subject), caption=caption)
            else:
                yield Fault(row, "its report is missing or too short", path, "without a report")


class MimicIvEcgMedBind(MimicIvEcg):
    """MIMIC-IV-ECG with MedBind's texts."""

    name = "mimic_iv_ecg_medbind"
    title = "MIMIC-IV-ECG 1.0, MedBind's texts"
    notes = (
        MimicIvEcg.notes + " MedBind used 125,000 of the records, those a keyword rule could label; that list is not "
        "public, and its texts written by cardiologists are not part of the set."
    )
    report = staticmethod(medbind_report)
