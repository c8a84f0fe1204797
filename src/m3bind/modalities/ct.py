"""Computed tomography: DICOM series, NIfTI, npz, archives, PNG/JPEG slices -> (D, H, W) float32 in Hounsfield units.

* a folder, or a DICOM file: one series of slices, or one multi-frame object (`series`).
* `.zip`, `.tar`, `.tar.gz`: a DICOM series, or one NIfTI or npz file, unpacked into a temporary folder (`archive`).
* `.nii`, `.nii.gz`: one volume (`nifti`).
* `.npz`: the array `ct`, or the only one of three dimensions.
* `.png`, `.jpg`: one slice at some window level.
* `resample`: a volume at another voxel size.

Axes of the array, whatever the file's own orientation is:
    D  slices, first = most inferior (towards the feet), last = most superior (towards the head)
    H  rows, first = anterior (front of the patient)
    W  columns, first = the patient's right
so `array[k]` is an axial slice as radiologists view it, and the volume is in the order of ITK readers (LPS).
"""

import math
import zipfile
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from m3bind.errors import ReadError, in_words
from m3bind.modalities.base import Modality, Sample
from m3bind.modalities.formats import archive as _archive
from m3bind.modalities.formats import dicom, images, limits, nifti, series
from m3bind.modalities.formats import volumes as _volumes
from m3bind.modalities.formats.ct_mixed import alternation_doubts
from m3bind.modalities.formats.volumes import resample

__all__ = ["CT", "resample"]

IMAGE_HU = (-1000.0, 1000.0)  # black and white of PNG and JPEG slices: most models clip there
LUNG_WINDOW = (-1350.0, 150.0)  # level -600, width 1500
SOFT_WINDOW = (-160.0, 240.0)  # level 40, width 400
RAD_CHEST_CT = (0.8, 0.8, 0.8)  # mm; int16, clipped to -1000..1000 HU, slices from the head down


