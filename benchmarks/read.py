"""Reading files with m3bind (checks, canonical form, in a child process) against the bare library call in this process.

    python benchmarks/read.py [--files 48] [--repeats 5]

Formats: PNG and JPEG (Pillow), NIfTI (nibabel), DICOM plain and JPEG 2000 (pydicom), WFDB (wfdb), EDF (edfio). The
bare call decodes to a NumPy array of the values; ours also checks, reorients, rescales and records each step. Files are
generated, of clinical sizes. `alone`: one file after the other; `pool`: all cores, threads around the bare call, worker
processes for ours. 1.00x: equally fast; above: ours is faster.
"""

import argparse
import os
import statistics
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from _measure import alternate, conditions, ratio
from m3bind import modalities

LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")


def grey(side: int, seed: int) -> np.ndarray:
    rows = np.cumsum(np.random.default_rng(seed).normal(size=(side, side)), axis=1)
    return ((rows - rows.min()) / np.ptp(rows) * 4095).astype(np.uint16)


def make_png(folder: Path, n: int) -> list[Path]:
    for i in range(n):
        Image.fromarray((grey(1024, i) >> 4).astype(np.uint8)).save(folder / f"{i}.png")
    return sorted(folder.glob("*.png"))


def make_jpeg(folder: Path, n: int) -> list[Path]:
    for i in range(n):
        tone = (grey(768, i) >> 4).astype(np.uint8)
        Image.fromarray(np.stack([tone, tone // 2, tone // 3], -1)).save(folder / f"{i}.jpg", quality=92)
    return sorted(folder.glob("*.jpg"))


def make_nifti(folder: Path, n: int) -> list[Path]:
    import nibabel

    for i in range(n):
        volume = np.stack([grey(192, i * 100 + k).astype(np.int16) - 1024 for k in range(32)], -1)
        nibabel.save(nibabel.Nifti1Image(volume, np.diag([1, 1, 3, 1])), folder / f"{i}.nii.gz")
    return sorted(folder.glob("*.nii.gz"))


def make_dicom(folder: Path, n: int, compressed: bool = False) -> list[Path]:
    import pydicom
    from pydicom.data import get_testdata_file

    for i in range(n):
        dataset = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
        values = grey(512 if compressed else 1024, i)
        dataset.Modality, dataset.SOPClassUID = "DX", "1.2.840.10008.5.1.4.1.1.1.1"
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
        dataset.Rows, dataset.Columns, dataset.PixelRepresentation = *values.shape, 0
        dataset.BitsStored, dataset.HighBit, dataset.PixelData = 12, 11, values.tobytes()
        dataset.RescaleSlope, dataset.RescaleIntercept = 1, 0
        for keyword in ("SmallestImagePixelValue", "LargestImagePixelValue", "PixelPaddingValue"):
            if keyword in dataset:
                del dataset[keyword]
        if compressed:
            import imagecodecs
            from pydicom.encaps import encapsulate

            stream = imagecodecs.jpeg2k_encode(values, level=0, codecformat="j2k", reversible=True, bitspersample=12)
            dataset.PixelData = encapsulate([stream])
            dataset["PixelData"].VR = "OB"
            dataset.file_meta.TransferSyntaxUID = pydicom.uid.JPEG2000Lossless
        dataset.save_as(folder / f"{i}.dcm")
    return sorted(folder.glob("*.dcm"))


def make_wfdb(folder: Path, n: int) -> list[Path]:
    import wfdb

    for i in range(n):
        signal = np.cumsum(np.random.default_rng(i).normal(size=(5000, 12)), 0) / 100
        wfdb.wrsamp(f"r{i}", 500, ["mV"] * 12, list(LEADS), signal, fmt=["16"] * 12, write_dir=str(folder))
    return sorted(folder.glob("*.hea"))


def make_edf(folder: Path, n: int) -> list[Path]:
    import edfio

    for i in range(n):
        rng = np.random.default_rng(i)
        signals = [edfio.EdfSignal(np.cumsum(rng.normal(size=5000)) / 100, 500, label=lead, physical_dimension="mV")
                   for lead in LEADS]  # fmt: skip
        edfio.Edf(signals).write(folder / f"{i}.edf")
    return sorted(folder.glob("*.edf"))


def bare_picture(path: Path) -> object:
    return np.asarray(Image.open(path)).astype(np.float32)


def bare_nifti(path: Path) -> object:
    import nibabel

    return np.asarray(nibabel.load(path).dataobj, dtype=np.float32)


def bare_dicom(path: Path) -> object:
    import pydicom
    from pydicom.pixels import apply_modality_lut

    dataset = pydicom.dcmread(path)
    return apply_modality_lut(dataset.pixel_array, dataset).astype(np.float32)


def bare_wfdb(path: Path) -> object:
    import wfdb

    return wfdb.rdrecord(str(path.with_suffix(""))).p_signal.astype(np.float32)


def bare_edf(path: Path) -> object:
    import edfio

    return np.stack([signal.data for signal in edfio.read_edf(path).signals]).astype(np.float32)


FORMATS: dict[str, tuple[str, Callable[[Path, int], list[Path]], Callable[[Path], object]]] = {
    "PNG 1024": ("xray", make_png, bare_picture),
    "JPEG 768": ("retina", make_jpeg, bare_picture),
    "NIfTI 192x192x32": ("ct", make_nifti, bare_nifti),
    "DICOM 1024": ("xray", make_dicom, bare_dicom),
    "DICOM J2K 512": ("xray", lambda folder, n: make_dicom(folder, n, compressed=True), bare_dicom),
    "WFDB 12 x 5000": ("ecg", make_wfdb, bare_wfdb),
    "EDF 12 x 5000": ("ecg", make_edf, bare_edf),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--formats", nargs="*", default=list(FORMATS), choices=list(FORMATS))
    options = parser.parse_args()
    cores = os.cpu_count() or 1
    print(conditions(), f"; {options.files} files a format, {options.repeats} repeats")
    with ThreadPoolExecutor(cores) as pool, tempfile.TemporaryDirectory() as temporary:
        for title in options.formats:
            modality, make, bare = FORMATS[title]
            folder = Path(temporary) / modality / title.replace(" ", "_")
            folder.mkdir(parents=True)
            paths = make(folder, options.files)

            def ours(path: Path, modality: str = modality) -> object:
                return modalities.decode(modality, path)

            forms = {
                "bare": lambda bare=bare, paths=paths: [bare(path) for path in paths],
                "ours": lambda ours=ours, paths=paths: [ours(path) for path in paths],
                "bare pool": lambda bare=bare, paths=paths: list(pool.map(bare, paths)),
                "ours pool": lambda ours=ours, paths=paths: list(pool.map(ours, paths)),
            }
            seconds = alternate(forms, options.repeats)
            rate = {name: options.files / statistics.median(found) for name, found in seconds.items()}
            print(
                f"  {title:18} alone: {rate['ours']:6.1f} files/s, {ratio(seconds['bare'], seconds['ours'])} of bare; "
                f"pool: {rate['ours pool']:6.1f} files/s, {ratio(seconds['bare pool'], seconds['ours pool'])}",
                flush=True,
            )
    print(conditions())


if __name__ == "__main__":
    main()
