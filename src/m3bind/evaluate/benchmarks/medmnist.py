"""MedMNIST v2 and its larger sizes: small open sets in npz files (Yang et al. 2023), those of our modalities.

A file holds train_images, train_labels, val_images, ... : (N, H, W) grey, (N, H, W, 3) RGB or (N, D, H, W) volumes, all
uint8, and labels (N, 1), or (N, 14) for several findings. The largest available size is used: NAME.npz (28),
NAME_64.npz, NAME_128.npz, NAME_224.npz. Images become PNG files; a second run resumes where the first stopped.

CT values were mapped to 0..255 by a window that the publication names only as "abdominal" for organs and not at all for
nodules and fractures; they are mapped back by the usual windows of these sources (`Volumes.window`), so Hounsfield
units are approximate.
"""

import re
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from m3bind.errors import ManifestError
from m3bind.evaluate.benchmarks._extract import npz_rows, save_png, save_volume
from m3bind.evaluate.benchmarks.base import Benchmark, BenchmarkItem, Fault, PublishedFile

SPLITS = {"train": "train", "val": "valid", "test": "test"}


class MedMnist(Benchmark):
    """Common parts of the sets; one subclass per set."""

    role: ClassVar = "both"
    licence: ClassVar[str] = "CC BY 4.0"
    url: ClassVar[str] = "https://zenodo.org/records/10519652"
    access: ClassVar[str] = "Open: one npz file per set and size from Zenodo."
    extracts: ClassVar[bool] = True
    notes: ClassVar[str] = "Official splits. Patients are not published; each image counts as its own."
    largest: ClassVar[int] = 224  # pixels of the largest size
    several: ClassVar[bool] = False  # several findings per image instead of one class
    ending: ClassVar[str] = ".png"
    sizes: ClassVar[str] = "_64.npz, _128, _224"
    md5: ClassVar[str] = ""  # of the file with the largest size, from the set's own package (medmnist 3.0.2)
    size: ClassVar[int] = 0  # bytes of that file

    def __init_subclass__(cls) -> None:
        stem = cls.name.removeprefix("medmnist_")
        cls.layout, cls.needs = f"{stem}.npz, or {stem}{cls.sizes}", (f"{stem}*.npz",)
        if cls.md5:
            name = f"{stem}_{cls.largest}.npz"
            cls.files = (PublishedFile(name, f"{cls.url}/files/{name}?download=1", f"md5:{cls.md5}", cls.size),)

    def items(self, root: Path, out: Path) -> Iterator[BenchmarkItem | Fault]:
        """One item per image: train, valid, test, in the order of the arrays."""
        path, size = self._file(root)
        for word, split in SPLITS.items():
            rows = zip_longest(npz_rows(path, f"{word}_images"), npz_rows(path, f"{word}_labels"))
            for k, (pixels, label) in enumerate(rows):
                if pixels is None or label is None:
                    yield Fault(0, f"{word} has unequal numbers of images and labels", path.name, "of unequal length")
                    break
                if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or label.dtype.kind not in "iu":
                    raise ManifestError(
                        f"{path}: {word}_images or {word}_labels are not of this set; download it again"
                    )
                place = f"{size}/{word}/{k // 1000:03d}/{k:06d}{self.ending}"
                numbers = np.flatnonzero(label) if self.several else label.reshape(-1)[:1]
                if numbers.max(initial=0) >= len(self.classes) or numbers.min(initial=0) < 0:
                    yield Fault(0, f"its label is not one of {len(self.classes)}", place, "of unknown label")
                    continue
                names = tuple(self.classes[number] for number in numbers)
                label, labels = ("", names) if self.several else (names[0], ())
                write = partial(self.save, out / place, pixels, size)
                yield BenchmarkItem(place, split, self.modalities[0], label=label, labels=labels, write=write)

    def _file(self, root: Path) -> tuple[Path, int]:
        """The npz file of the largest size, and that size.

        Raises:
            ManifestError: no file with a known name.
        """
        stem = self.name.removeprefix("medmnist_")
        sizes = {}
        for path in filter(Path.is_file, root.glob(f"{stem}*.npz")):
            if name := re.fullmatch(rf"{stem}(?:_(\d+))?\.npz", path.name):
                sizes[int(name[1] or 28)] = path
        if not sizes:
            raise ManifestError(f"{root}: no {stem}.npz or {stem}_SIZE.npz; use the published file names")
        return sizes[max(sizes)], max(sizes)

    def save(self, target: Path, pixels: NDArray[np.uint8], size: int) -> None:
        """Write one image of the set."""
        save_png(target, pixels)


