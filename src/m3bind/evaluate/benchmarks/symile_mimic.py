"""Symile-MIMIC: a radiograph and an ECG of one admission, with a public split (Saporta et al. 2024)."""

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from m3bind.errors import ManifestError
from m3bind.evaluate.benchmarks._mimic import CREDENTIALS, LICENCE, table_of
from m3bind.evaluate.benchmarks._mimic_pairs import LAYOUT, NEEDS, Archives, MimicFile
from m3bind.evaluate.benchmarks.base import Benchmark, BenchmarkItem, Fault, read_table

_SPLITS = {"train": "train", "val": "valid", "test": "test"}
_FOLDERS = ("symile-mimic/*", "symile-mimic/*/data_csv")


class SymileMimic(Benchmark):
    """Symile-MIMIC, a reproducible substitute for MIMIC-PAIR."""

    name = "symile_mimic"
    title = "Symile-MIMIC 1.0.0"
    modalities = ("xray", "ecg")
    role = "both"
    licence = f"{LICENCE}; MIMIC-IV-ECG: ODbL"
    url = "https://physionet.org/content/symile-mimic/"
    access = CREDENTIALS + " Put the three data sets below one folder, as PhysioNet names them (links do)."
    layout = (
        LAYOUT
        + """symile-mimic/1.0.0/      train.csv, val.csv, test.csv, there or in data_csv/
                             columns subject_id, hadm_id, cxr_path, ecg_path
    """
    )
    needs = NEEDS
    known = {"train": 20000, "valid": 1500, "test": 928}
    notes = (
        "A visit is an admission: an ECG within 24 h of it and a radiograph 24 to 72 h after it, so the two are up to "
        "four days apart, unlike in MIMIC-PAIR. test.csv repeats each of 464 admissions as wrong answers of others "
        "(label 0), which are left out. 12 ECGs belong to two admissions and are listed twice. The files come from "
        "MIMIC-CXR-JPG and MIMIC-IV-ECG: the set's own ECG arrays are no longer in millivolts."
    )

    def check(self, root: Path) -> None:
        """Check that the three data sets exist.

        Raises:
            ManifestError: with the layout and how to get the data.
        """
        super().check(root)
        if _tables(root) is None:
            raise ManifestError(f"{root}: no train.csv of Symile-MIMIC found.\n{self.layout}\n{self.access}")

    def items(self, root: Path, out: Path) -> Iterator[BenchmarkItem | Fault]:
        """Radiograph and ECG of every admission."""
        archives, folder = Archives(root), _tables(root) or root
        columns = ("subject_id", "hadm_id", "cxr_path", "ecg_path")
        for name, split in _SPLITS.items():
            for row, cells in read_table(table_of(folder, f"{name}.csv"), columns):
                if name == "test" and cells.get("label", "1").removesuffix(".0") != "1":
                    continue
                subject, stay, *paths = (cells[column] for column in columns)
                if not all(paths):
                    yield Fault(row, "cxr_path or ecg_path is empty", kind="without a path")
                    continue
                files = []
                for path in paths:
                    study = path.split("/")[-2].removeprefix("s") if "/" in path else ""  # .../s50414267/x.jpg
                    files.append(MimicFile(path, study, subject, datetime.min, stay))
                yield from archives.items(files[0], files[1], split, f"{subject}-{stay.removesuffix('.0')}")


def _tables(root: Path) -> Path | None:
    """The folder with train.csv."""
    folders = [path.parent for folder in _FOLDERS for path in sorted(root.glob(f"{folder}/train.csv*"))]
    return folders[-1] if folders else None
