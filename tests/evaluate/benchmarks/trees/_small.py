"""Parts of the generated trees: tables, small images, DICOM files, ECG records, people of a given split."""

import csv
import gzip
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

from evaluate.benchmarks.trees._tiny import LEADS, ecg, write_record
from m3bind.data.splits import patient_splits

SIDE = 48
SPLITS = ("train", "test", "train", "test", "train", "valid")  # of people, again and again


def write_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]], delimiter: str = ",") -> None:
    """A CSV file, compressed where the name ends in .gz; None is a blank cell."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, delimiter=delimiter, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(["" if cell is None else cell for cell in row] for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = buffer.getvalue().encode()
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)


def pixels(seed: int) -> np.ndarray:
    """A smooth (SIDE, SIDE) uint8 image with the full range of greys."""
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=(SIDE, SIDE)), 4)
    return np.rint(255 * (noise - noise.min()) / np.ptp(noise)).astype(np.uint8)


def write_image(path: Path, seed: int, colour: bool = False) -> None:
    """An image in the format of the name's ending; in colour a disc on black, like a fundus photograph."""
    grey = pixels(seed)
    if colour:
        y, x = np.mgrid[:SIDE, :SIDE] / SIDE - 0.5
        disc = (np.hypot(x, y) < 0.48)[..., None]
        grey = (np.array([0.75, 0.4, 0.2]) * (90 + 0.6 * grey[..., None]) * disc).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(grey).save(path)


def write_dicom(path: Path, seed: int, inverted: bool = False) -> None:
    """A radiograph as DICOM; `inverted`: stored as MONOCHROME1, where 0 is white."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    stored = pixels(seed)
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.1"
    dataset.SOPInstanceUID = generate_uid(entropy_srcs=[path.stem])
    dataset.Modality, dataset.BodyPartExamined, dataset.ViewPosition = "CR", "CHEST", "PA"
    dataset.PatientID = path.stem
    dataset.SamplesPerPixel, dataset.PixelRepresentation = 1, 0
    dataset.PhotometricInterpretation = "MONOCHROME1" if inverted else "MONOCHROME2"
    dataset.Rows, dataset.Columns = stored.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
    dataset.PixelData = (255 - stored if inverted else stored).tobytes()
    dataset["PixelData"].VR = "OB"
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)


def write_ecg(stem: Path, seed: int, leads: Sequence[str], rate: int = 500, seconds: float = 2.0) -> None:
    """A WFDB record with these leads in this order."""
    signal = ecg(np.random.default_rng(seed), seed % 5, rate, seconds)
    order = [LEADS.index(lead.upper()) for lead in leads]
    write_record(stem, signal[order], rate, leads)


def people(
    wanted: Sequence[str], fractions: Mapping[str, float], name: Callable[[str], str], start: int = 1
) -> Iterator[str]:
    """Numbers from `start` on, one for each wanted split, that the hash of `patient_splits` puts there."""
    numbers = map(str, count(start))
    for split in wanted:
        yield next(number for number in numbers if patient_splits([name(number)], fractions)[name(number)] == split)


def cycled(n: int) -> list[str]:
    """`n` splits, half of them train and two of six test."""
    return [SPLITS[k % len(SPLITS)] for k in range(n)]