class Volumes(MedMnist):
    """The sets of CT volumes: 0..255 -> HU linearly on `window`, voxels of `side` / size mm."""

    modalities: ClassVar[tuple[str, ...]] = ("ct",)
    ending: ClassVar[str] = ".nii.gz"
    largest: ClassVar[int] = 64
    sizes: ClassVar[str] = "_64.npz"
    window: ClassVar[tuple[float, float]] = (-1000.0, 1000.0)  # HU of 0 and 255
    side: ClassVar[float] = 28.0  # mm of the cube

    def save(self, target: Path, pixels: NDArray[np.uint8], size: int) -> None:
        """Write one volume as NIfTI."""
        low, high = self.window
        save_volume(target, low + pixels.astype(np.float64) * ((high - low) / 255), (self.side / size,) * 3)


class PathMnist(MedMnist):
    """Colorectal tissue (NCT-CRC-HE-100K, test from another centre)."""

    name: ClassVar[str] = "medmnist_pathmnist"
    md5: ClassVar[str] = "2c51a510bcdc9cf8ddb2af93af1eadec"
    size: ClassVar[int] = 11_800_000_000
    title: ClassVar[str] = "PathMNIST"
    modalities: ClassVar[tuple[str, ...]] = ("pathology",)
    classes: ClassVar[tuple[str, ...]] = (
        "adipose", "background", "debris", "lymphocytes", "mucus", "smooth muscle", "normal colon mucosa",
        "cancer-associated stroma", "colorectal adenocarcinoma epithelium",
    )  # fmt: skip
    known: ClassVar[Mapping[str, int]] = {"train": 89996, "valid": 10004, "test": 7180}


class PneumoniaMnist(MedMnist):
    """Chest X-rays of children with and without pneumonia."""

    name: ClassVar[str] = "medmnist_pneumoniamnist"
    md5: ClassVar[str] = "d6a3c71de1b945ea11211b03746c1fe1"
    size: ClassVar[int] = 214_384_716
    title: ClassVar[str] = "PneumoniaMNIST"
    modalities: ClassVar[tuple[str, ...]] = ("xray",)
    classes: ClassVar[tuple[str, ...]] = ("normal", "pneumonia")
    known: ClassVar[Mapping[str, int]] = {"train": 4708, "valid": 524, "test": 624}


class ChestMnist(MedMnist):
    """Chest X-rays of NIH ChestX-ray14 with fourteen findings."""

    name: ClassVar[str] = "medmnist_chestmnist"
    md5: ClassVar[str] = "45bd33e6f06c3e8cdb481c74a89152aa"
    title: ClassVar[str] = "ChestMNIST"
    modalities: ClassVar[tuple[str, ...]] = ("xray",)
    several: ClassVar[bool] = True
    classes: ClassVar[tuple[str, ...]] = (
        "atelectasis", "cardiomegaly", "effusion", "infiltration", "mass", "nodule", "pneumonia", "pneumothorax",
        "consolidation", "edema", "emphysema", "fibrosis", "pleural", "hernia",
    )  # fmt: skip
    known: ClassVar[Mapping[str, int]] = {"train": 78468, "valid": 11219, "test": 22433}


