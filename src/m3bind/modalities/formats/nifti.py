"""NIfTI files (.nii, .nii.gz, compressed or not, regardless of the extension) -> (D, H, W) float32 in Hounsfield units.

* `read_nifti`: one volume, with warnings about missing and contradictory header entries.

The header is checked before the data are unpacked. If sform and qform are both stated, the sform is used, as in most
software, and contradictions are reported.

Shapes: A, B, C the three axes as the file stores them; D, H, W in the patient (see `ct`). Lengths in mm.
"""

import contextlib
import logging
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m3bind.errors import ReadError, in_words
from m3bind.modalities.base import Sample
from m3bind.modalities.formats import images, limits, volumes
from m3bind.modalities.formats.ct_mixed import alternation_doubts
from m3bind.modalities.formats.gzip import inflated

Numbers = NDArray[np.float64]

SUFFIXES = (".nii.gz", ".nii")
_GZIP = b"\x1f\x8b"
_HEADER = 540  # bytes of the longer of the two versions
_EXTENSIONS = 1 << 24  # bytes that may lie between header and data
_UNITS = {1: 1000.0, 2: 1.0, 3: 0.001}  # code -> mm
_SAME_SIZE = 0.01  # fraction by which equal sizes may differ
_SAME_WAY = 1.0  # degrees by which equal directions may differ
_AGAIN = "fetch or export it again"
_SILENT = logging.Logger("silent", logging.CRITICAL + 1)  # nibabel's messages quote the header


@dataclass
class _Header:
    """The header of one volume."""

    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    offset: int  # bytes before the data
    slope: float
    intercept: float
    affine: Numbers  # (4, 4) voxel numbers -> RAS (x to the right, y to the front, z to the head), in `millimetres`
    millimetres: float
    steps: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def read_nifti(path: Path) -> Sample:
    """One volume, scaled once, reoriented to the patient's axes.

    Raises:
        ReadError: damaged, over a limit, not one volume of plain numbers, or voxels without size.
    """
    try:
        with open(path, "rb") as handle:
            packed = handle.read(2) == _GZIP
        header = _read_header(path, packed)
        raw = _stored(path, header, packed)
    except (ReadError, MemoryError):
        raise
    except Exception as error:  # nibabel and zlib raise many types for damaged files
        kind = "" if packed else images.looks_like(path)
        raise ReadError(path, f"not a readable NIfTI file ({kind or in_words(error)})", _AGAIN) from error
    steps, warnings = header.steps, header.warnings
    if packed != path.name.lower().endswith(".gz"):
        steps.append(f"{'' if packed else 'not '}compressed by gzip, contrary to its extension")
    sides = np.linalg.norm(header.affine[:3, :3], axis=0)
    # RAS to LPS; one direction per axis of `raw`
    directions = (np.diag([-1.0, -1.0, 1.0]) @ header.affine[:3, :3] / sides).T
    axes, flips, tilt = volumes.placement(directions)
    if tilt > volumes.TILT:
        warnings.append(f"tilted by {tilt:.0f} degrees; reoriented to the nearest axes only")
    volume, stack = volumes.empty(header.shape, axes, flips)
    with np.errstate(over="ignore", invalid="ignore"):  # infinities are reported by volumes.finish
        for k in range(raw.shape[2]):
            stack[:, :, k] = raw[:, :, k] * header.slope + header.intercept
    if (header.slope, header.intercept) != (1, 0):
        steps.append(f"rescaled by slope {header.slope:g} and intercept {header.intercept:g} (once)")
    spacing = tuple(float(sides[a] * header.millimetres) for a in axes)
    warnings += volumes.spacing_doubts(spacing)
    hounsfield = volumes.finish(volume, spacing, steps, warnings)
    warnings += alternation_doubts(volume)
    unit = "HU" if hounsfield else ""
    return Sample("ct", volume, spacing=spacing, unit=unit, steps=steps, warnings=warnings)


def _stored(path: Path, header: _Header, packed: bool) -> NDArray[Any]:
    """The values (A, B, C) before scaling; a single gzip stream is inflated by libdeflate, twice as fast as zlib.

    Raises ReadError: fewer than the header declares.
    """
    start, shape, dtype = header.offset, header.shape, header.dtype
    size = start + math.prod(shape) * dtype.itemsize
    if not packed:
        return np.memmap(path, dtype, "r", start, shape, order="F")
    import imagecodecs

    data: bytes | bytearray = b""
    with contextlib.suppress(imagecodecs.DeflateError):  # several streams, data after the volume, or damaged
        data = imagecodecs.gzip_decode(path.read_bytes(), out=size)
    if len(data) != size:
        data = inflated(path, size)
    if len(data) < size:
        raise _cut_short(path, len(data), size)
    return np.ndarray(shape, dtype, data, start, order="F")


