"""RAD-ChestCT: 3,630 public chest CT volumes with 84 abnormalities at 52 places (Draelos et al. 2020).

CT-CLIP evaluates 16 labels of CT-RATE's 18 on it: the two calcifications are one, mosaic attenuation is left out. A
label is present if one of its abnormalities is, at any place. CT-CLIP's own merged table was never published; the
mapping here (`MAPPING`) is based on the names.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

from m3bind.evaluate.benchmarks._cells import is_one
from m3bind.evaluate.benchmarks.base import Benchmark, BenchmarkItem, Fault, read_table

MAPPING: Mapping[str, tuple[str, ...]] = {  # CT-CLIP's label -> abnormalities of RAD-ChestCT, in CT-CLIP's order
    "Medical material": (
        "breast_implant", "catheter_or_port", "chest_tube", "clip", "gi_tube", "hardware", "heart_valve_replacement",
        "pacemaker_or_defib", "staple", "stent", "suture", "tracheal_tube",
    ),
    "Arterial wall calcification": ("calcification",),  # with the coronary one
    "Cardiomegaly": ("cardiomegaly",),
    "Pericardial effusion": ("pericardial_effusion",),
    "Hiatal hernia": ("hernia",),
    "Lymphadenopathy": ("lymphadenopathy",),
    "Emphysema": ("emphysema",),
    "Atelectasis": ("atelectasis",),
    "Lung nodule": ("nodule", "nodulegr1cm", "scattered_nod"),
    "Lung opacity": ("opacity",),
    "Pulmonary fibrotic sequela": ("fibrosis",),
    "Pleural effusion": ("pleural_effusion",),
    "Peribronchial thickening": ("bronchial_wall_thickening",),
    "Consolidation": ("consolidation",),
    "Bronchiectasis": ("bronchiectasis",),
    "Interlobular septal thickening": ("septal_thickening",),
}  # fmt: skip


class RadChestCt(Benchmark):
    """RAD-ChestCT with CT-CLIP's sixteen labels."""

    name: ClassVar[str] = "rad_chestct"
    title: ClassVar[str] = "RAD-ChestCT"
    modalities: ClassVar[tuple[str, ...]] = ("ct",)
    role: ClassVar = "evaluation"
    licence: ClassVar[str] = "CC BY-NC-ND 4.0"
    url: ClassVar[str] = "https://zenodo.org/records/6406114"
    access: ClassVar[str] = "Open: download the npz files and the tables from Zenodo (a part of the volumes is fine)."
    layout: ClassVar[str] = """\
trn00001.npz, ..., val..., tst...                           array ct, int16 HU clipped to -1000..1000, 0.8 mm
img{train,valid,test}_Abnormality_and_Location_Labels.csv   NoteAcc_DEID, abnormality*location (0 or 1)
"""
    needs: ClassVar[tuple[str, ...]] = ("imgtest_Abnormality_and_Location_Labels.csv", "*.npz")
    classes: ClassVar[tuple[str, ...]] = tuple(MAPPING)
    notes: ClassVar[str] = (
        "3,630 volumes. CT-CLIP uses all of them as external test; here the publisher's splits apply, since few-shot "
        "needs training files, so a zero-shot metric on `test` alone is of fewer volumes than theirs. The npz files "
        "state neither spacing nor direction: the CT reader knows both. Patients are not published; each scan counts "
        "as its own patient."
    )

    def items(self, root: Path, out: Path) -> Iterator[BenchmarkItem | Fault]:
        """One item per scan: train, valid, test, in the order of the tables."""
        for split in ("train", "valid", "test"):
            table = root / f"img{split}_Abnormality_and_Location_Labels.csv"
            if not table.is_file():
                yield Fault(0, f"no {table.name}; this split is left out", kind="without a table")
                continue
            for line, row in read_table(table, ("NoteAcc_DEID",)):
                scan = row["NoteAcc_DEID"]
                columns = {name: name.partition("*")[0] for name in row}  # "abnormality*location"
                missing = [label for label, names in MAPPING.items() if set(names).isdisjoint(columns.values())]
                if missing or not scan:
                    reason = f"no column for {', '.join(missing)}" if missing else "no NoteAcc_DEID"
                    yield Fault(line, reason, scan, "without labels")
                    continue
                present = {abnormality for name, abnormality in columns.items() if is_one(row[name])}
                labels = tuple(label for label, names in MAPPING.items() if not present.isdisjoint(names))
                yield BenchmarkItem(path=f"{scan}.npz", id=scan, split=split, modality="ct", labels=labels)
