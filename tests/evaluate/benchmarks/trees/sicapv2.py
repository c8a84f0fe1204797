"""SICAPv2: Excel partitions, patches of several grades (G4 with G4C), a patch without a grade, a missing patch."""

from pathlib import Path

import numpy as np

from evaluate.benchmarks.trees._tiny import save_tile, write_sheet

HEADER = ("image_name", "NC", "G3", "G4", "G5", "G4C")


def make(root: Path, n: int = 12, seed: int = 0) -> None:
    """Four grades, each with at least 3 training, 1 validation and 2 test patches of different biopsies."""
    rng = np.random.default_rng(seed)
    parts: dict[str, list[tuple[object, ...]]] = {"train": [], "valid": [], "test": []}
    biopsy = 0
    for kind in range(4):
        for split in ["train"] * max(3, n // 4) + ["valid", "test", "test"]:
            biopsy += 1
            name = f"16B{biopsy:07d}_Block_Region_1_0_0_xini_6803_yini_{59786 + biopsy}.jpg"
            save_tile(root / "images" / name, rng, kind)
            cells = [int(k == kind) for k in range(4)]
            parts[split].append((name, *cells, int(kind == 2)))
    name, *cells, cribriform = parts["train"][-1]
    parts["train"][-1] = (name, 0, 1, 0, 1, cribriform)  # G3 and G5: its class is G3
    nothing = "16B9999998_Block_Region_1_0_0_xini_0_yini_0.jpg"
    gone = "16B9999999_Block_Region_1_0_0_xini_0_yini_0.jpg"
    save_tile(root / "images" / nothing, rng, 0)
    training = [*parts["train"], *parts["valid"], (nothing, 0, 0, 0, 0, 0), (gone, 1, 0, 0, 0, 0)]
    write_sheet(root / "partition" / "Test" / "Train.xlsx", HEADER, training)
    write_sheet(root / "partition" / "Test" / "Test.xlsx", HEADER, parts["test"])
    write_sheet(root / "partition" / "Validation" / "Val1" / "Train.xlsx", HEADER, parts["train"])
    write_sheet(root / "partition" / "Validation" / "Val1" / "Test.xlsx", HEADER, parts["valid"])