class CT(Modality):
    """CT volumes and slices."""

    name: ClassVar[str] = "ct"
    title: ClassVar[str] = "CT"
    color: ClassVar[str] = "#228833"
    suffixes: ClassVar[tuple[str, ...]] = (
        *nifti.SUFFIXES, *dicom.SUFFIXES, *_archive.SUFFIXES, ".npz", *images.IMAGE_SUFFIXES,
    )  # fmt: skip
    folders: ClassVar[bool] = True
    version: ClassVar[int] = 2
    libraries: ClassVar[tuple[str, ...]] = ("nibabel", "imagecodecs", *dicom.LIBRARIES)

    def read(self, path: Path | str) -> Sample:
        """Decode a volume: array (D, H, W) in HU, spacing (D, H, W) in mm.

        A folder is one DICOM series. A PNG or JPEG slice has no Hounsfield units: it becomes (1, H, W), black at
        -1000 and white at +1000, without spacing and with a warning.

        Raises:
            ReadError: missing, damaged, over a limit, not three-dimensional, or of another kind.
        """
        path = Path(path)
        if path.is_dir():
            return series.read_folder(path)
        if path.is_file() and path.stat().st_size and dicom.is_dicom(path):  # exports often lack an ending
            return series.read_files([path], path)
        path = images.check_file(path, self)
        limits.check_bytes(path)
        kind = images.ending(path, self.suffixes)
        if kind in dicom.SUFFIXES:
            return series.read_files([path], path)
        if kind in _archive.SUFFIXES:
            return self._read_archive(path)
        if kind in images.IMAGE_SUFFIXES:
            return self._read_slice(path)
        return self._read_npz(path) if kind == ".npz" else nifti.read_nifti(path)

    def _read_archive(self, path: Path) -> Sample:
        with _archive.extracted(path) as (folder, nested):
            files = sorted(folder.iterdir())
            volumes = [file for file in files if images.ending(file, (*nifti.SUFFIXES, ".npz"))]
            slices = any(map(dicom.is_dicom, files))
            if len(volumes) > 1 and not slices:
                raise ReadError(path, f"{len(volumes)} volumes (NIfTI, npz) in it", "pack one volume per archive")
            if nested and not volumes and not slices:
                raise ReadError(path, f"{nested} archives inside the archive, and no CT", "unpack it first")
            if not volumes and not slices and any(file.suffix in (".hdr", ".img") for file in files):
                raise ReadError(path, "a volume in two files (.hdr and .img), which is not read", "save it as .nii.gz")
            try:
                if volumes and not slices:
                    file = volumes[0]
                    sample = self._read_npz(file) if file.suffix == ".npz" else nifti.read_nifti(file)
                else:
                    sample = series.read_files(files, path)
            except ReadError as error:  # name the archive, not a file of the temporary folder
                raise ReadError(path, error.reason, error.hint) from error
        sample.steps.insert(0, f"unpacked {len(files)} files")
        if volumes and slices:
            sample.warnings.append(f"a DICOM series taken, {len(volumes)} other volumes (NIfTI, npz) in it skipped")
        if nested:
            sample.warnings.append(f"{nested} archives inside the archive were not opened")
        return sample

    def _read_slice(self, path: Path) -> Sample:
        grey, steps, warnings = images.read_grey(path, "a CT slice")
        low, high = IMAGE_HU
        steps.append(f"grey 0..1 mapped linearly to {low:g}..{high:g}")
        warnings.append("an image at some window level: its values are not Hounsfield units")
        return Sample(self.name, (grey * (high - low) + low)[None], steps=steps, warnings=warnings)

    def _read_npz(self, path: Path) -> Sample:
        try:
            values, key, spacing = _load_npz(path)
        except (ReadError, MemoryError):
            raise
        except Exception as error:  # zipfile, zlib and numpy raise many kinds for damaged files
            raise ReadError(path, f"not a readable npz file ({in_words(error)})", "fetch it again") from error
        steps, warnings = [f"array {values.shape} of {values.dtype} read"], []
        clipped = values.dtype == np.int16 and values.min(initial=0) >= -1000 and values.max(initial=0) <= 1000
        if spacing is None and key == "ct" and clipped and min(values.shape) > 1:
            spacing, values = RAD_CHEST_CT, values[::-1]
            steps.append("taken as RAD-ChestCT: 0.8 mm, slices from the head down, turned to start at the feet")
            warnings.append("npz states no spacing and orientation: those of RAD-ChestCT are a guess")
        else:
            warnings.append(f"npz states no orientation{'' if spacing else ' and spacing'}: taken as D, H, W")
        volume = np.array(values, dtype=np.float32, order="C")
        if spacing:
            warnings += _volumes.spacing_doubts(spacing)
        unit = "HU" if _volumes.finish(volume, spacing, steps, warnings) else ""
        warnings += alternation_doubts(volume)
        return Sample(self.name, volume, spacing=spacing, unit=unit, steps=steps, warnings=warnings)

    def thumbnail(self, sample: Sample, size: int = 160) -> Image.Image:
        """Four evenly spaced slices (2 x 2, feet to head) in a lung window; the middle one if there are fewer than 8.

        A soft-tissue window is used if less than 10 % of the middle slice is as dark as lung.
        """
        volume = sample.array
        depth = volume.shape[0]
        middle = volume[depth // 2]
        lung = float(((middle > -950) & (middle < -500)).mean()) > 0.1
        low, high = IMAGE_HU if sample.spacing is None else LUNG_WINDOW if lung else SOFT_WINDOW
        rows, columns = (side if sample.spacing is None else side * mm
                         for side, mm in zip(middle.shape, (sample.spacing or (1, 1, 1))[1:]))  # fmt: skip
        picks = [depth // 2] if depth < 8 else [round(depth * f) for f in (0.2, 0.4, 0.6, 0.8)]
        cell = size if len(picks) == 1 else (size - 1) // 2
        scale = cell / max(rows, columns)
        box = (max(1, round(columns * scale)), max(1, round(rows * scale)))
        tiles = [images.to_thumbnail((volume[k] - low) / (high - low), cell).resize(box) for k in picks]
        if len(tiles) == 1:
            return tiles[0]
        sheet = Image.new("RGB", (2 * box[0] + 1, 2 * box[1] + 1))
        for place, tile in enumerate(tiles):
            sheet.paste(tile, ((place % 2) * (box[0] + 1), (place // 2) * (box[1] + 1)))
        return sheet


def _load_npz(path: Path) -> tuple[NDArray[Any], str, tuple[float, float, float] | None]:
    """The volume of an npz file, the name of its array, and its array `spacing` of three numbers (mm) if present.

    Raises ReadError: no or several volumes, not plain numbers, over a limit.
    """
    with zipfile.ZipFile(path) as archive:
        limits.check_count(path, len(archive.infolist()), "files")
        arrays = {i.filename[:-4]: i for i in archive.infolist() if i.filename.endswith(".npy")}
        heads = {name: _npy_header(archive, info) for name, info in arrays.items()}
        volumes = [name for name, (shape, _) in heads.items() if len(shape) == 3]
        name = "ct" if "ct" in heads else volumes[0] if len(volumes) == 1 else ""
        if not name:
            raise ReadError(path, f"{len(volumes)} arrays of 3 dimensions and none named ct", "name the volume ct")
        shape, dtype = heads[name]
        if len(shape) != 3:
            raise ReadError(path, f"{len(shape)} dimensions, not a volume", "split it into 3-D volumes")
        if dtype.kind not in "iuf":
            raise ReadError(path, "its array is not of plain numbers", "save it as int16 or float32")
        limits.check_count(path, math.prod(shape), "voxels")
        limits.check_ratio(path, math.prod(shape) * dtype.itemsize, path.stat().st_size)
        spacing = None
        if heads.get("spacing", ((), dtype))[0] == (3,) and heads["spacing"][1].kind in "iuf":
            with archive.open(arrays["spacing"]) as handle:
                sides = np.lib.format.read_array(handle, allow_pickle=False).astype(float)
            if np.isfinite(sides).all() and (sides > 0).all():
                spacing = (float(sides[0]), float(sides[1]), float(sides[2]))
        with archive.open(arrays[name]) as handle:
            return np.lib.format.read_array(handle, allow_pickle=False), name, spacing


def _npy_header(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and dtype of an array inside an npz; its data are not unpacked."""
    with archive.open(info) as handle:
        version = np.lib.format.read_magic(handle)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(handle)
    return shape, dtype
