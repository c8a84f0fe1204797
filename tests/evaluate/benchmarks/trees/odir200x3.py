"""A small ODIR-5K with FLAIR's list beside it, which names two images of myopia twice."""

from pathlib import Path

from evaluate.benchmarks.trees import odir5k
from evaluate.benchmarks.trees._small import write_table
from m3bind.evaluate.benchmarks.base import read_table

NAMES = {"N": "normal", "C": "cataract", "M": "pathologic myopia"}


def make(root: Path, n: int = 12, seed: int = 0) -> None:
    odir5k.make(root, n, seed)
    listed = [
        (f"08_ODIR-5K/preprocessed_images/{cells['filename']}", "[]", f"['{NAMES[letter]}']")
        for _, cells in read_table(root / "full_df.csv")
        for letter in NAMES
        if cells[letter] == "1"
    ]
    myopia = [row for row in listed if "myopia" in row[2]]
    rows = [(number, *row) for number, row in enumerate([*listed, *myopia[:2]])]
    write_table(root / "08_ODIR200x3.csv", ("", "image", "atributes", "categories"), rows)
