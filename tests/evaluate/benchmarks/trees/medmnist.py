"""MedMNIST npz files of the published keys, shapes and types: grey, RGB or volumes; labels (N, 1) or (N, 14)."""

from pathlib import Path

import numpy as np

from evaluate.benchmarks.trees._tiny import chest, tile
from m3bind.evaluate.benchmarks import get


def make_set(name: str, root: Path, n: int = 12, seed: int = 0, size: int = 28) -> None:
    """At least 3 training, 1 validation and 2 test images per class; each of several findings is also absent."""
    rng = np.random.default_rng(seed)
    root.mkdir(parents=True, exist_ok=True)
    bench = get(f"medmnist_{name}")
    classes, arrays = len(bench.classes), {}
    for word, each in (("train", max(3, n // classes)), ("val", 1), ("test", 2)):
        kinds = np.arange(classes * each) % classes
        arrays[f"{word}_images"] = np.stack([image(rng, name, int(kind), size) for kind in kinds])
        labels = kinds[:, None].astype(np.uint8)
        if name == "chestmnist":
            labels = (np.arange(classes) == labels).astype(np.uint8)
            labels[0] = 0  # nothing found
            labels[-1, :2] = 1
        arrays[f"{word}_labels"] = labels
    np.savez_compressed(root / (f"{name}.npz" if size == 28 else f"{name}_{size}.npz"), **arrays)


def image(rng: np.random.Generator, name: str, kind: int, size: int) -> np.ndarray:
    if name.endswith("3d"):
        return np.clip((chest(rng, kind, (size,) * 3) + 1000) / 8, 0, 255).astype(np.uint8)
    pixels = tile(rng, kind, size)
    return pixels if name in ("pathmnist", "retinamnist") else pixels[..., 0]
