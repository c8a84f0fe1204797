"""A small ODIR-5K as on Kaggle: a row per image, those of right eyes first; letters are the patient's."""

from pathlib import Path

from evaluate.benchmarks.trees._small import cycled, people, write_image, write_table
from m3bind.evaluate.benchmarks.odir5k import FRACTIONS, LETTERS, patient_of

HEADER = (
    "ID", "Patient Age", "Patient Sex", "Left-Fundus", "Right-Fundus", "Left-Diagnostic Keywords",
    "Right-Diagnostic Keywords", *LETTERS, "filepath", "labels", "target", "filename",
)  # fmt: skip
KEYWORDS = {
    "N": "normal fundus",
    "D": "moderate non proliferative retinopathy\uff0clens dust",
    "G": "suspected glaucoma",
    "C": "cataract",
    "A": "dry age-related macular degeneration",
    "H": "hypertensive retinopathy",
    "M": "pathological myopia",
    "O": "macular epiretinal membrane\uff0cdrusen",
}


def make(root: Path, n: int = 12, seed: int = 0) -> None:
    """`n` images of each letter, both eyes of a patient alike; the last patient's left image shows no fundus."""
    wanted = cycled(max(6, n // 2)) * len(LETTERS)
    letters = [letter for letter in LETTERS for _ in range(max(6, n // 2))]
    patients = list(zip(people([*wanted, "train"], FRACTIONS, patient_of), [*letters, "O"]))
    rows = []
    for side in ("right", "left"):
        for number, (identity, letter) in enumerate(patients):
            left = right = KEYWORDS[letter]
            if number == len(patients) - 1:
                left = "anterior segment image"
            own = [int(other == letter) for other in LETTERS]
            name = f"{identity}_{side}.jpg"
            write_image(root / "preprocessed_images" / name, seed + 2 * number + (side == "left"), colour=True)
            rows.append((identity, 60, "Female", f"{identity}_left.jpg", f"{identity}_right.jpg", left, right, *own,
                         f"../input/{name}", f"['{letter}']", str(own), name))  # fmt: skip
    write_table(root / "full_df.csv", HEADER, rows)