class RetinaMnist(MedMnist):
    """Fundus photographs of DeepDRiD with five grades of diabetic retinopathy."""

    name: ClassVar[str] = "medmnist_retinamnist"
    md5: ClassVar[str] = "eae7e3b6f3fcbda4ae613ebdcbe35348"
    size: ClassVar[int] = 127_992_567
    title: ClassVar[str] = "RetinaMNIST"
    modalities: ClassVar[tuple[str, ...]] = ("retina",)
    classes: ClassVar[tuple[str, ...]] = tuple(
        f"{grade} diabetic retinopathy" for grade in ("no", "mild", "moderate", "severe", "proliferative")
    )
    known: ClassVar[Mapping[str, int]] = {"train": 1080, "valid": 120, "test": 400}
    notes: ClassVar[str] = (
        "Official splits. Its labels are the grades 0 to 4 of DeepDRiD, named here as MESSIDOR-2's. Both eyes of a "
        "person, and two images per eye, count as separate patients: intervals are too narrow."
    )


class OrganMnist3d(Volumes):
    """Organs of LiTS in boxes of their own size, abdominal window."""

    name: ClassVar[str] = "medmnist_organmnist3d"
    md5: ClassVar[str] = "58a2205adf14a9d0a189cb06dc78bf10"
    title: ClassVar[str] = "OrganMNIST3D"
    classes: ClassVar[tuple[str, ...]] = (
        "liver", "kidney-right", "kidney-left", "femur-right", "femur-left", "bladder", "heart", "lung-right",
        "lung-left", "spleen", "pancreas",
    )  # fmt: skip
    known: ClassVar[Mapping[str, int]] = {"train": 972, "valid": 161, "test": 610}
    window: ClassVar[tuple[float, float]] = (-160.0, 240.0)  # abdomen: level 40, width 400
    notes: ClassVar[str] = (
        "Official splits. Grey 0..255 is mapped to -160..240 HU, an abdominal window; the exact one is not "
        "published. Every organ fills its cube, so the true voxel size is lost; a cube of 28 mm is written. Directions "
        "are not published."
    )


class NoduleMnist3d(Volumes):
    """Lung nodules of LIDC-IDRI, benign or malignant, cubes of 28 mm."""

    name: ClassVar[str] = "medmnist_nodulemnist3d"
    md5: ClassVar[str] = "c47c5b7d457bf6332200d2ea6d64ecd8"
    title: ClassVar[str] = "NoduleMNIST3D"
    classes: ClassVar[tuple[str, ...]] = ("benign", "malignant")
    known: ClassVar[Mapping[str, int]] = {"train": 1158, "valid": 165, "test": 310}
    window: ClassVar[tuple[float, float]] = (-1024.0, 400.0)
    notes: ClassVar[str] = (
        "Official splits. Grey 0..255 is mapped to -1024..400 HU, the window its authors use for lung nodules "
        "elsewhere; the one of this set is not published, nor are the directions."
    )


class FractureMnist3d(Volumes):
    """Rib fractures of RibFrac, three kinds, cubes of 64 mm."""

    name: ClassVar[str] = "medmnist_fracturemnist3d"
    md5: ClassVar[str] = "f01d7e6316aedf4210da0da5b7437b42"
    title: ClassVar[str] = "FractureMNIST3D"
    classes: ClassVar[tuple[str, ...]] = (
        "buckle rib fracture", "nondisplaced rib fracture", "displaced rib fracture",
    )  # fmt: skip
    known: ClassVar[Mapping[str, int]] = {"train": 1027, "valid": 103, "test": 240}
    window: ClassVar[tuple[float, float]] = (-100.0, 1000.0)  # bone: level 450, width 1100
    side: ClassVar[float] = 64.0
    notes: ClassVar[str] = (
        "Official splits. Grey 0..255 is mapped to -100..1000 HU, the bone window of the RibFrac baseline; the one "
        "of this set is not published, nor are the directions."
    )
