"""CT series, enhanced CT and NIfTI files that tests of the CT reader write, with their contents."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian, generate_uid

SIDES = (2.0, 0.8, 0.8)  # mm of D, H, W
ORIGIN = np.array([-10.0, 20.0, -100.0])
AXIAL = [1.0, 0, 0, 0, 1, 0]
Change = Callable[[Dataset], Any]


def body(level: float = 40.0, depth: int = 12, side: int = 24) -> np.ndarray:
    """(D, H, W) in HU: a body of `level` in air, with a ramp along D so that every slice is another."""
    rng = np.random.default_rng(int(abs(level)))
    volume = np.full((depth, side, side), -1000.0) + rng.integers(-9, 10, (depth, side, side))
    volume[:, 6:-6, 6:-6] = level + rng.integers(-9, 10, (depth, side - 12, side - 12))
    volume[:, 10:13, 10:13] = -800 + np.arange(depth)[:, None, None]
    return volume


def plain(shape: tuple[int, int], sop_class: str = CTImageStorage) -> Dataset:
    """A header without a picture."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = sop_class, generate_uid()
    dataset.file_meta.MediaStorageSOPClassUID = sop_class
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.Modality, dataset.SeriesInstanceUID, dataset.SeriesNumber = "CT", "1.2.3", 3
    dataset.PatientName, dataset.PatientID = "Secret^Person", "SECRET-1"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.Rows, dataset.Columns = shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 0
    return dataset


def slices(volume: np.ndarray, first: int = 1, z: float = 0.0) -> list[Dataset]:
    """One axial data set a slice, unsigned with intercept -1024, numbered from `first`; `z` mm towards the head."""
    found = []
    for k, plane in enumerate(volume):
        dataset = plain(plane.shape)
        dataset.InstanceNumber = first + k
        dataset.ImagePositionPatient = [*ORIGIN[:2], float(ORIGIN[2] + SIDES[0] * k + z)]
        dataset.ImageOrientationPatient, dataset.PixelSpacing = AXIAL, list(SIDES[1:])
        dataset.SliceThickness = SIDES[0]
        dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = 1, -1024, "HU"
        dataset.PixelData = (plane + 1024).astype(np.uint16).tobytes()
        found.append(dataset)
    return found


def each(datasets: list[Dataset], **values: Any) -> list[Dataset]:
    """The same with entries set: plain values, or functions of the place in the list."""
    for k, dataset in enumerate(datasets):
        for name, value in values.items():
            setattr(dataset, name, value(k) if callable(value) else value)
    return datasets


def write(folder: Path, datasets: list[Dataset], seed: int | None = 0) -> Path:
    """Files whose names are in no order of the slices (`seed` None: in the order given)."""
    folder.mkdir(parents=True, exist_ok=True)
    start = len(list(folder.iterdir()))
    order = np.arange(len(datasets)) if seed is None else np.random.default_rng(seed).permutation(len(datasets))
    for name, k in enumerate(order):
        datasets[k].save_as(folder / f"{start + name:04d}.dcm", enforce_file_format=True)
    return folder


def group(**values: Any) -> Sequence:
    """A sequence of one item with these entries."""
    item = Dataset()
    for name, value in values.items():
        setattr(item, name, value)
    return Sequence([item])


def enhanced(path: Path, frames: list[tuple[np.ndarray, float, dict[str, Sequence]]], **top: Any) -> Path:
    """One enhanced object of frames: picture (H, W) in HU, z in mm, more functional groups."""
    dataset = plain(frames[0][0].shape, EnhancedCTImageStorage)
    dataset.NumberOfFrames = len(frames)
    shared = Dataset()
    shared.PixelMeasuresSequence = group(PixelSpacing=list(SIDES[1:]), SliceThickness=SIDES[0])
    shared.PlaneOrientationSequence = group(ImageOrientationPatient=AXIAL)
    shared.PixelValueTransformationSequence = group(RescaleSlope=1, RescaleIntercept=-1024, RescaleType="HU")
    dataset.SharedFunctionalGroupsSequence = Sequence([shared])
    items = []
    for _, z, groups in frames:
        item = Dataset()
        item.PlanePositionSequence = group(ImagePositionPatient=[*ORIGIN[:2], float(ORIGIN[2] + z)])
        for name, value in groups.items():
            setattr(item, name, value)
        items.append(item)
    dataset.PerFrameFunctionalGroupsSequence = Sequence(items)
    dataset.PixelData = np.stack([(picture + 1024).astype(np.uint16) for picture, _, _ in frames]).tobytes()
    for name, value in top.items():
        setattr(dataset, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path
