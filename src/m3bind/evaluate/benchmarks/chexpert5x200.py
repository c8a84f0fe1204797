"""CheXpert 5x200, GLoRIA's zero-shot set: 200 frontal training images for each of five findings (Huang et al. 2021).

* `drawn`: the published rule. `excluded_patients`: patients that must not be in training data.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from m3bind.evaluate.benchmarks._chexpert import COMPETITION, FINDINGS, ChexpertBenchmark, Frontal, frontal, home
from m3bind.evaluate.benchmarks.base import BenchmarkItem, Fault

OWN_LIST = "chexpert_5x200.csv"
PER_CLASS = 200


class Chexpert5x200(ChexpertBenchmark):
    """CheXpert 5x200."""

    name = "chexpert5x200"
    title = "CheXpert 5x200"
    role = "evaluation"
    access = (
        ChexpertBenchmark.access
        + f" A list of your own ({OWN_LIST}, as GLoRIA and MGCA write it) beside train.csv is used instead."
    )
    layout = ChexpertBenchmark.layout + f"    {OWN_LIST}        optional, beside train.csv: Path, 14 findings\n"
    needs = ("train.csv",)
    classes = COMPETITION
    known = {"test": 1000, "patients": 966, **{f"test/{name}": PER_CLASS for name in COMPETITION}}
    notes = (
        "Exactly one of the five findings is 1 and all others are 0 or blank; No Finding is ignored. MGCA's draw "
        "has the fixed seed used here, GLoRIA's has none: two lists may differ. All rows are test rows, and their "
        "patients, not only their images, must leave training (excluded_patients; the data set chexpert does it)."
    )

    def items(self, root: Path, out: Path) -> Iterator[BenchmarkItem | Fault]:
        """The rows of the list beside the data, or of the rule."""
        for row in drawn(root):
            if isinstance(row, Fault):
                yield row
            elif label := only_finding(row):
                yield BenchmarkItem(row.path, "test", "xray", row.patient, label=label, labels=(label,))
            else:
                yield Fault(row.row, "not exactly one of the five findings is present", row.path, "of no class")


def drawn(root: Path) -> Iterator[Frontal | Fault]:
    """Rows of the list beside the data; otherwise 200 for each finding that have it alone, as seeded pandas draws."""
    if (home(root) / OWN_LIST).is_file():
        yield from frontal(root, OWN_LIST)
        return
    fitting: dict[str, list[Frontal]] = {name: [] for name in COMPETITION}
    for row in frontal(root, "train.csv"):
        label = only_finding(row) if isinstance(row, Frontal) else ""
        if isinstance(row, Frontal) and label:
            fitting[label].append(row)
    for rows in fitting.values():
        size = min(PER_CLASS, len(rows))
        for place in np.random.RandomState(0).choice(len(rows), size=size, replace=False) if rows else ():
            yield rows[place]


def only_finding(row: Frontal) -> str:
    """The only one of the five findings present, if all others except No Finding are absent; otherwise ""."""
    names = [name for name in FINDINGS[1:] if row.values.get(name, 0) != 0]
    return names[0] if len(names) == 1 and names[0] in COMPETITION and row.values[names[0]] == 1 else ""


def excluded_patients(root: Path) -> frozenset[str]:
    """Patients of CheXpert 5x200, with their names in the manifests of both sets."""
    return frozenset(row.patient for row in drawn(root) if isinstance(row, Frontal))
