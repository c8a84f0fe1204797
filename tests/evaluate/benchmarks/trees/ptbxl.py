"""PTB-XL: tables and records, with records of several superclasses in the test fold and a code of two groups (NDT)."""

from pathlib import Path

import numpy as np

from evaluate.benchmarks.trees._tiny import ecg, write_csv, write_record

STATEMENTS = (  # code, description, diagnostic, form, rhythm, class, subclass: rows of the published table
    ("NDT", "non-diagnostic T abnormalities", "1.0", "1.0", "", "STTC", "STTC"),
    ("NORM", "normal ECG", "1.0", "", "", "NORM", "NORM"),
    ("IMI", "inferior myocardial infarction", "1.0", "", "", "MI", "IMI"),
    ("ASMI", "anteroseptal myocardial infarction", "1.0", "", "", "MI", "AMI"),
    ("LVH", "left ventricular hypertrophy", "1.0", "", "", "HYP", "LVH"),
    ("IRBBB", "incomplete right bundle branch block", "1.0", "", "", "CD", "IRBBB"),
    ("1AVB", "first degree AV block", "1.0", "", "", "CD", "_AVB"),
    ("ABQRS", "abnormal QRS", "", "1.0", "", "", ""),
    ("LOWT", "low amplitude T-waves", "", "1.0", "", "", ""),
    ("SR", "sinus rhythm", "", "", "1.0", "", ""),
    ("AFIB", "atrial fibrillation", "", "", "1.0", "", ""),
    ("BIGU", "bigeminal pattern (unknown origin, SV or Ventricular)", "", "", "1.0", "", ""),
)
KINDS = (
    {"NORM": 100.0, "SR": 0.0},
    {"IMI": 35.0, "ABQRS": 0.0, "SR": 0.0},
    {"NDT": 100.0, "AFIB": 0.0},
    {"IRBBB": 100.0, "LOWT": 0.0, "SR": 0.0},
    {"LVH": 100.0, "BIGU": 0.0},
)
BOTH = {"ASMI": 100.0, "LVH": 50.0, "1AVB": 0.0, "SR": 0.0}  # three superclasses at once
REPORTS = ("sinusrhythmus normales ekg", "inferiorer infarkt", "t-wellenveränderungen, vorhofflimmern",
           "inkompletter rechtsschenkelblock", "linkshypertrophie")  # fmt: skip


def make(root: Path, n: int = 12, seed: int = 0) -> None:
    """About n/4 patients per superclass in training, at least 3; records of 100 Hz only."""
    rng = np.random.default_rng(seed)
    header = ("", "description", "diagnostic", "form", "rhythm", "diagnostic_class", "diagnostic_subclass")
    write_csv(root / "scp_statements.csv", header, STATEMENTS)
    rows: list[tuple[object, ...]] = []

    def record(kind: int, codes: object, fold: object, report: str, patient: int) -> None:
        number = len(rows) + 1
        low, high = (f"records{rate}/00000/{number:05d}_{name}" for name, rate in (("lr", 100), ("hr", 500)))
        write_record(root / low, ecg(rng, kind, 100, 10), 100)
        rows.append((number, f"{patient}.0", 60.0, 1, report, codes, fold, low, high))

    each = max(3, n // 4)
    for kind, codes in enumerate(KINDS):
        folds = [*(1 + k % 8 for k in range(each)), 9, 10, 10]
        for k, fold in enumerate(folds):
            record(kind, codes, fold, REPORTS[kind], 1000 * kind + k)
    for k in range(2):
        record(4, BOTH, 10, "anteroseptaler infarkt, linkshypertrophie", 9000 + k)
    record(0, "__import__('os').getcwd()", 1, "no dict", 9100)
    record(0, KINDS[0], "11", "no such fold", 9101)
    record(0, KINDS[0], 1, "its files are gone", 9102)
    for path in root.glob(f"records*/00000/{len(rows):05d}_*"):
        path.unlink()
    header = ("ecg_id", "patient_id", "age", "sex", "report", "scp_codes", "strat_fold", "filename_lr", "filename_hr")
    write_csv(root / "ptbxl_database.csv", header, rows)