def _cut_short(path: Path, stored: int, size: int) -> ReadError:
    return ReadError(path, f"not a readable NIfTI file (cut short: {stored:,} of {size:,} bytes)", _AGAIN)


def _read_header(path: Path, packed: bool) -> _Header:
    """Check a header before anything else of the file is unpacked: a gzip stream may be endless.

    Raises ReadError: not one volume, not plain numbers, over a limit, or data that begin too far after the header.
    """
    import nibabel  # slow to import; only volumes need it

    if packed:
        head = bytes(inflated(path, _HEADER, checked=False))
    else:
        with open(path, "rb") as handle:
            head = handle.read(_HEADER)
    second = int.from_bytes(head[:4], "little") == 540 or int.from_bytes(head[:4], "big") == 540
    kind = nibabel.Nifti2Header if second else nibabel.Nifti1Header
    length = kind.template_dtype.itemsize
    if len(head) < length:
        raise ReadError(path, f"not a readable NIfTI file (only {len(head)} bytes)", _AGAIN)
    header = kind(head[:length], check=False)
    if int(header["sizeof_hdr"]) != length or not header["magic"].item().startswith(b"n"):
        found = "" if packed else images.looks_like(path)
        raise ReadError(path, f"not a readable NIfTI file ({found or 'another header'})", "check what it is")
    if header["magic"].item().startswith(b"ni"):
        raise ReadError(path, "a NIfTI header whose data are in another file (.img)", "save it as one .nii file")
    pixdim = np.array(header["pixdim"][1:4], dtype=np.float64)
    start = float(header["vox_offset"]) or float(kind.single_vox_offset)
    header.check_fix(logger=_SILENT, error_level=100)
    shape, dtype = _shape(path, header), _dtype(path, header)
    stored = path.stat().st_size
    if not kind.single_vox_offset <= start <= _EXTENSIONS:
        raise ReadError(path, "its data begin too far after the header, or inside it", "damaged, or malicious")
    decoded = math.prod(shape) * dtype.itemsize
    limits.check_ratio(path, decoded, stored)
    if not packed and start + decoded > stored:
        raise _cut_short(path, stored, int(start) + decoded)
    steps: list[str] = []
    warnings: list[str] = []
    slope, intercept = _scaling(header, warnings)
    affine = _affine(path, header, pixdim, steps, warnings)
    millimetres = _millimetres(header, steps, warnings)
    return _Header(shape, dtype, int(start), slope, intercept, affine, millimetres, steps, warnings)


def _shape(path: Path, header: Any) -> tuple[int, int, int]:
    """The sides in voxels. Raises ReadError: not one volume, or over a limit."""
    shape = tuple(map(int, header.get_data_shape()))
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if min(shape) < 1:
        raise ReadError(path, f"declares {shape} voxels", _AGAIN)
    if len(shape) != 3:
        several = f", {math.prod(shape[3:])} volumes in one file" if len(shape) > 3 else ""
        hint = "split it into 3-D volumes" if several else "save it with a third dimension of 1 or more"
        raise ReadError(path, f"{len(shape)} dimensions {shape}, not a volume{several}", hint)
    limits.check_count(path, math.prod(shape), "voxels")
    return shape[0], shape[1], shape[2]


def _dtype(path: Path, header: Any) -> np.dtype[Any]:
    """The dtype of the stored values. Raises ReadError: unknown, or not plain numbers."""
    try:
        dtype: np.dtype[Any] = header.get_data_dtype()
    except Exception:  # an unknown code
        raise ReadError(path, f"unknown data type code {int(header['datatype'])}", _AGAIN) from None
    if dtype.fields is not None or dtype.kind == "c":
        raise ReadError(path, "colour or complex values, not a CT", "check the modality of this file")
    if dtype.kind not in "iuf":
        raise ReadError(path, "its array is not of plain numbers", "save it as int16 or float32")
    return dtype


def _scaling(header: Any, warnings: list[str]) -> tuple[float, float]:
    """Slope and intercept; 1 and 0 if the header states none."""
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or not math.isfinite(slope):
        if math.isinf(slope) or (math.isfinite(intercept) and intercept != 0):
            warnings.append(f"scl_slope is {slope:g} and scl_inter {intercept:g}: taken as no scaling")
        return 1.0, 0.0
    if not math.isfinite(intercept):
        warnings.append(f"scl_slope is {slope:g}, but scl_inter is not a number: taken as 0")
        intercept = 0.0
    return slope, intercept


