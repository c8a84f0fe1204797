"""Common parts of the data sets made of CheXpert: folder, table, and 14 findings (also those of MIMIC-CXR).

* `ChexpertBenchmark`: base class. `home`: the folder with train.csv.
* `Frontal`, `frontal`: the frontal images of a table. `value`, `positives`: a cell, and the findings of a row.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from m3bind.evaluate.benchmarks._cells import whole
from m3bind.evaluate.benchmarks.base import Benchmark, Fault, read_table

FINDINGS = (
    "No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema", "Consolidation",
    "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture", "Support Devices",
)  # fmt: skip
COMPETITION = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")
FOLDERS = ("CheXpert-v1.0", "CheXpert-v1.0-small")


class ChexpertBenchmark(Benchmark):
    """A data set made of CheXpert."""

    modalities = ("xray",)
    licence = "Stanford University Dataset Research Use Agreement"
    url = "https://stanfordmlgroup.github.io/competitions/chexpert/"
    access = (
        "Register with Stanford AIMI and accept the agreement; the small version (CheXpert-v1.0-small) does as well. "
        "The full version comes in batches: move their patients into train and valid."
    )
    layout = """
    CheXpert-v1.0/ (or CheXpert-v1.0-small/)
        train.csv, valid.csv    Path, Sex, Age, Frontal/Lateral, AP/PA, 14 findings (1, 0, -1 uncertain, blank)
        train/patient00001/study1/view1_frontal.jpg, ...
        valid/patient64541/study1/view1_frontal.jpg, ...
    """

    def check(self, root: Path) -> None:
        """Check that `home` is complete."""
        super().check(home(root))


@dataclass(frozen=True)
class Frontal:
    """A frontal image. `values`: 1 present, 0 absent, -1 uncertain; findings that are not mentioned are missing."""

    row: int
    path: str  # below the root
    patient: str
    values: Mapping[str, int]


def home(root: Path) -> Path:
    """The folder with train.csv: one of CheXpert's folders in `root`, or `root` itself."""
    return next((root / name for name in FOLDERS if (root / name / "train.csv").is_file()), root)


def frontal(root: Path, table: str) -> Iterator[Frontal | Fault]:
    """The frontal images of a table of `home`.

    Paths in the table begin with the name of one version, whichever version is on disk.

    Raises:
        ManifestError: the table is missing or lacks a column.
    """
    folder = home(root)
    for row, cells in read_table(folder / table, ("Path", *FINDINGS)):
        if cells.get("Frontal/Lateral", "Frontal") != "Frontal":
            continue
        inner = "/".join(cells["Path"].split("/")[1:])
        patient = re.search(r"(?:^|/)(patient\d+)/", inner)
        values = {name: value(cells[name]) for name in FINDINGS if cells[name]}
        if patient is None or None in values.values():
            reason = "its path names no patient" if patient is None else "a finding is not 1, 0, -1 or blank"
            yield Fault(row, reason, cells["Path"], "of another form")
            continue
        path = (folder / inner).relative_to(root).as_posix()
        yield Frontal(row, path, f"chexpert-{patient[1]}", {name: v for name, v in values.items() if v is not None})


def value(cell: str) -> int | None:
    """ "1.0" -> 1; None for anything but 1, 0 and -1."""
    number = whole(cell)
    return number if number in (1, 0, -1) else None


def positives(values: Mapping[str, int], uncertain: Mapping[str, int]) -> tuple[str, ...]:
    """Findings that are present, in official order; `uncertain`: the value that -1 counts as (default 0)."""
    known = {name: uncertain.get(name, 0) if value == -1 else value for name, value in values.items()}
    return tuple(name for name in FINDINGS if known.get(name) == 1)
