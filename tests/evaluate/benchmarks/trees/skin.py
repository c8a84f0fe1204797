"""Kriegsmann's skin tiles: one table, tiles in folders by class, an unknown class and a missing tile."""

from pathlib import Path

import numpy as np

from evaluate.benchmarks.trees._tiny import save_tile, write_csv
from m3bind.evaluate.benchmarks.skin import NAMES


def make(root: Path, n: int = 12, seed: int = 0) -> None:
    """Sixteen classes, at least 3 training, 1 validation and 2 test tiles each."""
    rng = np.random.default_rng(seed)
    rows: list[tuple[object, ...]] = []
    for kind, name in enumerate(NAMES):
        for split in ["Train"] * max(3, n // 16) + ["Validation", "Test", "Test"]:
            file = f"tiles/{name}/{len(rows):06d}.jpg"
            save_tile(root / file, rng, kind)
            rows.append((len(rows), file, name, split, "tumor" if name.startswith("tumor") else "nontumor"))
    rows.append((len(rows), "tiles/none/1.jpg", "nontumor_skin_hair_hair", "Train", "nontumor"))
    rows.append((len(rows), "tiles/none/2.jpg", next(iter(NAMES)), "Train", "nontumor"))
    write_csv(root / "data" / "tiles-v2.csv", ("", "file", "class", "set", "malignicy"), rows)
