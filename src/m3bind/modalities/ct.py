"""Computed tomography: NIfTI volumes, or single PNG/JPEG slices, -> (D, H, W) float32 in Hounsfield units.

Axes of the array, whatever the file's own orientation is:
    D  slices, first = most inferior (towards the feet), last = most superior (towards the head)
    H  rows, first = anterior (front of the patient)
    W  columns, first = the patient's right
so `array[k]` is an axial slice as radiologists look at it, and the whole is in the order that ITK readers give (LPS).
"""

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from m3bind.errors import ReadError
from m3bind.modalities import _images
from m3bind.modalities.base import Modality, Sample

NIFTI_SUFFIXES = (".nii.gz", ".nii")
MAX_VOXELS = 512 * 512 * 2048
AIR_HU = -1024.0
PADDING_HU = -1500.0  # nothing physical is below; scanners fill the outside of the field of view with -2000 or -3024
PICTURE_HU = (-1000.0, 1000.0)  # where the black and white of a picture are put: most models clip there
LUNG_WINDOW = (-1350.0, 150.0)  # level -600, width 1500
SOFT_WINDOW = (-160.0, 240.0)  # level 40, width 400
_MILLIMETRES = {"mm": 1.0, "meter": 1000.0, "micron": 0.001, "unknown": 1.0}


