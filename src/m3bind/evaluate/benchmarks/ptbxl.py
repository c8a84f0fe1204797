"""PTB-XL 1.0.3: 21,799 twelve-lead ECGs of 10 s with reports and SCP statements (Wagner et al. 2020).

All four label groups of the published benchmark are in one manifest, distinguished by a prefix in `labels`:
`super:` (5 diagnostic superclasses), `sub:` (23 subclasses), `form:` (19), `rhythm:` (12). A statement counts whatever
its likelihood is, as in the benchmark's own code. A task uses the records that have a label of its group.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

from m3bind.evaluate.benchmarks._cells import is_one, literal, whole
from m3bind.evaluate.benchmarks.base import Benchmark, BenchmarkItem, Fault, PublishedFile, read_table

SUPER = ("NORM", "MI", "STTC", "CD", "HYP")
SUB = (
    "AMI", "CLBBB", "CRBBB", "ILBBB", "IMI", "IRBBB", "ISCA", "ISCI", "ISC_", "IVCD", "LAFB/LPFB", "LAO/LAE", "LMI",
    "LVH", "NORM", "NST_", "PMI", "RAO/RAE", "RVH", "SEHYP", "STTC", "WPW", "_AVB",
)  # fmt: skip
FORM = (
    "NDT", "NST_", "DIG", "LNGQT", "ABQRS", "PVC", "STD_", "VCLVH", "QWAVE", "LOWT", "NT_", "PAC", "LPR", "INVT",
    "LVOLT", "HVOLT", "TAB_", "STE_", "PRC(S)",
)  # fmt: skip
RHYTHM = ("SR", "AFIB", "STACH", "SARRH", "SBRAD", "PACE", "SVARR", "BIGU", "AFLT", "SVTAC", "PSVT", "TRIGU")
GROUPS: Mapping[str, tuple[str, ...]] = {"super": SUPER, "sub": SUB, "form": FORM, "rhythm": RHYTHM}


class PtbXl(Benchmark):
    """PTB-XL: multi-label, in training and in test."""

    name: ClassVar[str] = "ptbxl"
    title: ClassVar[str] = "PTB-XL 1.0.3"
    modalities: ClassVar[tuple[str, ...]] = ("ecg",)
    role: ClassVar = "both"
    licence: ClassVar[str] = "CC BY 4.0"
    url: ClassVar[str] = "https://physionet.org/content/ptb-xl/1.0.3/"
    access: ClassVar[str] = "Open: download and unpack the zip file (1.7 GB) from PhysioNet."
    files: ClassVar[tuple[PublishedFile, ...]] = (
        PublishedFile(
            "ptb-xl-1.0.3.zip",
            "https://physionet.org/content/ptb-xl/get-zip/1.0.3/",
            size=1_839_504_686,
            unpack=("ptbxl_database.csv", "scp_statements.csv", "LICENSE.txt", "records100/*"),
            sums=("SHA256SUMS.txt", "b7224b92b341511ec3ceb13dc6652079b2c36a06504bcb49506f157f51dc695d"),
        ),
    )
    layout: ClassVar[str] = """\
ptbxl_database.csv
scp_statements.csv
records500/00000/00001_hr.hea, 00001_hr.dat, ...    500 Hz; used if present
records100/00000/00001_lr.hea, 00001_lr.dat, ...    100 Hz
"""
    needs: ClassVar[tuple[str, ...]] = ("ptbxl_database.csv", "scp_statements.csv", "records[15]00")
    classes: ClassVar[tuple[str, ...]] = tuple(f"{group}:{code}" for group, codes in GROUPS.items() for code in codes)
    known: ClassVar[Mapping[str, int]] = {"train": 17418, "valid": 2183, "test": 2198, "patients": 18869}
    notes: ClassVar[str] = (
        "Folds 1-8 train, 9 valid, 10 test, as recommended. 508 of the 2,158 test records with a superclass have more "
        "than one. Most reports are German. MERL's lists are the same folds, cut to the records with a label of the "
        "group (super 17,084/2,146/2,158, form 7,197/901/880, rhythm 16,832/2,100/2,098); tasks do that cut."
    )

    def items(self, root: Path, out: Path) -> Iterator[BenchmarkItem | Fault]:
        """One item per record, in the order of the table."""
        meaning = statements(root / "scp_statements.csv")
        column = "filename_hr" if (root / "records500").is_dir() else "filename_lr"
        columns = ("ecg_id", "patient_id", "report", "scp_codes", "strat_fold", column)
        for line, row in read_table(root / "ptbxl_database.csv", columns):
            codes, fold = literal(row["scp_codes"], dict), whole(row["strat_fold"])
            if codes is None:
                yield Fault(line, "scp_codes is not a dict of statements", row[column], "with unreadable labels")
                continue
            if fold is None or not 1 <= fold <= 10:
                yield Fault(line, "strat_fold is not one of 1 to 10", row[column], "without a fold")
                continue
            labels = {label for code in codes for label in meaning.get(str(code), ())}
            patient = whole(row["patient_id"])
            yield BenchmarkItem(
                path=row[column],
                id=row["ecg_id"],
                split={9: "valid", 10: "test"}.get(fold, "train"),
                modality="ecg",
                patient=row["patient_id"] if patient is None else str(patient),
                labels=tuple(label for label in self.classes if label in labels),
                caption=row["report"],
            )


def statements(path: Path) -> dict[str, tuple[str, ...]]:
    """The labels of every SCP statement: "NDT" -> ("super:STTC", "sub:STTC", "form:NDT").

    Raises:
        ManifestError: the table is missing or lacks a column.
    """
    columns = ("", "diagnostic", "form", "rhythm", "diagnostic_class", "diagnostic_subclass")
    meaning = {}
    for _, row in read_table(path, columns):
        labels = []
        if is_one(row["diagnostic"]):
            labels += [f"super:{row['diagnostic_class']}", f"sub:{row['diagnostic_subclass']}"]
        labels += [f"{group}:{row['']}" for group in ("form", "rhythm") if is_one(row[group])]
        meaning[row[""]] = tuple(labels)
    return meaning
