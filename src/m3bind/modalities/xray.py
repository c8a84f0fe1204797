"""Radiographs: DICOM (CR, DX, MG, RF, ...), PNG, JPEG or TIFF -> (H, W) float32 0..1, bright = dense."""

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from m3bind.errors import ReadError
from m3bind.modalities.base import Modality, Sample
from m3bind.modalities.formats import dicom, images

Array = NDArray[np.float32]

INVERTED = -0.25  # `density_pattern` below which a radiograph looks inverted
FLAT_BORDER = 0.1  # fraction of the width or height
FEW_LEVELS = 48  # grey levels: fewer than 6 bits
_LATERAL = ("LATERAL", "LAT", "LL", "RL", "LLD", "RLD", "LLO", "RLO", "ML", "LM")
_CHEST = ("CHEST", "THORAX", "LUNG", "HEART")


class XRay(Modality):
    """Projection radiographs. PNG, JPEG and TIFF do not state what bright means; it is taken as dense (MONOCHROME2)."""

    name: ClassVar[str] = "xray"
    title: ClassVar[str] = "Chest X-ray"
    color: ClassVar[str] = "#4477aa"
    version: ClassVar[int] = 2  # images of every depth and opacity; padding values inside an image are retained
    suffixes: ClassVar[tuple[str, ...]] = (*dicom.SUFFIXES, *images.IMAGE_SUFFIXES, *images.TIFF_SUFFIXES)
    libraries: ClassVar[tuple[str, ...]] = dicom.LIBRARIES

    def read(self, path: Path | str) -> Sample:
        """`decode`, with warnings: inverted, black in large parts, a flat border, few grey levels.

        Raises:
            ReadError: as `decode`.
        """
        sample = self.decode(path)
        sample.warnings += doubts(sample.array, sample.tags.get("Modality") == "MG")
        return sample

    def decode(self, path: Path | str) -> Sample:
        """A radiograph; array (H, W) in 0..1. Of a DICOM file with several frames, the middle frame.

        Raises:
            ReadError: missing, damaged, over a limit, in colour, or a DICOM file of another modality.
        """
        path = images.check_file(path, self)
        if images.ending(path, (*images.IMAGE_SUFFIXES, *images.TIFF_SUFFIXES)):
            array, steps, warnings = images.read_grey(path, "an X-ray")
            return Sample(self.name, array, steps=steps, warnings=warnings)
        return self._read_dicom(path)

    def _read_dicom(self, path: Path) -> Sample:
        dataset = dicom.open_dicom(path)
        kind = dicom.kind_of(dataset)
        if kind not in ("radiograph", ""):
            raise ReadError(path, f"{dicom.named(kind)}, not a radiograph", "check the modality of this file")
        if str(dataset.get("PhotometricInterpretation", "")) in ("", *dicom.MONOCHROME):
            array, steps, warnings = dicom.grey(dataset, path)
        else:
            array, steps, warnings = dicom.colour(dataset, path)
            array, more = images.to_grey(path, array, "an X-ray", steps)
            warnings += more
        images.check_side(path, array.shape)
        tags = dicom.technical_tags(dataset)
        warnings += images.image_warnings(array) + _header_doubts(dataset, tags)
        return Sample(self.name, array, steps=steps, warnings=warnings, tags=tags)

    def thumbnail(self, sample: Sample, size: int = 160) -> Image.Image:
        """Grey image, stretched between its 0.5 % and 99.5 % quantiles."""
        low, high = np.quantile(images.sparse(sample.array, 256), [0.005, 0.995])
        return images.to_thumbnail((sample.array - low) / max(high - low, 1e-3), size)


def _header_doubts(dataset: Any, tags: dict[str, str]) -> list[str]:
    """Statements of a DICOM header that contradict a frontal chest radiograph for viewing."""
    found = []
    view, body = tags.get("ViewPosition", ""), tags.get("BodyPartExamined", "")
    orientation = dataset.get("PatientOrientation") or []
    row, column = (str(code)[:1] for code in orientation) if len(orientation) == 2 else ("", "")
    if view.upper() in _LATERAL or row in ("A", "P"):
        found.append("a lateral view")
    elif row == "R":
        found.append("mirrored: its rows run towards the patient's right")
    if column == "H":
        found.append("upside down: its columns run towards the head")
    if body and body.upper() not in _CHEST:
        found.append(f"body part {body}, not the chest")
    if tags.get("PresentationIntentType") == "FOR PROCESSING":
        found.append("raw detector values (FOR PROCESSING), not for viewing")
    if dataset.get("BurnedInAnnotation", "") == "YES":
        found.append("burned-in text according to its header: it may name the patient")
    return found


def doubts(array: Array, background: bool = False) -> list[str]:
    """Warnings about a radiograph (H, W) in 0..1; `background`: a wide empty side is normal, as in mammograms."""
    some = images.sparse(array, 256)
    found = []
    if float((images.sparse(array) < 0.03).mean()) > 0.6 and not background:
        found.append("most of the image is black: a CT slice or an uncropped scan?")
    if min(array.shape) >= 96 and density_pattern(array) < INVERTED:
        found.append("looks inverted: dark where a chest is dense")
    side, part = flat_border(some)
    if part >= FLAT_BORDER and part < 1 and not background:
        found.append(f"a flat border covers {part:.0%} of the image at the {side}: crop it")
    levels = len(np.unique(np.rint(some * 4095)))
    if 12 <= levels < FEW_LEVELS:
        found.append(f"only {levels} grey levels")
    return found


def density_pattern(array: Array) -> float:
    """Correlation (-1..1) of an image (H, W) with where a frontal chest is dense: below 0 when it is inverted.

    Computed on 8 x 8 means; dense are the spine and the region below the diaphragm, not the lungs and the air above
    the shoulders. Of 864 NIH radiographs the lowest value is 0.06; 95 % are above 0.30.
    """
    rows, columns = (np.linspace(0, side, 9).astype(int) for side in array.shape)
    sums = np.add.reduceat(np.add.reduceat(array, rows[:-1], axis=0), columns[:-1], axis=1)
    means = sums / np.outer(np.diff(rows), np.diff(columns))
    dense = np.zeros((8, 8))
    dense[:, 3:5] = 1
    dense[6:, 1:7] = 1
    dense[:3, [0, 7]] = -1
    dense[2:5, [1, 2, 5, 6]] = -0.5
    means, dense = means - means.mean(), dense - dense.mean()
    return float((means * dense).sum() / max(float(np.linalg.norm(means) * np.linalg.norm(dense)), 1e-9))


def flat_border(array: Array) -> tuple[str, float]:
    """The side with the widest border of one tone along each row or column, and its fraction of that extent."""
    sides = {"top": array, "bottom": array[::-1], "left": array.T, "right": array.T[::-1]}
    parts = {}
    for name, lines in sides.items():
        flat = lines.max(axis=1) - lines.min(axis=1) <= 3 / 255
        parts[name] = 1.0 if flat.all() else float(np.argmin(flat)) / len(flat)
    widest = max(parts, key=lambda name: parts[name])
    return widest, parts[widest]
