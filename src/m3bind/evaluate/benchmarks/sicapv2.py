"""SICAPv2: 12,081 prostate patches with Gleason grades, official partitions as Excel files (Silva-Rodriguez 2020)."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

from m3bind.evaluate.benchmarks._cells import is_one
from m3bind.evaluate.benchmarks.base import Benchmark, BenchmarkItem, Fault, read_table

GRADES = ("NC", "G3", "G4", "G5")
VALID = "partition/Validation/Val1/Test.xlsx"  # the first of the four published validation folds


class Sicap(Benchmark):
    """SICAPv2: the official test partition; the first official validation fold is valid."""

    name: ClassVar[str] = "sicapv2"
    title: ClassVar[str] = "SICAPv2"
    modalities: ClassVar[tuple[str, ...]] = ("pathology",)
    role: ClassVar = "evaluation"
    licence: ClassVar[str] = "Creative Commons, as its page at Mendeley Data states"
    url: ClassVar[str] = "https://data.mendeley.com/datasets/9xxm58dvs3"
    access: ClassVar[str] = "Open: download and unpack SICAPv2.zip from Mendeley Data."
    layout: ClassVar[str] = """\
images/16B0001851_Block_Region_1_0_0_xini_6803_yini_59786.jpg, ...
partition/Test/Train.xlsx, Test.xlsx                image_name, NC, G3, G4, G5, G4C
partition/Validation/Val1/Train.xlsx, Test.xlsx     four folds of the training part: Val1 to Val4
"""
    needs: ClassVar[tuple[str, ...]] = ("images", "partition/Test/Train.xlsx", "partition/Test/Test.xlsx")
    classes: ClassVar[tuple[str, ...]] = GRADES
    known: ClassVar[Mapping[str, int]] = {"train": 7472, "valid": 2487, "test": 2122}
    notes: ClassVar[str] = (
        "A patch with several grades has the first of NC, G3, G4, G5 as its class, as upstream; all of them, and G4C "
        "(cribriform), are in `labels`. The patient is the number of the biopsy, the part before the first underscore."
    )

    def items(self, root: Path, out: Path) -> Iterator[BenchmarkItem | Fault]:
        """The training partition, then the test partition."""
        fold = root / VALID
        held = {row["image_name"] for _, row in read_table(fold, ("image_name",))} if fold.is_file() else set()
        for part in ("Train", "Test"):
            columns = ("image_name", *GRADES)
            for line, row in read_table(root / "partition" / "Test" / f"{part}.xlsx", columns):
                name = row["image_name"]
                labels = tuple(grade for grade in (*GRADES, "G4C") if is_one(row.get(grade, "")))
                grade = next((label for label in labels if label in GRADES), "")
                if not grade:
                    yield Fault(line, "NC, G3, G4 and G5 are all not 1", name, "without a label")
                    continue
                split = "test" if part == "Test" else "valid" if name in held else "train"
                patient = name.partition("_")[0]
                yield BenchmarkItem(f"images/{name}", split, "pathology", patient=patient, label=grade, labels=labels)
