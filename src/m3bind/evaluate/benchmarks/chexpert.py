"""CheXpert v1.0: frontal radiographs of 14 findings, prepared as MGCA does, without the patients of CheXpert 5x200."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from m3bind.data.splits import patient_position
from m3bind.evaluate.benchmarks._chexpert import FINDINGS, ChexpertBenchmark, Frontal, frontal, positives
from m3bind.evaluate.benchmarks.base import BenchmarkItem, Fault
from m3bind.evaluate.benchmarks.chexpert5x200 import excluded_patients

VALID_ROWS = 5000
NOTHING_CERTAIN = "no certain finding"  # label if no finding is present: findings may be uncertain or not mentioned


class Chexpert(ChexpertBenchmark):
    """CheXpert."""

    name = "chexpert"
    title = "CheXpert v1.0"
    role = "both"
    needs = ("train.csv", "valid.csv")
    classes = FINDINGS
    known = {"test": 202}
    notes = (
        "Frontal views only. The official valid.csv is the test split; 5,000 training rows (at most a tenth of them) "
        "are the valid split, whole patients in the order of a hash, while MGCA takes rows. Uncertain "
        "findings count as in MGCA: atelectasis, edema and pleural effusion as present, the others as absent. The "
        "patients of CheXpert 5x200 are quarantined; MGCA excludes only its images."
    )
    uncertain: ClassVar[Mapping[str, int]] = {
        "Atelectasis": 1, "Cardiomegaly": 0, "Consolidation": 0, "Edema": 1, "Pleural Effusion": 1,
    }  # fmt: skip

    def items(self, root: Path, out: Path) -> Iterator[BenchmarkItem | Fault]:
        """Frontal rows of train.csv, then of valid.csv."""
        held_out = excluded_patients(root)
        rows = list(frontal(root, "train.csv"))
        train = [row for row in rows if isinstance(row, Frontal) and row.patient not in held_out]
        chosen = valid_patients([row.patient for row in train])
        for row in rows:
            if isinstance(row, Frontal) and row.patient in held_out:
                yield Fault(row.row, "its patient is in CheXpert 5x200", row.path, "held out for CheXpert 5x200")
            else:
                yield self._item(row, "valid" if isinstance(row, Frontal) and row.patient in chosen else "train")
        for row in frontal(root, "valid.csv"):
            yield self._item(row, "test")

    def _item(self, row: Frontal | Fault, split: str) -> BenchmarkItem | Fault:
        if isinstance(row, Fault):
            return row
        labels = positives(row.values, self.uncertain)
        label = "" if labels else NOTHING_CERTAIN
        return BenchmarkItem(row.path, split, "xray", row.patient, label=label, labels=labels)


def valid_patients(patients: Sequence[str], seed: int = 0) -> frozenset[str]:
    """The first patients in hash order with up to 5,000 rows and a tenth of them; `patients` has one entry per row."""
    rows = Counter(patients)
    left = min(VALID_ROWS, len(patients) // 10)
    chosen = set()
    for patient in sorted(rows, key=lambda name: (patient_position(name, seed), name)):
        if rows[patient] > left:
            break
        left -= rows[patient]
        chosen.add(patient)
    return frozenset(chosen)
