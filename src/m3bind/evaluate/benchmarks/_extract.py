"""Extraction of images from containers: files are written atomically, and existing files are left unchanged.

* `save_png`, `save_volume`, `save_ecg`: one image, CT volume or ECG.
* `npz_rows`: the rows of a large array in an npz file, one by one.

Shapes: T samples of an ECG; D, H, W a volume (feet to head, front to back, right to left).
"""

import gzip
import math
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from m3bind.core.files import atomic_path, write_text
from m3bind.data.tables import most_unpacked
from m3bind.errors import ManifestError, in_words

LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
MAX_ROW = 1 << 28  # bytes of one image or volume of an array


def save_png(target: Path, pixels: NDArray[np.uint8]) -> None:
    """Write (H, W) grey or (H, W, 3) RGB pixels as PNG."""
    from PIL import Image

    if not target.exists():
        with atomic_path(target) as temporary:
            Image.fromarray(pixels).save(temporary, format="PNG")


def save_volume(target: Path, volume: NDArray[Any], spacing: Sequence[float]) -> None:
    """Write a volume (D, H, W) in HU, `spacing` (D, H, W) in mm, as .nii.gz that reads back in the same order."""
    import nibabel

    if target.exists():
        return
    depth, height, width = spacing
    affine = np.diag([-width, -height, depth, 1.0])  # NIfTI counts to the left, to the front and up
    image = nibabel.Nifti1Image(np.round(volume).astype(np.int16).transpose(2, 1, 0), affine)
    image.header.set_xyzt_units("mm")
    with atomic_path(target) as temporary:
        temporary.write_bytes(gzip.compress(image.to_bytes(), compresslevel=1, mtime=0))


def save_ecg(stem: Path, signal: NDArray[Any], rate: int, leads: Sequence[str] = LEADS) -> None:
    """Write a signal (leads, T) in mV as WFDB record of 16 bit and 1 µV; NaN stays NaN. The header comes last."""
    header = stem.with_name(stem.name + ".hea")
    if header.exists():
        return
    micro = np.clip(np.round(np.asarray(signal, dtype=np.float64) * 1000), -32767, 32767)
    stored = np.where(np.isnan(micro), -32768, micro).astype("<i2")
    lines = [f"{stem.name} {len(stored)} {rate} {stored.shape[1]}"]
    for lead, values in zip(leads, stored):
        checksum = (int(values.sum(dtype=np.int64)) + 32768) % 65536 - 32768
        lines.append(f"{stem.name}.dat 16 1000/mV 16 0 {values[0]} {checksum} 0 {lead}")
    with atomic_path(stem.with_name(stem.name + ".dat")) as temporary:
        temporary.write_bytes(stored.T.tobytes())
    write_text(header, "\n".join(lines) + "\n")


def npz_rows(path: Path, name: str) -> Iterator[NDArray[Any]]:
    """The rows of the array `name` in the npz file `path`; only one row is in memory.

    Raises:
        ManifestError: not an npz file, no such array, or an array of objects.
    """
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as handle:
            stored = archive.getinfo(f"{name}.npy").file_size
            version = np.lib.format.read_magic(handle)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, columns_first, dtype = read(handle)
            if columns_first or dtype.hasobject or not shape:
                raise ManifestError(f"{path}: its array {name} is not a plain list of images; download it again")
            size = math.prod(shape[1:]) * dtype.itemsize
            if not 0 < size <= MAX_ROW or size * shape[0] > stored or stored > most_unpacked(path):
                raise ManifestError(f"{path}: its array {name} declares {shape} of {dtype}, which it cannot hold")
            for _ in range(shape[0]):
                yield np.frombuffer(_exactly(handle, size), dtype).reshape(shape[1:])
    except (ManifestError, GeneratorExit):
        raise
    except Exception as error:  # zipfile, zlib and numpy raise many types for damaged files
        raise ManifestError(
            f"{path}: its array {name} cannot be read ({in_words(error)}); download it again"
        ) from error


def _exactly(handle: IO[bytes], size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        chunk = handle.read(size - len(data))
        if not chunk:
            raise EOFError("the file ends early")
        data += chunk
    return bytes(data)
