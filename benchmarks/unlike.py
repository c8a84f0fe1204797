"""Inputs that are called unlike the training data: false alarms on valid and test, changed files, files of other kinds.

Per modality of a run's space: the share of flagged valid and test files, and of test files as changed below or of
files of other kinds given to the modality's tower. Of each kind at most `--items` files, chosen at random (seed 0).

    python benchmarks/unlike.py runs/mini5 [--split test] [--items 60] [--other FILE.csv] [--json FILE]

`--other`: a table with the columns path and label, of images for the towers of images (other body parts). `--split
valid` while choosing settings.
"""

import argparse
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter, zoom

from m3bind import modalities
from m3bind.errors import M3BindError
from m3bind.modalities.base import Sample
from m3bind.pipeline.outputs import open_run
from m3bind.space.bundle import Space, load

Floats = NDArray[np.float32]
Change = Callable[[Sample], Sample]


def changed(function: Callable[[Floats], Floats]) -> Change:
    """A change of the array alone."""
    return lambda sample: replace(sample, array=np.ascontiguousarray(function(sample.array), np.float32))


def scaled(side: float) -> Callable[[Floats], Floats]:
    """An image (H, W[, 3]) whose longer side has `side` pixels (below 1: that share of its own)."""

    def resize(array: Floats) -> Floats:
        factor = side if side < 1 else side / max(array.shape[:2])
        size = [max(1, round(length * factor)) for length in array.shape[1::-1]]
        picture = Image.fromarray(np.rint(array.clip(0, 1) * 255).astype(np.uint8))
        return np.asarray(picture.resize((size[0], size[1]), Image.Resampling.LANCZOS), np.float32) / 255

    return resize


def jpeg(quality: int) -> Callable[[Floats], Floats]:
    """An image compressed and opened again."""

    def compress(array: Floats) -> Floats:
        file = io.BytesIO()
        Image.fromarray(np.rint(array.clip(0, 1) * 255).astype(np.uint8)).save(file, "jpeg", quality=quality)
        return np.asarray(Image.open(file), np.float32) / 255

    return compress


def noisy(spread: float, alone: bool = False) -> Callable[[Floats], Floats]:
    """Normal noise, added or around the mean."""

    def add(array: Floats) -> Floats:
        base = array.mean() if alone else array
        return base + spread * np.random.default_rng(0).standard_normal(array.shape).astype(np.float32)

    return add


