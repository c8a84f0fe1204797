"""ODIR200x3, FLAIR's test set out of ODIR-5K: normal, pathologic myopia, cataract (Silva-Rodriguez et al. 2023).

`drawn` applies FLAIR's rule if its list is not beside the data.
"""

import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from m3bind.evaluate.benchmarks._cells import is_one
from m3bind.evaluate.benchmarks._lists import Listed, read_list
from m3bind.evaluate.benchmarks.base import Benchmark, BenchmarkItem, Fault, read_table
from m3bind.evaluate.benchmarks.odir5k import ACCESS, COLUMNS, IMAGES, KEYWORDS, LAYOUT, TABLE, patient_of

LIST = "08_ODIR200x3.csv"
PER_CLASS = 200
PARTS = {"myop": "pathologic myopia", "cataract": "cataract", "normal": "normal"}  # part of a keyword -> class
_log = logging.getLogger(__name__)


class Odir200x3(Benchmark):
    """ODIR200x3."""

    name = "odir200x3"
    title = "ODIR200x3 (of ODIR-5K)"
    modalities = ("retina",)
    role = "evaluation"
    licence = "images as ODIR-5K; list Apache-2.0 (FLAIR)"
    url = "https://github.com/jusiro/FLAIR"
    access = ACCESS + f" {LIST} of FLAIR's repository is used where it lies in the same folder."
    layout = LAYOUT + f"{LIST}                         optional: image, atributes, categories\n"
    needs = (TABLE, f"{IMAGES}/*")
    classes = ("normal", "pathologic myopia", "cataract")
    known = {"test": 600, **{f"test/{name}": PER_CLASS for name in classes}}
    notes = (
        "The published list has 600 rows but 581 files: 19 images of myopia are listed twice, because the table has a "
        "row for each eye and every row adds both eyes. They are included, as published, with #2 after their id. "
        'The rule matches parts of keywords, so "abnormal pigment" counts as normal. All rows are test rows.'
    )

    def items(self, root: Path, out: Path) -> Iterator[BenchmarkItem | Fault]:
        """The list's rows, or those of the rule."""
        times: Counter[str] = Counter()
        for listed in read_list(root / LIST) if (root / LIST).is_file() else drawn(root):
            if isinstance(listed, Fault):
                yield listed
                continue
            image = f"{IMAGES}/{listed.image.rpartition('/')[2]}"
            if len(listed.categories) != 1 or listed.categories[0] not in self.classes:
                yield Fault(listed.row, "its categories are not one of the three classes", image, "of no class")
                continue
            times[image] += 1
            again = f"{image}#{times[image]}" if times[image] > 1 else ""
            patient = patient_of(listed.image.rpartition("/")[2].partition("_")[0])
            yield BenchmarkItem(image, "test", "retina", patient, again, label=listed.categories[0])
        repeated = times.total() - len(times)
        if repeated:
            _log.warning("%d of %d rows repeat a file; included, as published", repeated, times.total())


def drawn(root: Path) -> Iterator[Listed | Fault]:
    """FLAIR's selection from the table: patients with myopia alone or cataract alone, and the first 200 normal rows.

    For both eyes of each such row: an eye is selected for every class whose part its keywords contain, until that
    class has 200.
    """
    taken: Counter[str] = Counter()
    normal_rows = 0
    for row, cells in read_table(root / TABLE, COLUMNS):
        letters = {letter for letter in "DGCAHMO" if is_one(cells[letter])}
        normal = is_one(cells["N"]) and not letters
        normal_rows += normal
        if letters not in ({"C"}, {"M"}) and not (normal and normal_rows <= PER_CLASS):
            continue
        for side in ("right", "left"):
            image = f"{IMAGES}/{cells['ID']}_{side}.jpg"
            if not (root / image).is_file():
                continue
            for part, name in PARTS.items():
                if part in cells[KEYWORDS[side]] and taken[name] < PER_CLASS:
                    taken[name] += 1
                    yield Listed(row, image, (name,))