class CT(Modality):
    """CT volumes and slices."""

    name: ClassVar[str] = "ct"
    title: ClassVar[str] = "CT"
    color: ClassVar[str] = "#228833"
    suffixes: ClassVar[tuple[str, ...]] = NIFTI_SUFFIXES + _images.PICTURE_SUFFIXES

    def read(self, path: Path | str) -> Sample:
        """Decode a volume: array (D, H, W) in HU, spacing (D, H, W) in mm.

        A PNG or JPEG slice has lost its Hounsfield units: it becomes (1, H, W), black at -1000 and white at +1000,
        without spacing and with a warning.

        Raises:
            ReadError: missing, damaged, too large, not three-dimensional, or a colour picture.
        """
        path = _images.check_file(path, self)
        if _images.ending(path, _images.PICTURE_SUFFIXES):
            return self._read_slice(path)
        return self._read_nifti(path)

    def _read_slice(self, path: Path) -> Sample:
        grey, steps, warnings = _images.read_grey(path, "a CT slice")
        low, high = PICTURE_HU
        steps.append(f"grey 0..1 put linearly on {low:g}..{high:g}")
        warnings.append("a picture at some window level: its values are not Hounsfield units")
        return Sample(self.name, (grey * (high - low) + low)[None], steps=steps, warnings=warnings)

    def _read_nifti(self, path: Path) -> Sample:
        import nibabel  # slow to import; only volumes need it
        from nibabel import affines

        try:
            image = nibabel.load(path)
            shape = tuple(image.shape)
            while len(shape) > 3 and shape[-1] == 1:
                shape = shape[:-1]
            if len(shape) != 3:
                raise ReadError(path, f"{len(shape)} dimensions {shape}, not a volume", "split it into 3-D volumes")
            if int(np.prod(shape, dtype=np.int64)) > MAX_VOXELS or min(shape) < 1:
                raise ReadError(path, f"{shape} voxels, outside 1..{MAX_VOXELS:,}", "crop or resample it first")
            if image.get_data_dtype().fields is not None or image.get_data_dtype().kind == "c":
                raise ReadError(path, "colour or complex values, not a CT", "check the modality of this file")
            nearest = nibabel.as_closest_canonical(image.slicer[(slice(None),) * 3 + (0,) * (image.ndim - 3)])
            values = np.asarray(nearest.dataobj, dtype=np.float32)
        except ReadError:
            raise
        except Exception as error:  # nibabel and zlib raise many kinds for damaged files
            kind = _images.looks_like(path) if path.suffix == ".nii" else ""
            reason = f"not a readable NIfTI file ({kind or error or type(error).__name__})"
            raise ReadError(path, reason, "fetch or export it again") from error
        steps, warnings = _describe(image)
        scale = _MILLIMETRES.get(image.header.get_xyzt_units()[0], 1.0)
        sides = affines.voxel_sizes(nearest.affine) * scale
        # RAS (x to the right, y to the front, z to the head) -> D towards the head, H to the back, W to the left
        volume = np.ascontiguousarray(values[::-1, ::-1, :].transpose(2, 1, 0))
        spacing = (float(sides[2]), float(sides[1]), float(sides[0]))
        if not all(0.05 <= side <= 20 for side in spacing):
            warnings.append(f"unlikely voxel size {' x '.join(f'{side:.3g}' for side in spacing)} mm")
        volume = _clean(volume, steps, warnings)
        return Sample(self.name, volume, spacing=spacing, steps=steps, warnings=warnings + _doubts(volume))

    def thumbnail(self, sample: Sample, size: int = 160) -> Image.Image:
        """Four evenly spaced slices (2 x 2, feet to head) in a lung window; the middle one if there are fewer than 8.

        A soft-tissue window is used where less than 10 % of the middle slice is as dark as lung.
        """
        volume = sample.array
        depth = volume.shape[0]
        middle = volume[depth // 2]
        lung = float(((middle > -950) & (middle < -500)).mean()) > 0.1
        low, high = PICTURE_HU if sample.spacing is None else LUNG_WINDOW if lung else SOFT_WINDOW
        rows, columns = (side if sample.spacing is None else side * mm
                         for side, mm in zip(middle.shape, (sample.spacing or (1, 1, 1))[1:]))  # fmt: skip
        picks = [depth // 2] if depth < 8 else [round(depth * f) for f in (0.2, 0.4, 0.6, 0.8)]
        cell = size if len(picks) == 1 else (size - 1) // 2
        scale = cell / max(rows, columns)
        box = (max(1, round(columns * scale)), max(1, round(rows * scale)))
        tiles = [_images.to_thumbnail((volume[k] - low) / (high - low), cell).resize(box) for k in picks]
        if len(tiles) == 1:
            return tiles[0]
        sheet = Image.new("RGB", (2 * box[0] + 1, 2 * box[1] + 1))
        for place, tile in enumerate(tiles):
            sheet.paste(tile, ((place % 2) * (box[0] + 1), (place // 2) * (box[1] + 1)))
        return sheet


def _describe(image: Any) -> tuple[list[str], list[str]]:
    """Steps and warnings about orientation and units of a NIfTI image."""
    import nibabel
    from nibabel import affines

    codes = "".join(code or "?" for code in nibabel.aff2axcodes(image.affine))
    steps, warnings = [f"turned from {codes} to slices towards the head, rows to the back, columns to the left"], []
    header = image.header
    if "qform_code" in header and int(header["qform_code"]) == 0 and int(header["sform_code"]) == 0:
        warnings.append("the header states no orientation: left and right, head and feet are a guess")
    elif float(np.max(affines.obliquity(image.affine))) > np.deg2rad(10):
        warnings.append("tilted by more than 10 degrees; turned to the nearest axes only")
    if header.get_xyzt_units()[0] == "unknown":
        steps.append("no unit of length in the header; millimetres assumed")
    return steps, warnings


def _clean(volume: NDArray[np.float32], steps: list[str], warnings: list[str]) -> NDArray[np.float32]:
    """Replace values that are no measurement (NaN, infinite, outside the field of view) by air."""
    broken = ~np.isfinite(volume)
    if broken.any():
        warnings.append(f"{broken.mean():.1%} of the voxels are NaN or infinite; taken as air")
        volume[broken] = AIR_HU
    padding = volume < PADDING_HU
    if padding.any():
        steps.append(f"{padding.mean():.1%} of the voxels below {PADDING_HU:g} HU (padding) set to {AIR_HU:g}")
        volume[padding] = AIR_HU
    return volume


def _doubts(volume: NDArray[np.float32]) -> list[str]:
    """Warnings about values that are unlikely to be Hounsfield units of a CT."""
    step = max(1, round((volume.size / 500_000) ** (1 / 3)))
    some = volume[::step, ::step, ::step]
    low, high = float(some.min()), float(some.max())
    if high - low < 10:
        return [f"nearly blank: values from {low:g} to {high:g} only" + (", rescaled?" if high <= 1 else "")]
    if low >= 0 and high <= 255:
        return ["values from 0 to 255: a picture at some window level rather than Hounsfield units?"]
    if low >= 0:
        return ["no value below 0: MR, or the rescale intercept (often -1024) is missing?"]
    if float((some > 3071).mean()) > 0.01 or high > 32767:
        return [f"out of the range of Hounsfield units: up to {high:.0f}"]
    return []
