"""Symile-MIMIC's tables beside a small MIMIC-CXR-JPG and MIMIC-IV-ECG; test.csv with its negative rows."""

from pathlib import Path

from evaluate.benchmarks.trees._mimic import Record, Study, write_cxr, write_ecgs
from evaluate.benchmarks.trees._small import cycled, write_table

COLUMNS = ("subject_id", "hadm_id", "cxr_path", "ecg_path")


def make(root: Path, n: int = 12, seed: int = 0) -> None:
    """`n` admissions of one subject each; the first has a second admission with the same ECG."""
    studies = [Study(f"{10000032 + seed + k}", f"{50000000 + k}", "21800508") for k in range(n)]
    studies.append(Study(studies[0].subject, "51000000", "21800509"))
    records = [Record(study.subject, f"{40000000 + k}") for k, study in enumerate(studies[:n])]
    rows: dict[str, list[tuple[str, ...]]] = {"train": [], "valid": [], "test": []}
    for k, (study, split) in enumerate(zip(studies, [*cycled(n), "train"])):
        record = records[k % n]
        rows[split].append((study.subject, f"{20000000 + k}", study.path("PA"), record.path))
    folder = root / "symile-mimic" / "1.0.0"
    write_table(folder / "train.csv", COLUMNS, rows["train"])
    write_table(folder / "val.csv", (*COLUMNS, "label"), [(*row, 1) for row in rows["valid"]])
    wrong = [(*row, 0) for row in rows["test"][::-1]]
    write_table(folder / "test.csv", (*COLUMNS, "label"), [*((*row, 1) for row in rows["test"]), *wrong])
    write_cxr(root / "mimic-cxr-jpg" / "2.1.0", studies)
    write_ecgs(root / "mimic-iv-ecg" / "1.0", records)
