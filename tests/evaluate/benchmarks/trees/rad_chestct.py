"""RAD-ChestCT: npz volumes and abnormality x location tables, with abnormalities that map to no label."""

from pathlib import Path

import numpy as np

from evaluate.benchmarks.trees._tiny import chest, write_csv
from m3bind.evaluate.benchmarks.rad_chestct import MAPPING

PLACES = ("left_lung", "heart", "other_location")
OTHERS = ("fracture", "tree_in_bud")  # of the 84, mapped to no label


def present(scan: int, label: int) -> bool:
    return (scan * (1 + label % 4) + label) % 5 < 2


def make(root: Path, n: int = 12, seed: int = 0) -> None:
    """n training scans (at least 10), 3 validation and 8 test scans; one row without a volume."""
    rng = np.random.default_rng(seed)
    root.mkdir(parents=True, exist_ok=True)
    abnormalities = [*(name for group in MAPPING.values() for name in group), *OTHERS]
    columns = [f"{name}*{place}" for name in abnormalities for place in PLACES]
    for word, prefix, count in (("train", "trn", max(10, n)), ("valid", "val", 3), ("test", "tst", 8)):
        rows: list[list[object]] = []
        for k in range(count):
            hits = {f"{rng.choice(group)}*{rng.choice(PLACES)}" for label, group in enumerate(MAPPING.values())
                    if present(k, label)}  # fmt: skip
            hits.add(f"{OTHERS[k % 2]}*{PLACES[0]}")
            rows.append([f"{prefix}{k + 1:05d}", *(int(name in hits) for name in columns)])
            volume = np.clip(np.round(chest(rng, k)), -1000, 1000).astype(np.int16).transpose(2, 1, 0)
            np.savez_compressed(root / f"{prefix}{k + 1:05d}.npz", ct=volume[::-1])
        rows.append([f"{prefix}99999", *[0] * len(columns)])
        write_csv(root / f"img{word}_Abnormality_and_Location_Labels.csv", ("NoteAcc_DEID", *columns), rows)
