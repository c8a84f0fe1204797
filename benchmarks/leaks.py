"""Planted copies that `m3bind leaks` finds, other pairs that it reports, its time and memory for many files.

    python benchmarks/leaks.py MANIFEST [--only xray ...] [--copies 40] [--split test] [--seed 0] [--work DIR]
    python benchmarks/leaks.py --scale 100000 [--work DIR]

First form: of each kind, `copies` random files of the split are copied into train under other names and patients; then
the command runs on the manifest with these rows. Per kind: the share of copies that are reported as a pair with their
original. "Other pairs" are those of files that were not copied from one another: real duplicates, or false ones; the
page in the working folder shows them.

    images  png; JPEG of quality 90, 60; resized by half; 5 % cropped at every side; flipped left to right;
            all together: flipped, by half, 2.5 % cropped at every side, JPEG of quality 75
    ct      saved as uncompressed NIfTI; shifted by a slice; flipped left to right
    ecg     renamed header; saved with another gain and format; resampled to 500 and 250 Hz

Second form: thumbprints of n files, each a mixture of two of 2,000 smooth random images; one in a hundred is a noisy
or flipped copy of an earlier one. Reports time and memory of the sieve and of verification, without reading files.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import json
import resource
import tempfile
import time
from collections import Counter
from pathlib import Path

import cv2
import nibabel
import numpy as np
import pandas as pd
import wfdb
from PIL import Image
from scipy.signal import resample

from m3bind.core.device import Compute
from m3bind.evaluate.near_duplicates import SIDE, candidates, near_duplicates
from m3bind.experiments.leaks import LeakOptions, leak_report

COMMON = 100  # one in so many of the scale test is a copy


def half(pixels):
    return cv2.resize(pixels, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)


def cropped(pixels, part):
    rows, columns = (round(side * part) for side in pixels.shape[:2])
    return np.ascontiguousarray(pixels[rows : len(pixels) - rows, columns : pixels.shape[1] - columns])


def flipped(pixels):
    return np.ascontiguousarray(pixels[:, ::-1])


IMAGES = {  # kind -> function of pixels, JPEG quality (0: PNG)
    "png": (lambda pixels: pixels, 0),
    "jpeg 90": (lambda pixels: pixels, 90),
    "jpeg 60": (lambda pixels: pixels, 60),
    "half": (half, 0),
    "crop 5 %": (lambda pixels: cropped(pixels, 0.05), 0),
    "flip": (flipped, 0),
    "all": (lambda pixels: half(cropped(flipped(pixels), 0.025)), 75),
}


def copy_image(path, kind, target):
    change, quality = IMAGES[kind]
    image = Image.fromarray(change(np.asarray(Image.open(path))))
    target = target.with_suffix(".jpg" if quality else ".png")
    image.save(target, **({"quality": quality} if quality else {}))
    return target


CT = {
    "re-saved": lambda voxels: voxels,
    "slice": lambda voxels: np.concatenate([voxels[..., 1:], voxels[..., -1:]], axis=-1),
    "flip": lambda voxels: voxels[::-1],
}


def copy_ct(path, kind, target):
    image = nibabel.load(path)
    voxels = CT[kind](np.asarray(image.dataobj))
    nibabel.save(nibabel.Nifti1Image(voxels, image.affine), target := target.with_suffix(".nii"))
    return target


ECG = {"renamed": None, "re-saved": 1.0, "500 Hz": 500, "250 Hz": 250}


def copy_ecg(path, kind, target):
    record = wfdb.rdrecord(str(path.with_suffix("")))
    signal, rate = record.p_signal, record.fs
    if kind in ("500 Hz", "250 Hz"):
        signal, rate = resample(signal, round(len(signal) * ECG[kind] / rate)), ECG[kind]
    keep = {"fmt": record.fmt, "adc_gain": record.adc_gain, "baseline": record.baseline} if kind == "renamed" else {}
    fmt = {"fmt": ["16"] * record.n_sig, "adc_gain": [500.0] * record.n_sig, "baseline": [0] * record.n_sig}
    folder, name = str(target.parent), target.name
    wfdb.wrsamp(name, rate, record.units, record.sig_name, signal, write_dir=folder, **(keep or fmt))
    return target


COPIERS = {"ct": (copy_ct, CT), "ecg": (copy_ecg, ECG)}


def plant(manifest, only, copies, split, seed, work):
    """Write the copies; a manifest with them; origin of each row of it (row of the file), and the kind of each copy."""
    table = pd.read_csv(manifest, dtype=str, keep_default_na=False)
    table = table[table.modality.isin(only)] if only else table
    table["path"] = [str((manifest.parent / path).resolve()) for path in table.path]
    table = table.replace(r"\s+", " ", regex=True).reset_index(drop=True)  # one line a row
    rng, rows, origin, kinds = np.random.default_rng(seed), [], list(range(len(table))), {}
    slices = (table.modality == "ct") & table.path.str.endswith((".png", ".jpg"))  # images, copied as such
    for modality, part in table.groupby(table.modality.where(~slices, "ct slice"), sort=True):
        copier, names = COPIERS.get(modality, (copy_image, IMAGES))
        of_split = part.index[part.split == split].to_numpy()
        for kind in names:
            for place in rng.permutation(of_split)[:copies]:
                number = len(table) + len(rows)
                path = copier(Path(table.path[place]), kind, work / f"copy_{number}")
                new = {"path": str(path), "split": "train", "patient": f"planted{number}"}
                rows.append(table.loc[place].to_dict() | new | ({"id": f"planted{number}"} if "id" in table else {}))
                origin.append(int(place))
                kinds[number] = (modality, kind)
    changed = pd.concat([table, pd.DataFrame(rows)], ignore_index=True)
    changed.to_csv(work / "planted.csv", index=False)
    return changed, origin, kinds


def measure(arguments, work):
    changed, origin, kinds = plant(
        arguments.manifest, arguments.only, arguments.copies, arguments.split, arguments.seed, work
    )
    options = LeakOptions(root=Path("/"), cache=work / "cache", page=work / "leaks.html", json=work / "leaks.json")
    start = time.perf_counter()
    leak_report(work / "planted.csv", options, Compute(workers=arguments.workers))
    seconds = time.perf_counter() - start
    found, other = set(), Counter()
    lines = []
    for modality, report in json.loads((work / "leaks.json").read_text()).items():
        for copy in report["copies"]:
            one, two = (row - 2 for row in copy["rows"])  # the header is row 1
            if origin[one] == origin[two]:
                found.add((min(one, two), max(one, two)))
            elif max(one, two) < len(changed) - len(kinds):  # not by way of a copy
                other[modality] += 1
                lines.append(
                    f"    {modality} rows {copy['rows']} correlation {copy['correlation']:.3f} {copy['splits']}"
                )
    for modality, kind in dict.fromkeys(kinds.values()):
        numbers = [number for number, key in kinds.items() if key == (modality, kind)]
        hits = sum((origin[number], number) in found for number in numbers)
        print(f"{modality:10s} {kind:9s} found {hits} of {len(numbers)}")
    for modality, originals in changed.modality[: len(changed) - len(kinds)].value_counts(sort=False).items():
        rate = 1000 * other[modality] / originals
        print(f"{modality:10s} other pairs {other[modality]} of {originals:,} files ({rate:.2f} per 1,000)")
    print(*lines, sep="\n")
    print(f"{len(changed):,} files in {seconds:.0f} s; page: {work / 'leaks.html'}")


def scale(n, work, workers):
    """Time and memory of both steps for n thumbprints on disk."""
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(2000, 24, 24)).astype(np.float32)
    bases = np.stack([cv2.resize(plane, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC) for plane in noise])
    prints = np.memmap(work / "prints", np.uint8, "w+", shape=(n, 1, SIDE, SIDE))
    copies = {}
    for i in range(n):
        if i % COMMON == COMMON - 1:
            of = int(rng.integers(i))
            plane = prints[of, 0, :, ::-1] if i % (2 * COMMON) == COMMON - 1 else prints[of, 0]
            values = plane + rng.normal(scale=4, size=plane.shape)
            copies[i] = of
        else:
            one, two = rng.choice(len(bases), 2, replace=False)
            values = 128 + 24 * (bases[one] + bases[two])
        prints[i, 0] = values.clip(1, 255).astype(np.uint8)
    prints.flush()
    start, processor = time.perf_counter(), time.process_time()
    pairs, _ = candidates(prints)
    print(f"sieve: {n:,} files, {len(pairs):,} candidates, {_since(start, processor)}")
    start, processor = time.perf_counter(), time.process_time()
    found = {(pair.first, pair.second) for pair in near_duplicates(prints, workers=workers)}
    print(f"sieve and verify: {len(found):,} pairs, {_since(start, processor)}")
    hits = sum((of, i) in found for i, of in copies.items())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(f"found {hits} of {len(copies)} copies; peak memory {peak:,} MiB, the mapped thumbprints included")


def _since(start, processor):
    return f"{time.perf_counter() - start:.0f} s ({time.process_time() - processor:.0f} processor seconds)"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path, nargs="?")
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--copies", type=int, default=40)
    parser.add_argument("--split", default="test")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=int)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--work", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        place = arguments.work or Path(temporary)
        place.mkdir(parents=True, exist_ok=True)
        if arguments.scale:
            scale(arguments.scale, place, arguments.workers)
        elif arguments.manifest:
            measure(arguments, place)
        else:
            parser.error("give a manifest or --scale")
