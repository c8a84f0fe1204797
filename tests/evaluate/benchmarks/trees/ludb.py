"""LUDB: cells with a line per finding and trailing line ends, a record of two rhythms, one without a rhythm."""

from pathlib import Path

import numpy as np

from evaluate.benchmarks.trees._tiny import LEADS, ecg, write_csv, write_record

RHYTHMS = ("Sinus rhythm", "Sinus bradycardia", "Sinus arrhythmia", "Atrial fibrillation")
HEADER = (
    "ID", "Sex", "Age", "Rhythms", "Electric axis of the heart", "Conduction abnormalities", "Extrasystolies",
    "Hypertrophies", "Cardiac pacing", "Ischemia", "Non-specific repolarization abnormalities", "Other states",
)  # fmt: skip


def make(root: Path, n: int = 12, seed: int = 0) -> None:
    """At least 7 records of each of four rhythms: 4 training, 1 validation, 2 test."""
    rng = np.random.default_rng(seed)
    rows: list[tuple[object, ...]] = []
    for kind, rhythm in enumerate(RHYTHMS):
        for _ in range(max(7, n // 4)):
            number = len(rows) + 1
            write_record(root / "data" / str(number), ecg(rng, kind, 500, 10), 500, [lead.lower() for lead in LEADS])
            thick = "Left atrial hypertrophy\nLeft ventricular hypertrophy\n" if kind == 1 else ""
            axis = "Electric axis of the heart: normal\n"
            rows.append((number, "F\n", "51\n", f"{rhythm}\n", axis, "", "", thick, "", "", "", ""))
    first = list(rows[0])
    first[3] = "Sinus rhythm\nSinus arrhythmia\n"
    rows[0] = tuple(first)
    rows.append((197, "M\n", ">89\n", "Sinus rhythm\n", *[""] * 8))  # no such file
    rows.append((198, "M\n", "60\n", "", *[""] * 8))
    write_csv(root / "ludb.csv", HEADER, rows)
