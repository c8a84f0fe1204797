"""LUDB 1.0.1: 200 twelve-lead ECGs of 10 s at 500 Hz with diagnoses by cardiologists (Kalyakulina et al. 2020)."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import cycle
from pathlib import Path
from typing import ClassVar

from m3bind.data.splits import patient_position
from m3bind.evaluate.benchmarks.base import Benchmark, BenchmarkItem, Fault, read_table

COLUMNS = (
    "Rhythms", "Electric axis of the heart", "Conduction abnormalities", "Extrasystolies", "Hypertrophies",
    "Cardiac pacing", "Ischemia", "Non-specific repolarization abnormalities", "Other states",
)  # fmt: skip
SPLIT = ("train", "test", "train", "valid", "train")  # of the records of one rhythm, in the order of their hashes


class Ludb(Benchmark):
    """LUDB: the rhythm is the class, the other findings are in `labels`."""

    name: ClassVar[str] = "ludb"
    title: ClassVar[str] = "LUDB 1.0.1"
    modalities: ClassVar[tuple[str, ...]] = ("ecg",)
    role: ClassVar = "both"
    licence: ClassVar[str] = "ODC-By 1.0"
    url: ClassVar[str] = "https://physionet.org/content/ludb/1.0.1/"
    access: ClassVar[str] = "Open: download and unpack the zip file from PhysioNet."
    layout: ClassVar[str] = """\
ludb.csv              ID, Sex, Age, Rhythms, Electric axis of the heart, Conduction abnormalities, ...
data/1.hea, 1.dat, 1.i, 1.ii, ...    up to 200; the annotations (.i, .ii, ...) are not read
"""
    needs: ClassVar[tuple[str, ...]] = ("ludb.csv", "data/*.hea")
    classes: ClassVar[tuple[str, ...]] = (
        "Sinus rhythm", "Sinus bradycardia", "Sinus tachycardia", "Sinus arrhythmia", "Irregular sinus rhythm",
        "Atrial fibrillation",
    )  # fmt: skip
    known: ClassVar[Mapping[str, int]] = {"patients": 200}
    notes: ClassVar[str] = (
        "No official split: within each rhythm the records are ordered by a hash and assigned to train, test, train, "
        "valid, train in turn. Cells hold one finding per line. The first of two rhythms is the class of a record. "
        "Rhythms of a few records (atrial flutter, pacing) retain their names, outside the six classes."
    )

    def items(self, root: Path, out: Path) -> Iterator[BenchmarkItem | Fault]:
        """One item per record, in the order of the table."""
        rows: list[tuple[str, list[str]]] = []
        for line, row in read_table(root / "ludb.csv", ("ID", *COLUMNS)):
            parts = "\n".join(row[column] for column in COLUMNS).splitlines()
            findings = [finding for part in parts if (finding := part.strip(" \t\r\n."))]
            if not row["Rhythms"].strip(" \t\r\n."):
                yield Fault(line, "no rhythm", row["ID"], "without a label")
            else:
                rows.append((row["ID"], findings))
        splits = _deal({number: findings[0] for number, findings in rows})
        for number, findings in rows:
            labels = tuple(dict.fromkeys(findings))
            yield BenchmarkItem(f"data/{number}", splits[number], "ecg", number, label=findings[0], labels=labels)


def _deal(labels: Mapping[str, str]) -> dict[str, str]:
    """The split of each record by its label; see `Ludb.notes`."""
    members = defaultdict(list)
    for number, label in labels.items():
        members[label].append(number)
    splits: dict[str, str] = {}
    for group in members.values():
        splits |= zip(sorted(group, key=patient_position), cycle(SPLIT))
    return splits
