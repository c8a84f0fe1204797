"""A small MIMIC-CXR-JPG with the published zip file of reports."""

from pathlib import Path

from evaluate.benchmarks.trees._mimic import Study, write_cxr
from evaluate.benchmarks.trees._small import cycled

FINDINGS = ("Pneumonia", "Cardiomegaly", "Pleural Effusion", "No Finding")


def make(root: Path, n: int = 12, seed: int = 0, reports: str = "zip") -> None:
    """`n` subjects with one study each; one subject more whose report says nothing."""
    studies = [
        Study(f"{10000032 + seed + k}", f"{50414267 + k}", values={FINDINGS[k % 4]: 1, "Edema": -1},
              split=split.replace("valid", "validate"))
        for k, split in enumerate(cycled(n))
    ]  # fmt: skip
    silent = Study(
        f"{10000032 + seed + n}", f"{50414267 + n}", report=" INDICATION:  Cough.\n\n IMPRESSION:\n\n Normal.\n"
    )
    write_cxr(root, [*studies, silent], reports)
