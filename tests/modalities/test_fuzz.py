"""Mutated files of eight formats: a sample or a ReadError, never another error, and never a hang.

M3BIND_FUZZ sets the number of cases (default 600, CI 5,000); they are the same for the same number.
"""

import gzip
import os
import time
import zlib
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from m3bind import modalities
from m3bind.errors import ReadError
from m3bind.modalities.formats import isolation
from m3bind.modalities.formats.limits import VARIABLE, from_environment

CASES = int(os.environ.get("M3BIND_FUZZ", "600"))
SLOWEST = 5.0  # seconds
INTERESTING = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def picture(seed: int, colour: bool) -> Image.Image:
    rng = np.random.default_rng(seed)
    smooth = np.cumsum(rng.normal(size=(48, 48, 3 if colour else 1)), axis=1)
    scaled = (smooth - smooth.min()) / np.ptp(smooth) * 255
    if colour:
        scaled *= (1.0, 0.6, 0.4)
    return Image.fromarray(scaled.astype(np.uint8).squeeze())


def make_png(folder: Path) -> tuple[str, Path]:
    picture(0, False).save(folder / "a.png")
    return "xray", folder / "a.png"


def make_jpeg(folder: Path) -> tuple[str, Path]:
    picture(1, True).save(folder / "a.jpg", exif=Image.Exif().tobytes())
    return "retina", folder / "a.jpg"


def make_tiff(folder: Path) -> tuple[str, Path]:
    import tifffile

    tifffile.imwrite(folder / "a.tif", np.asarray(picture(2, True)), tile=(16, 16))
    return "pathology", folder / "a.tif"


def make_nifti(folder: Path) -> tuple[str, Path]:
    values = np.random.default_rng(3).integers(-1000, 400, (12, 12, 8)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), folder / "a.nii.gz")
    return "ct", folder / "a.nii.gz"


def make_dicom(folder: Path) -> tuple[str, Path]:
    import pydicom
    from pydicom.data import get_testdata_file

    pydicom.dcmread(get_testdata_file("CT_small.dcm")).save_as(folder / "a.dcm")
    return "ct", folder / "a.dcm"


def make_compressed_dicom(folder: Path) -> tuple[str, Path]:
    import pydicom
    from pydicom.data import get_testdata_file

    dataset = pydicom.dcmread(get_testdata_file("MR_small_jp2klossless.dcm"))
    dataset.Modality, dataset.SOPClassUID = "DX", "1.2.840.10008.5.1.4.1.1.1.1"
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.save_as(folder / "j.dcm")
    return "xray", folder / "j.dcm"


def make_wfdb(folder: Path) -> tuple[str, Path]:
    import wfdb

    names = ["I", "II", "III", "AVR", "AVL", "AVF", "V1", "V2", "V3", "V4", "V5", "V6"]
    signal = np.cumsum(np.random.default_rng(4).normal(size=(300, 12)), 0) / 30
    wfdb.wrsamp("a", 100, ["mV"] * 12, names, signal, fmt=["16"] * 12, write_dir=str(folder))
    return "ecg", folder / "a.hea"


def make_edf(folder: Path) -> tuple[str, Path]:
    import edfio

    names = ["I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6"]
    rng = np.random.default_rng(5)
    signals = [edfio.EdfSignal(rng.normal(size=300) / 3, 100, label=n, physical_dimension="mV") for n in names]
    edfio.Edf(signals).write(folder / "a.edf")
    return "ecg", folder / "a.edf"


