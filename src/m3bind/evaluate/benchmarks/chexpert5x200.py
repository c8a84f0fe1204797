"""CheXpert 5x200, GLoRIA's zero-shot set: 200 frontal training images for each of five findings (Huang et al. 2021).

* `drawn`: the published rule. `excluded_patients`: who must not be trained on.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from m3bind.evaluate.benchmarks._chexpert import (
    ACCESS,
    COMPETITION,
    FINDINGS,
    LAYOUT,
    LICENCE,
    URL,
    Frontal,
    frontal,
    home,
)
from m3bind.evaluate.benchmarks.base import Benchmark, BenchmarkItem, Fault

OWN_LIST = "chexpert_5x200.csv"
PER_CLASS = 200


class Chexpert5x200(Benchmark):
    """CheXpert 5x200."""

    name = "chexpert5x200"
    title = "CheXpert 5x200"
    modalities = ("xray",)
    role = "evaluation"
    licence = LICENCE
    url = URL
    access = ACCESS + f" A list of your own ({OWN_LIST}, as GLoRIA and MGCA write it) beside train.csv is used instead."
    layout = LAYOUT + f"    {OWN_LIST}        optional, beside train.csv: Path, 14 findings\n"
    needs = ("train.csv",)
    classes = COMPETITION
    known = {"test": 1000, "patients": 966, **{f"test/{name}": PER_CLASS for name in COMPETITION}}
    notes = (
        "Exactly one of the five findings is 1 and all others are 0 or blank; No Finding is not looked at. MGCA's draw "
        "has the fixed seed used here, GLoRIA's has none: two lists may differ. All rows are test rows, and their "
        "patients, not only their images, must leave training (excluded_patients; the data set chexpert does it)."
    )

    def check(self, root: Path) -> None:
        """See that the folder, or the one of CheXpert's folders in it, is complete."""
        super().check(home(root))

    def items(self, root: Path, out: Path) -> Iterator[BenchmarkItem | Fault]:
        """The rows of the list beside the data, else of the rule."""
        for row in drawn(root):
            if isinstance(row, Fault):
                yield row
                continue
            label = only_finding(row)
            if label:
                yield BenchmarkItem(row.path, "test", "xray", row.patient, label=label, labels=(label,))
            else:
                yield Fault(row.row, "not exactly one of the five findings is there", row.path, "of no class")


def drawn(root: Path) -> Iterator[Frontal | Fault]:
    """Rows of the list beside the data; else for each finding 200 that have it alone, in the seeded draw of pandas."""
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
    """The one of the five findings that is there, where all other findings but No Finding are absent; else ""."""
    found = [name for name in FINDINGS[1:] if row.values.get(name, 0) != 0]
    return found[0] if len(found) == 1 and found[0] in COMPETITION and row.values[found[0]] == 1 else ""


def excluded_patients(root: Path) -> frozenset[str]:
    """Patients of CheXpert 5x200, named as in the manifests of both sets."""
    return frozenset(row.patient for row in drawn(root) if isinstance(row, Frontal))
