"""FLAIR's assembly of retina sets for pre-training (Silva-Rodriguez et al. 2023): 31 of 38 numbered sets."""

import re
from collections.abc import Iterator
from pathlib import Path

from m3bind.errors import ManifestError
from m3bind.evaluate.benchmarks._lists import read_list
from m3bind.evaluate.benchmarks.base import Benchmark, BenchmarkItem, Fault

SETS = (
    "01_EYEPACS", "03_IDRID", "04_RFMid", "05_1000x39", "06_EYENET", "07_LAG", "08_ODIR", "09_PAPILA", "10_PARAGUAY",
    "11_STARE", "12_ARIA", "14_AGAR300", "15_APTOS", "16_FUND-OCT", "17_DiaRetDB1", "18_DRIONS-DB", "19_Drishti-GS1",
    "20_E-ophta", "21_G1020", "23_HRF", "24_ORIGA", "26_ROC", "27_BRSET", "28_OIA-DDR", "29_AIROGS", "30_SUSTech-SYSU",
    "31_JICHI", "32_CHAKSU", "33_DR1-2", "34_Cataract", "35_ScarDat",
)  # fmt: skip
TEST_ONLY = ("02_MESSIDOR", "05_20x", "08_ODIR200x3", "13_FIVES", "25_REFUGE", "36_ACRIMA", "37_DeepDRiD", "38_MMAC")
BANNED = ("myopia", "cataract", "macular hole", "retinitis pigmentosa", "myopic", "myope", "myop", "retinitis")
_FOLDERS = ("pretraining", "dataframes/pretraining", "local_data/dataframes/pretraining", ".")
_OWNERS = {"01_EYEPACS": "eyepacs", "08_ODIR": "odir"}  # sets whose file names begin with the patient's number


class FlairAssembly(Benchmark):
    """The assembly FLAIR was trained on."""

    name = "flair_assembly"
    title = "FLAIR's assembly"
    modalities = ("retina",)
    role = "training"
    licence = "each set its own; lists Apache-2.0"
    url = "https://github.com/jusiro/FLAIR"
    access = (
        "Download the sets named in FLAIR's readme into numbered folders, run its local_data/prepare_partitions.py, "
        "and put the lists it writes into the folder pretraining."
    )
    layout = """
    01_EYEPACS/documents/10_left.jpeg, 03_IDRID/..., ... 35_ScarDat/...   the sets, as their publishers pack them
    pretraining/01_EYEPACS.csv ... 35_ScarDat.csv                         image, atributes, categories (Python lists)
    """
    notes = (
        "Sets reserved for testing and images with a banned category (myopia, cataract, macular hole, retinitis ...) "
        "are quarantined, as in FLAIR. A set's name is the first part of its paths and ids. FLAIR samples the sets "
        "equally often, not their images. ODIR-5K is part of it: its patients are also in odir5k, and since FLAIR "
        "removes the normal eyes of ODIR200x3 by rows, not by patients, some of their other eyes may be in it."
    )

    def check(self, root: Path) -> None:
        """Check that there is a folder with at least one list.

        Raises:
            ManifestError: with the layout and how to get the data.
        """
        super().check(root)
        if _lists(root) is None:
            text = f"none of FLAIR's lists (01_EYEPACS.csv ...) found.\n{self.layout}\n{self.access}"
            raise ManifestError(f"{root}: {text}")

    def items(self, root: Path, out: Path) -> Iterator[BenchmarkItem | Fault]:
        """All rows of the lists, set by set; every one is a training row."""
        folder = _lists(root) or root
        lists = {path.stem: path for path in folder.glob("[0-9][0-9]*_*.csv")}
        for name in sorted(lists.keys() | set(SETS)):
            if name.startswith(TEST_ONLY):
                yield Fault(0, "a set reserved for testing", f"{name}.csv", "of a set for testing")
            elif name not in lists:
                yield Fault(0, "the list of this set is missing", f"{name}.csv", "of a missing set")
            elif name not in SETS:
                yield Fault(0, "not one of FLAIR's 31 sets for training", f"{name}.csv", "of an unknown set")
            else:
                yield from _rows(name, lists[name])


def _lists(root: Path) -> Path | None:
    """The folder with the lists."""
    for name in _FOLDERS:
        if next((root / name).glob("[0-9][0-9]*_*.csv"), None):
            return root / name
    return None


def _rows(name: str, table: Path) -> Iterator[BenchmarkItem | Fault]:
    """The rows of one set."""
    for listed in read_list(table):
        if isinstance(listed, Fault):
            yield listed
        elif any(word in category for category in listed.categories for word in BANNED):
            yield Fault(listed.row, "a category reserved for testing", listed.image, "of a banned category")
        elif not listed.categories:
            yield Fault(listed.row, "no category", listed.image, "without a category")
        else:
            labels = tuple(category.replace("|", "/") for category in listed.categories)
            patient = _patient(name, listed.image)
            yield BenchmarkItem(listed.image, "train", "retina", patient, label=labels[0], labels=labels)


def _patient(name: str, image: str) -> str:
    """The patient, if the file's name states it."""
    number = re.search(r"/(\d+)_(?:left|right)\.\w+$", image)
    return f"{_OWNERS[name]}-{number[1]}" if number and name in _OWNERS else ""
