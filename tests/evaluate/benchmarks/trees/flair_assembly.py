"""Three sets of FLAIR's assembly and one reserved for testing, with a banned category and a malicious cell."""

from pathlib import Path

from evaluate.benchmarks.trees._small import write_image, write_table

HEADER = ("", "image", "atributes", "categories")
GRADES = ("no diabetic retinopathy", "mild diabetic retinopathy", "proliferative diabetic retinopathy")
ATTACK = "__import__('os').system('touch pwned')"


def make(root: Path, n: int = 12, seed: int = 0) -> None:
    lists = {
        "01_EYEPACS": [(f"01_EYEPACS/documents/{10 + k // 2}_{('left', 'right')[k % 2]}.jpeg", [GRADES[k % 3]])
                       for k in range(n)],
        "03_IDRID": [(f"03_IDRID/A. Segmentation/IDRiD_{k:02d}.jpg", ["microaneurysms", "hard exudates"][: 1 + k % 2])
                     for k in range(n)],
        "08_ODIR": [(f"08_ODIR-5K/preprocessed_images/{k}_left.jpg", [("drusen", "suspected glaucoma")[k % 2]])
                    for k in range(n)],
        "02_MESSIDOR": [("02_MESSIDOR/images/20051020_43808_0100_PP.png", [GRADES[0]])],
    }  # fmt: skip
    for name, rows in lists.items():
        for number, (image, _) in enumerate(rows):
            write_image(root / image, seed + number, colour=True)
        table = [(number, image, "[]", str(categories)) for number, (image, categories) in enumerate(rows)]
        if name == "03_IDRID":
            table += [(n, rows[0][0], "[]", "['pathologic myopia']"), (n + 1, rows[1][0], "[]", ATTACK),
                      (n + 2, rows[2][0], "['noisy']", "[]")]  # fmt: skip
        write_table(root / "pretraining" / f"{name}.csv", HEADER, table)