def centre(array: Floats) -> Floats:
    """The middle half of an image along both axes: twice the magnification."""
    height, width = array.shape[:2]
    return array[height // 4 : -(height // 4), width // 4 : -(width // 4)]


def tiled(array: Floats) -> Floats:
    """Four mirrored copies at half the size: half the magnification."""
    small = scaled(0.5)(array)
    wide = np.concatenate([small, small[:, ::-1]], axis=1)
    return np.concatenate([wide, wide[::-1]], axis=0)


def thinned(factor: int) -> Change:
    """A volume of a lower resolution within its planes."""

    def change(sample: Sample) -> Sample:
        factors = [1, *(max(2, round(length / factor)) / length for length in sample.array.shape[1:])]
        array = zoom(sample.array, factors, order=1).astype(np.float32)
        spacing = sample.spacing and tuple(np.array(sample.spacing) * sample.array.shape / array.shape)
        return replace(sample, array=array, spacing=spacing)

    return change


IMAGES: dict[str, Change] = {
    "half resolution": changed(scaled(0.5)),
    "quarter resolution": changed(scaled(0.25)),
    "64 pixels": changed(scaled(64)),
    "JPEG 50": changed(jpeg(50)),
    "blur 2 px": changed(lambda array: gaussian_filter(array, (2, 2, 0)[: array.ndim])),
    "noise .1": changed(noisy(0.1)),
    "grey noise": changed(noisy(0.15, alone=True)),
    "blank": changed(lambda array: np.full_like(array, array.mean())),
    "2x magnification": changed(centre),
    "half magnification": changed(tiled),
}
VOLUMES: dict[str, Change] = {
    "half resolution": thinned(2),
    "quarter resolution": thinned(4),
    "blur 1 voxel": changed(lambda array: gaussian_filter(array, 1)),
    "noise 200 HU": changed(noisy(200)),
    "noise alone": changed(noisy(300, alone=True)),
    "blank": changed(lambda array: np.full_like(array, -1000)),
    "2x magnification": lambda sample: replace(sample, spacing=sample.spacing and tuple(np.array(sample.spacing) * 2)),
}
SIGNALS: dict[str, Change] = {
    "noise .2 mV": changed(noisy(0.2)),
    "noise alone": changed(noisy(0.3, alone=True)),
    "flat": changed(np.zeros_like),
    "nearly flat": changed(lambda array: 0.01 * noisy(0.5, alone=True)(array)),
    "six leads flat": changed(lambda array: array * (np.arange(len(array)) % 2)[:, None]),
    "ten times the gain": changed(lambda array: 10 * array),
    "a tenth of the gain": changed(lambda array: 0.1 * array),
    "leads swapped": changed(lambda array: array[::-1]),
}


def kinds_of(sample: Sample) -> Mapping[str, Change]:
    """The changes that a sample can have."""
    return SIGNALS if sample.rate is not None else VOLUMES if sample.unit or sample.modality == "ct" else IMAGES


def decoded(modality: str, paths: Sequence[Path], items: int) -> list[Sample]:
    """At most `items` of the files."""
    chosen = np.sort(np.random.default_rng(0).permutation(len(paths))[:items])
    return [modalities.decode(modality, paths[at]) for at in chosen]


def reasons(space: Space, modality: str, samples: Sequence[Sample]) -> list[str]:
    """Of each sample that the tower takes."""
    found: list[str] = []
    for sample in samples:
        try:
            found += space.examine_inputs([space.model(modality).preprocess(sample)], modality)[1]
        except M3BindError:  # another shape than the tower takes
            continue
    return found


def line(modality: str, kind: str, found: Sequence[str]) -> dict[str, object]:
    """Printed, and returned as a row."""
    flagged = [reason for reason in found if reason]
    most = max(set(flagged), key=flagged.count) if flagged else ""
    row = {"modality": modality, "kind": kind, "n": len(found), "flagged": len(flagged), "reason": most}
    print(
        f"{modality:10s} {kind:28s} n {len(found):4d}  flagged {len(flagged) / max(len(found), 1):5.2f}  {most}",
        flush=True,
    )
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--space", type=Path)
    parser.add_argument("--split", default="test")
    parser.add_argument("--items", type=int, default=60)
    parser.add_argument("--other", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    space, run = load(options.space or options.run / "space"), open_run(options.run)
    records, _ = run.read_records()
    paths = {}
    for name in space.modalities:
        for split in ("valid", options.split):
            paths[name, split] = [Path(record.path) for record in records.where(name, split)]
    samples = {name: decoded(name, paths[name, options.split], options.items) for name in space.modalities}
    others: dict[str, list[Path]] = {}
    if options.other:
        for label, part in pd.read_csv(options.other).groupby("label"):
            others[str(label)] = [options.other.parent / path for path in part["path"]]
    rows = []
    for name in space.modalities:
        if name not in space.measures:
            continue
        for split in dict.fromkeys(("valid", options.split)):
            usual = decoded(name, paths[name, split], 10 * options.items)
            rows.append(line(name, f"{split}, as shipped", reasons(space, name, usual)))
        for kind, change in kinds_of(samples[name][0]).items():
            rows.append(line(name, kind, reasons(space, name, [change(sample) for sample in samples[name]])))
        for other, given in samples.items():
            if other != name and (found := reasons(space, name, given)):
                rows.append(line(name, f"files of {other}", found))
        if kinds_of(samples[name][0]) is IMAGES:
            for kind, files in others.items():
                rows.append(line(name, kind, reasons(space, name, decoded("xray", files, options.items))))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
