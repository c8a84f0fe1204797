"""Quilt-1M: the lookup table with list literals, an image with two captions, rows that are not histology."""

from pathlib import Path

import numpy as np

from evaluate.benchmarks.trees._tiny import save_tile, write_csv
from m3bind.data.splits import patient_position
from m3bind.evaluate.benchmarks.quilt1m import VALID

HEADER = ("", "caption", "image_path", "subset", "split", "pathology", "roi_text", "magnification", "height", "width",
          "not_histology", "single_wsi")  # fmt: skip
WORDS = ("nests of atypical cells in the dermis", "a gland with back-to-back architecture", "lymphocytes around a duct")
FIELDS = ("Dermatopathology", "Gastrointestinal", "Breast")


def make(root: Path, n: int = 12, seed: int = 0) -> None:
    """n training videos and two that the hash puts into valid, one image each."""
    rng = np.random.default_rng(seed)
    names = [f"video{k:04d}" for k in range(2000)]
    videos = [name for name in names if patient_position(name) >= VALID][:n]
    videos += [name for name in names if patient_position(name) < VALID][:2]
    rows: list[tuple[object, ...]] = []

    def row(caption: str, image: str, field: object, other: object = "0") -> None:
        rows.append((len(rows), caption, image, "quilt", "", field, "[]", 1, 32, 32, other, 0.0))

    for k, video in enumerate(videos):
        image = f"{video}_image_{k:08x}-aaaa.jpg"
        save_tile(root / "quilt_1m" / image, rng, k % 3)
        row(f"Case {k} shows {WORDS[k % 3]}.", image, f"['{FIELDS[k % 3]}', 'Soft tissue']")
        if k == 0:
            row(f"The same field: {WORDS[0]}, at higher power.", image, f"['{FIELDS[0]}']")
    row("A slide with the speaker's name.", rows[1][2], "[]", "1.0")
    row("", rows[1][2], "[]")
    row("An image that is missing.", "gone_image_1.jpg", "open('/etc/passwd')")
    write_csv(root / "quilt_1M_lookup.csv", HEADER, rows)