MAKERS: dict[str, Callable[[Path], tuple[str, Path]]] = {
    "png": make_png,
    "jpeg": make_jpeg,
    "tiff": make_tiff,
    "nifti": make_nifti,
    "dicom": make_dicom,
    "jpeg 2000": make_compressed_dicom,
    "wfdb": make_wfdb,
    "edf": make_edf,
}


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """One to six changes: bits, interesting numbers, cuts, repeats, moved blocks; the head is hit more often."""
    out = bytearray(data)
    for _ in range(int(rng.integers(1, 7))):
        if len(out) < 8:
            return bytes(out)
        reach = len(out) if rng.random() < 0.5 else min(len(out), 512)
        at = int(rng.integers(0, reach))
        kind = rng.integers(0, 6)
        if kind == 0:
            out[at] ^= 1 << int(rng.integers(0, 8))
        elif kind == 1:
            width = int(rng.choice([1, 2, 4]))
            value = int(rng.choice(INTERESTING)) & (256**width - 1)
            out[at : at + width] = value.to_bytes(width, "little" if rng.random() < 0.5 else "big")
        elif kind == 2:
            del out[at : at + int(rng.integers(1, 64))]
        elif kind == 3:
            out[at:at] = out[at : at + int(rng.integers(1, 64))]
        elif kind == 4:
            out[at:] = out[at : max(at + 1, len(out) - int(rng.integers(1, len(out))))]
        else:
            out[at : at + 16] = rng.integers(0, 256, 16, dtype=np.uint8).tobytes()
    return bytes(out)


def mutate_png(data: bytes, rng: np.random.Generator) -> bytes:
    """Changes inside chunks, with checksums that fit again; otherwise nothing gets past the first chunk."""
    chunks, at = [], 8
    while at + 12 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += 12 + size
    hit = int(rng.integers(0, len(chunks) - 1))
    out = data[:8]
    for number, (kind, body) in enumerate(chunks):
        if number == hit:
            body = (
                zlib.compress(mutate(zlib.decompress(body), rng)) if kind == b"IDAT" else mutate(body + bytes(8), rng)
            )
        checksum = zlib.crc32(kind + body).to_bytes(4, "big")
        out += len(body).to_bytes(4, "big") + kind + body + checksum
    return out


def mutate_gzip(data: bytes, rng: np.random.Generator) -> bytes:
    """Changes of the content; otherwise most end in the checksum."""
    return gzip.compress(mutate(gzip.decompress(data), rng), 1)


INSIDE: dict[str, Callable[[bytes, np.random.Generator], bytes]] = {"png": mutate_png, "nifti": mutate_gzip}


@pytest.mark.parametrize("name", MAKERS)
def test_mutated_files(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "memory=1e9 seconds=5")
    monkeypatch.setattr(isolation, "LIMITS", from_environment("memory=1e9 seconds=5"))
    monkeypatch.setattr(isolation, "_pool", None)
    modality, seed = MAKERS[name](tmp_path)
    with ThreadPoolExecutor(isolation.WORKERS) as pool:  # sound to begin with; starting a worker is not timed
        list(pool.map(lambda _: modalities.read(modality, seed), range(4 * isolation.WORKERS)))
    data = seed.read_bytes()
    inside = INSIDE.get(name, mutate)

    def case(number: int) -> tuple[str, float]:
        rng = np.random.default_rng([number, len(name)])
        folder = tmp_path / str(number)
        folder.mkdir()
        for companion in tmp_path.glob("a.*"):
            if companion != seed and companion.is_file():
                (folder / companion.name).write_bytes(companion.read_bytes())
        changed = (inside if number % 2 else mutate)(data, rng)
        path = folder / seed.name
        path.write_bytes(changed)
        start = time.monotonic()
        try:
            sample = modalities.read(modality, path)
            assert np.isfinite(sample.array).all()
            kind = "read"
        except ReadError as error:
            kind = "crash" if "crashed" in error.reason else "slow" if "longer than" in error.reason else "refused"
        return kind, time.monotonic() - start

    with ThreadPoolExecutor(isolation.WORKERS) as pool:
        results = list(pool.map(case, range(CASES // len(MAKERS))))
    counts = Counter(kind for kind, _ in results)
    print(name, dict(counts), f"slowest {max(seconds for _, seconds in results):.2f} s")
    assert counts["slow"] == 0 and max(seconds for _, seconds in results) < SLOWEST + 1
    assert counts["read"] and counts["refused"]  # mutations reach both sides
    assert isolation._pool is not None
    isolation._pool.close()