def _millimetres(header: Any, steps: list[str], warnings: list[str]) -> float:
    """The header's unit of length in mm."""
    code = int(header["xyzt_units"]) & 7
    if code == 0:
        steps.append("no unit of length in the header; millimetres assumed")
    elif code not in _UNITS:
        warnings.append(f"an unknown unit of length in the header (code {code}); millimetres assumed")
    return _UNITS.get(code, 1.0)


# --- orientation ------------------------------------------------------------------------------------------------------


def _affine(path: Path, header: Any, pixdim: Numbers, steps: list[str], warnings: list[str]) -> Numbers:
    """Voxel numbers -> RAS: the sform if it is stated and usable, else the qform, else voxel sizes alone.

    Raises ReadError: none of them states the size of voxels.
    """
    import nibabel

    codes = int(header["sform_code"]), int(header["qform_code"])
    stated = {name: code > 0 for name, code in zip(("sform", "qform"), codes)}
    forms = {name: _usable(header, name) for name in stated if stated[name]}
    usable = {name: form for name, form in forms.items() if form is not None}
    taken = next(iter(usable), "")
    for name in forms.keys() - usable.keys():
        instead = f"the {taken}" if taken else "voxel sizes"
        warnings.append(f"the header's {name} states no size or no direction of voxels; {instead} taken")
    if not taken:
        warnings.append("the header states no orientation: left and right, head and feet are a guess")
        if not (np.isfinite(pixdim).all() and (pixdim != 0).all()):
            raise ReadError(path, "its header states no size of voxels", "export it again")
    affine = np.asarray(usable[taken] if taken else header.get_base_affine(), dtype=np.float64)
    if len(usable) == 2:
        against = _differences(usable["sform"], usable["qform"])
        if against:
            warnings.append(f"sform and qform contradict each other ({', '.join(against)}): the sform is taken")
    elif taken == "sform" and np.isfinite(pixdim).all() and (pixdim > 0).all():
        sizes = _other_sizes(_sides(affine), pixdim)
        if sizes:
            warnings.append(f"sform and pixdim contradict each other ({sizes}): the sform is taken")
    shear = _shear(affine)
    if shear > _SAME_WAY:
        warnings.append(f"sheared by {shear:.1f} degrees: its axes are not at right angles")
    named = "".join(code or "?" for code in nibabel.aff2axcodes(affine))
    steps.append(f"reoriented from {named} to slices towards the head, rows to the back, columns to the left")
    return affine


def _usable(header: Any, name: str) -> Numbers | None:
    """The header's sform or qform, None if it is not finite or states no size of voxels."""
    try:
        form = np.asarray(header.get_sform() if name == "sform" else header.get_qform(), dtype=np.float64)
    except Exception:  # an invalid quaternion
        return None
    sides = _sides(form)
    if not np.isfinite(form).all() or (sides <= 0).any():
        return None
    return form if abs(float(np.linalg.det(form[:3, :3] / sides))) > 0.05 else None


def _sides(affine: Numbers) -> Numbers:
    return np.asarray(np.linalg.norm(affine[:3, :3], axis=0))


def _differences(sform: Numbers, qform: Numbers) -> list[str]:
    """The differences of two affine matrices, as texts."""
    sizes = _sides(sform), _sides(qform)
    texts = [_other_sizes(*sizes)]
    directions = [form[:3, :3] / sides for form, sides in zip((sform, qform), sizes)]
    cosines = (directions[0] * directions[1]).sum(axis=0)
    ways = ("left and right", "front and back", "head and feet")
    opposite = [ways[int(np.abs(directions[0][:, k]).argmax())] for k in range(3) if cosines[k] < -0.5]
    texts += [f"{way} exchanged" for way in opposite]
    angle = float(np.degrees(np.arccos(np.clip(np.abs(cosines).min() if opposite else cosines.min(), -1, 1))))
    texts += [f"turned by {angle:.0f} degrees"] if angle > _SAME_WAY else []
    apart = float(np.linalg.norm(sform[:3, 3] - qform[:3, 3]))
    if not any(texts) and apart > max(1.0, float(sizes[0].max())):
        texts.append(f"origins {apart:.4g} mm apart")
    return [text for text in texts if text]


def _other_sizes(one: Numbers, other: Numbers) -> str:
    if (np.abs(one - other) <= _SAME_SIZE * np.maximum(one, other)).all():
        return ""
    texts = [volumes.spacing_text(tuple(map(float, sides))).removesuffix(" mm") for sides in (one, other)]
    return f"voxels of {texts[0]} against {texts[1]}"


def _shear(affine: Numbers) -> float:
    """Degrees by which the axes deviate from right angles."""
    ways = affine[:3, :3] / _sides(affine)
    products = np.abs(ways.T @ ways - np.eye(3))
    return float(np.degrees(np.arcsin(min(1.0, float(products.max())))))
