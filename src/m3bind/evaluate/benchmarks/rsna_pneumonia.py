"""RSNA pneumonia detection challenge, stage 2: pneumonia or not, split as GLoRIA and MGCA do."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from m3bind.evaluate.benchmarks.base import Benchmark, BenchmarkItem, Fault, read_table

TABLE, IMAGES = "stage_2_train_labels.csv", "stage_2_train_images"


class RsnaPneumonia(Benchmark):
    """RSNA pneumonia."""

    name = "rsna_pneumonia"
    title = "RSNA pneumonia (stage 2)"
    modalities = ("xray",)
    role = "both"
    licence = "RSNA challenge terms: non-commercial, with attribution"
    url = "https://www.kaggle.com/c/rsna-pneumonia-detection-challenge"
    access = "Accept the challenge's rules on Kaggle and download stage 2."
    layout = """
    stage_2_train_labels.csv                   patientId, x, y, width, height, Target (a row per box)
    stage_2_train_images/{patientId}.dcm       1024 x 1024
    """
    needs = (TABLE, f"{IMAGES}/*.dcm")
    classes = ("normal", "pneumonia")
    known = {"train": 18678, "valid": 4003, "test": 4003, "patients": 26684}
    notes = (
        "Rows are grouped by patientId, then split 70 / 15 / 15 with scikit-learn's train_test_split, seed 0. "
        '"normal" means no pneumonia: it includes images with other findings. A patientId is one image; the images '
        "are of NIH ChestX-ray14, where a person may have several. The challenge's own test images have no labels."
    )

    def items(self, root: Path, out: Path) -> Iterator[BenchmarkItem | Fault]:
        """One row per image, train then valid then test, as drawn."""
        positive: dict[str, bool] = {}
        for row, cells in read_table(root / TABLE, ("patientId", "Target")):
            if cells["Target"] in ("0", "1") and cells["patientId"]:
                positive[cells["patientId"]] = positive.get(cells["patientId"], False) or cells["Target"] == "1"
            else:
                yield Fault(row, "Target is neither 0 nor 1, or patientId is missing", kind="of another form")
        for split, names in split_ids(sorted(positive)).items():
            for name in names:
                label = self.classes[positive[name]]
                yield BenchmarkItem(f"{IMAGES}/{name}.dcm", split, "xray", f"rsna-{name}", label=label, labels=(label,))


def split_ids(ids: Sequence[str]) -> dict[str, list[str]]:
    """Sorted ids -> split -> ids: 70 / 15 / 15 %, the test half of the rest drawn first."""
    from sklearn.model_selection import train_test_split

    if len(ids) < 4:
        return {"train": list(ids), "valid": [], "test": []}
    train, rest = train_test_split(list(ids), test_size=0.3, random_state=0)
    test, valid = train_test_split(rest, test_size=0.5, random_state=0)
    return {"train": train, "valid": valid, "test": test}
