"""MESSIDOR-2 with the adjudicated grades: diabetic retinopathy in five grades (Krause et al. 2018)."""

from collections.abc import Iterator
from pathlib import Path

from m3bind.evaluate.benchmarks._cells import whole
from m3bind.evaluate.benchmarks.base import Benchmark, BenchmarkItem, Fault, read_table

GRADES = tuple(f"{grade} diabetic retinopathy" for grade in ("no", "mild", "moderate", "severe", "proliferative"))
EDEMA = "diabetic macular edema"
_COUNTS = (1017, 270, 347, 75, 35)


class Messidor2(Benchmark):
    """MESSIDOR-2."""

    name = "messidor2"
    title = "MESSIDOR-2"
    modalities = ("retina",)
    role = "evaluation"
    licence = "images: research and education only, on request; grades: see their Kaggle page"
    url = "https://www.adcis.net/en/third-party/messidor2/"
    access = (
        "Ask ADCIS for the images; download the adjudicated grades (messidor_data.csv) from the Kaggle data set "
        "google-brain/messidor2-dr-grades into the same folder."
    )
    layout = """
    IMAGES/20051020_43808_0100_PP.png, IMAGES/IM000831.JPG, ...
    messidor_data.csv    image_id, adjudicated_dr_grade, adjudicated_dme, adjudicated_gradable
    messidor-2.csv       optional, comes with the images: left;right, the two eyes of an examination
    """
    needs = ("messidor_data.csv", "[Ii][Mm][Aa][Gg][Ee][Ss]/*")
    classes = GRADES
    known = {"test": 1744, **{f"test/{grade}": count for grade, count in zip(GRADES, _COUNTS)}}
    notes = (
        "All rows are test rows: FLAIR draws few-shot examples from them (per class, 20 % for testing). "
        "4 of the 1,748 images are not gradable and have no grade. The table writes .jpg where files end in .JPG. "
        "Without messidor-2.csv the two eyes of a person count as two patients."
    )

    def items(self, root: Path, out: Path) -> Iterator[BenchmarkItem | Fault]:
        """One row per graded image."""
        folder = next(path.parent for path in sorted(root.glob(self.needs[1])))
        files = {path.name.casefold(): path.name for path in folder.iterdir()}
        exams = _exams(root)
        columns = ("image_id", "adjudicated_dr_grade", "adjudicated_dme", "adjudicated_gradable")
        for row, cells in read_table(root / "messidor_data.csv", columns):
            image = cells["image_id"]
            path = f"{folder.name}/{files.get(image.casefold(), image)}"
            grade, edema, gradable = (whole(cells[column]) for column in columns[1:])
            if gradable != 1:
                yield Fault(row, "not gradable, so it has no grade", path, "not gradable")
            elif grade is None or grade not in range(5):
                yield Fault(row, "its grade is not one of 0 to 4", path, "without a grade")
            else:
                stem = image.rpartition(".")[0].casefold()
                patient = f"messidor2-{exams.get(stem, stem)}"
                labels = (GRADES[grade], EDEMA) if edema == 1 else (GRADES[grade],)
                yield BenchmarkItem(path, "test", "retina", patient, label=GRADES[grade], labels=labels)


def _exams(root: Path) -> dict[str, str]:
    """Image -> the left image of its examination, both without ending."""
    table = root / "messidor-2.csv"
    exams = {}
    if table.is_file():
        for _, cells in read_table(table):
            stems = [name.strip().rpartition(".")[0].casefold() for name in next(iter(cells.values())).split(";")]
            exams.update(dict.fromkeys(stems, stems[0]))
    return exams
