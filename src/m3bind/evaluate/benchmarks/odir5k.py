"""ODIR-5K as Kaggle distributes it: both eyes of patients, eight classes, diagnostic keywords per eye."""

import re
from collections.abc import Iterator
from pathlib import Path

from m3bind.data.splits import patient_splits
from m3bind.evaluate.benchmarks._lists import literal_list
from m3bind.evaluate.benchmarks.base import Benchmark, BenchmarkItem, Fault, read_table

TABLE, IMAGES = "full_df.csv", "preprocessed_images"
LETTERS = {
    "N": "normal",
    "D": "diabetes",
    "G": "glaucoma",
    "C": "cataract",
    "A": "age-related macular degeneration",
    "H": "hypertension",
    "M": "pathologic myopia",
    "O": "other",
}
KEYWORDS = {side: f"{side.capitalize()}-Diagnostic Keywords" for side in ("left", "right")}
COLUMNS = ("ID", *KEYWORDS.values(), *LETTERS)
FRACTIONS = {"train": 0.7, "valid": 0.1, "test": 0.2}
ACCESS = (
    "Download the Kaggle data set andrewmvd/ocular-disease-recognition-odir5k (the challenge's own site asks for a "
    "registration)."
)
LAYOUT = """
    full_df.csv                               one row per image: ID, Left-/Right-Diagnostic Keywords, N ... O,
                                              labels, filename
    preprocessed_images/{ID}_{left|right}.jpg
    """
_NO_FUNDUS = ("anterior segment image", "no fundus image")


class Odir5k(Benchmark):
    """ODIR-5K."""

    name = "odir5k"
    title = "ODIR-5K"
    modalities = ("retina",)
    role = "both"
    licence = "not stated by the challenge; research use"
    url = "https://odir2019.grand-challenge.org"
    access = ACCESS
    layout = LAYOUT
    needs = (TABLE, f"{IMAGES}/*")
    classes = tuple(LETTERS.values())
    known = {"patients": 3358}
    notes = (
        "The columns N to O are a patient's, both eyes together; the class of an image is that of its own `labels`. "
        "Public labels have no official split: 70 / 10 / 20 % by a hash of the patient. Keywords are separated by a "
        "full-width comma. Images of the anterior segment are quarantined."
    )

    def items(self, root: Path, out: Path) -> Iterator[BenchmarkItem | Fault]:
        """One row per image: its class, and the keywords of its eye as caption."""
        rows = list(read_table(root / TABLE, (*COLUMNS, "labels", "filename")))
        splits = patient_splits({patient_of(cells["ID"]) for _, cells in rows}, FRACTIONS)
        for row, cells in rows:
            image = f"{IMAGES}/{cells['filename']}"
            side = re.search(r"_(left|right)\.", cells["filename"])
            letters = literal_list(cells["labels"])
            if side is None or not letters or not set(letters) <= set(LETTERS):
                reason = "its labels are not a list of N ... O" if side else "its name has neither _left nor _right"
                yield Fault(row, reason, image, "with a bad list" if side else "of no side")
                continue
            text = cells[KEYWORDS[side[1]]]
            if any(part in text for part in _NO_FUNDUS):
                yield Fault(row, "not a fundus according to its keywords", image, "not a fundus photograph")
                continue
            names, caption = tuple(LETTERS[letter] for letter in letters), plain_keywords(text)
            patient = patient_of(cells["ID"])
            split = splits[patient]
            yield BenchmarkItem(image, split, "retina", patient, label=names[0], labels=names, caption=caption)


def patient_of(number: str) -> str:
    """Name of the patient, the same in all sets made of ODIR-5K."""
    return f"odir-{number}"


def plain_keywords(text: str) -> str:
    """Keywords separated by plain commas."""
    return ", ".join(part.strip() for part in text.replace("\uff0c", ",").split(",") if part.strip())
