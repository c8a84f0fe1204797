"""Kriegsmann et al. 2022: 129,364 tiles (100 µm) of 386 skin cases, 16 tissue classes of which 4 are tumours."""

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from m3bind.errors import ManifestError
from m3bind.evaluate.benchmarks.base import Benchmark, BenchmarkItem, Fault, read_table

NAMES = {  # in QuiltNet's order and words
    "nontumor_skin_necrosis_necrosis": "necrosis",
    "nontumor_skin_muscle_skeletal": "skeletal muscle",
    "nontumor_skin_sweatglands_sweatglands": "eccrine sweat glands",
    "nontumor_skin_vessel_vessel": "vessels",
    "nontumor_skin_elastosis_elastosis": "elastosis",
    "nontumor_skin_chondraltissue_chondraltissue": "chondral tissue",
    "nontumor_skin_hairfollicle_hairfollicle": "hair follicle",
    "nontumor_skin_epidermis_epidermis": "epidermis",
    "nontumor_skin_nerves_nerves": "nerves",
    "nontumor_skin_subcutis_subcutis": "subcutis",
    "nontumor_skin_dermis_dermis": "dermis",
    "nontumor_skin_sebaceousglands_sebaceousglands": "sebaceous glands",
    "tumor_skin_epithelial_sqcc": "squamous-cell carcinoma",
    "tumor_skin_melanoma_melanoma": "melanoma in-situ",
    "tumor_skin_epithelial_bcc": "basal-cell carcinoma",
    "tumor_skin_naevus_naevus": "naevus",
}
SPLITS = {"train": "train", "validation": "valid", "test": "test"}
COLUMNS = ("file", "class", "set")


class Skin(Benchmark):
    """Skin histology tiles; the tumour task uses the last four classes of the same manifest."""

    name: ClassVar[str] = "skin"
    title: ClassVar[str] = "Skin histology (Kriegsmann 2022)"
    modalities: ClassVar[tuple[str, ...]] = ("pathology",)
    role: ClassVar = "evaluation"
    licence: ClassVar[str] = "as its page at heiDATA states"
    url: ClassVar[str] = "https://heidata.uni-heidelberg.de/dataset.xhtml?persistentId=doi:10.11588/data/7QCR8S"
    access: ClassVar[str] = "Open: download the tiles and their table from heiDATA and unpack them into one folder."
    layout: ClassVar[str] = """\
data/*.csv            one table with the columns file, class, set (Train, Validation, Test), malignicy
tiles/...             the images named by its column `file`
"""
    needs: ClassVar[tuple[str, ...]] = ("**/*.csv",)
    classes: ClassVar[tuple[str, ...]] = tuple(NAMES.values())
    notes: ClassVar[str] = (
        "129,364 tiles. The published table does not state the case of a tile, so tiles count as their own patients: "
        "few-shot draws and intervals treat tiles as independent, which makes intervals too narrow. The publisher's "
        "three sets are disjoint by case."
    )

    def items(self, root: Path, out: Path) -> Iterator[BenchmarkItem | Fault]:
        """One item per tile, in the order of the table."""
        table = _table(root)
        for line, row in read_table(table, COLUMNS):
            label, split = NAMES.get(row["class"]), SPLITS.get(row["set"].lower())
            if label is None or split is None:
                which = "class" if label is None else "set"
                yield Fault(line, f"unknown {which} {row[which][:40]!r}", row["file"], f"of unknown {which}")
                continue
            yield BenchmarkItem(path=_place(root, table, row["file"]), split=split, modality="pathology", label=label)


def _table(root: Path) -> Path:
    """The table of the tiles, identified by its columns.

    Raises:
        ManifestError: no CSV file has the columns.
    """
    for path in sorted(path for path in root.rglob("*.csv") if path.is_file()):
        with open(path, encoding="utf-8-sig", errors="replace") as handle:
            if set(COLUMNS) <= {name.strip().strip('"') for name in handle.readline(4096).split(",")}:
                return path
    raise ManifestError(f"{root}: no CSV file with the columns {', '.join(COLUMNS)}; put the publisher's table there")


def _place(root: Path, table: Path, name: str) -> str:
    """Path of a tile below `root`; names in the table start at its folder, above it, or with one more folder."""
    name = name.replace("\\", "/").lstrip("./")
    for base in (root, table.parent):
        for tail in (name, name.partition("/")[2]):
            if tail and (base / tail).is_file():
                return (base / tail).relative_to(root).as_posix()
    return name
