"""A small MESSIDOR-2: per grade `n` images, two of an examination each, and one image that is not gradable."""

from pathlib import Path

from evaluate.benchmarks.trees._small import write_image, write_table


def make(root: Path, n: int = 12, seed: int = 0) -> None:
    rows, names = [], []
    for number in range(5 * n):
        listed = f"IM{number:06d}.jpg" if number % 4 < 2 else f"20051020_{number:05d}_0100_PP.png"
        names.append(listed.replace(".jpg", ".JPG"))  # on the disk
        rows.append((listed, f"{number // n}", int(number % 3 == 0), 1))
    rows.append(("20060410_99999_0200_PP.png", "", "", 0))
    names.append(rows[-1][0])
    for number, name in enumerate(names):
        write_image(root / "IMAGES" / name, seed + number, colour=True)
    write_table(
        root / "messidor_data.csv",
        ("image_id", "adjudicated_dr_grade", "adjudicated_dme", "adjudicated_gradable"),
        rows,
    )
    write_table(root / "messidor-2.csv", ("left", "right"), zip(names[:-1:2], names[1:-1:2]), delimiter=";")
