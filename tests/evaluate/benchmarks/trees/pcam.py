"""PatchCamelyon: HDF5 of the published names, shapes and types; training packed with gzip, meta tables with slides."""

import gzip
from pathlib import Path

import h5py
import numpy as np

from evaluate.benchmarks.trees._tiny import tile, write_csv

STEM = "camelyonpatch_level_2_split_"


def make(root: Path, n: int = 12, seed: int = 0) -> None:
    """n training patches (at least 12), 4 validation and 6 test patches, half of them with tumour."""
    rng = np.random.default_rng(seed)
    root.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", max(12, n)), ("valid", 4), ("test", 6)):
        labels = np.arange(count) % 2
        x = np.stack([tile(rng, int(label), 96) for label in labels])
        write(root / f"{STEM}{split}_x.h5", "x", x, packed=split == "train")
        write(root / f"{STEM}{split}_y.h5", "y", labels.astype(np.uint8).reshape(-1, 1, 1, 1), packed=split != "test")
        rows = [(k, 96 * k, 96, bool(label), bool(label), f"camelyon16_{split}_{k // 2:03d}")
                for k, label in enumerate(labels)]  # fmt: skip
        header = ("", "coord_y", "coord_x", "tumor_patch", "center_tumor_patch", "wsi")
        write_csv(root / f"{STEM}{split}_meta.csv", header, rows)


def write(path: Path, name: str, values: np.ndarray, packed: bool) -> None:
    with h5py.File(path, "w") as book:
        book.create_dataset(name, data=values, chunks=(1, *values.shape[1:]))
    if packed:
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
