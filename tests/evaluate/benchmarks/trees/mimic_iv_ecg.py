"""A small MIMIC-IV-ECG: leads in the published order, aVF before aVL."""

from pathlib import Path

from evaluate.benchmarks.trees._mimic import LINES, Record, write_ecgs
from evaluate.benchmarks.trees._small import cycled, people
from m3bind.evaluate.benchmarks._mimic import FRACTIONS, patient_of


def make(root: Path, n: int = 12, seed: int = 0) -> None:
    """`n` subjects with two records each, and one record with a report of two words."""
    subjects = list(people([*cycled(n), "train"], FRACTIONS, patient_of, 10000032 + seed))
    records = [
        Record(subject, f"{40000000 + 2 * k + j}", lines=(*LINES[j : j + 2], f"rate {60 + k} per minute"))
        for k, subject in enumerate(subjects[:-1])
        for j in range(2)
    ]
    write_ecgs(root, [*records, Record(subjects[-1], "49999999", lines=("Sinus rhythm",))])
