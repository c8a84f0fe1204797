"""From a state to files: one renderer per modality, and writers for PNG, NIfTI and WFDB, all marked synthetic.

* `render`: the array of a state and modality.
* `write_patient`: the files of one patient in one folder, written atomically.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import wfdb
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from m3bind.core.files import atomic_path
from m3bind.data.phantom.ecg import LEADS, RATE, ecg
from m3bind.data.phantom.fundus import fundus
from m3bind.data.phantom.grid import F32
from m3bind.data.phantom.histology import tile
from m3bind.data.phantom.state import MODALITIES, PatientState
from m3bind.data.phantom.thorax import CT_SPACING, chest, ct, xray
from m3bind.errors import UnknownNameError

MARK = "synthetic virtual patient, no real person"
FILES = {"xray": "xray.png", "ct": "ct.nii.gz", "retina": "retina.png", "ecg": "ecg", "pathology": "pathology.png"}


def render(state: PatientState, modality: str, rng: np.random.Generator, volume: F32 | None = None) -> NDArray[Any]:
    """The image, volume or signal of `state`; `rng` varies properties independent of the state (noise, positions).

    xray uint8 (224, 224); ct int16 HU (32, 96, 96) Z Y X; retina, pathology uint8 (224, 224, 3); ecg float32 mV
    (12, 1000). CT and X-ray show the same chest for any `rng`; `volume` (from `chest`) avoids computing it again.

    Raises:
        UnknownNameError: no such modality.
    """
    if modality == "xray":
        return xray(state, rng, volume)
    if modality == "ct":
        return ct(state, rng, volume)
    if modality == "retina":
        return fundus(state, rng)
    if modality == "ecg":
        return ecg(state, rng)
    if modality == "pathology":
        return tile(state, rng)
    raise UnknownNameError("modality", modality, MODALITIES)


def write_png(path: Path, pixels: NDArray[np.uint8]) -> None:
    """Write a PNG whose text chunk states that it is synthetic."""
    info = PngInfo()
    info.add_text("Description", MARK)
    Image.fromarray(pixels).save(path, format="PNG", pnginfo=info, compress_level=3)


def write_nifti(path: Path, volume: NDArray[np.int16]) -> None:
    """Write a CT (Z Y X; superior, posterior, left) as NIfTI: millimetres, RAS+ affine, synthetic in `descrip`."""
    depth, row, column = CT_SPACING
    affine = np.diag([-column, -row, depth, 1.0])
    z, y, x = ((side - 1) / 2 for side in volume.shape)
    affine[:3, 3] = [column * x, row * y, -depth * z]
    image = nibabel.Nifti1Image(np.ascontiguousarray(volume.transpose(2, 1, 0)), affine)
    image.header["descrip"] = MARK.encode()
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)


def write_wfdb(folder: Path, name: str, signal: F32) -> None:
    """Write an ECG (12, T) in mV as a WFDB record of 16-bit samples, 1000 per mV, synthetic in the comments."""
    wfdb.wrsamp(
        name, fs=RATE, units=["mV"] * 12, sig_name=list(LEADS), p_signal=signal.T.astype(np.float64),
        fmt=["16"] * 12, adc_gain=[1000.0] * 12, baseline=[0] * 12, comments=[MARK], write_dir=str(folder),
    )  # fmt: skip


def write_patient(folder: Path, state: PatientState, modalities: Sequence[str], seeds: Sequence[int]) -> None:
    """Write the files of one patient into `folder`; `seeds` and the modality's number seed each rendering.

    Raises:
        DiskError: a file could not be written; an incomplete patient is removed.
    """
    volume = chest(state) if {"xray", "ct"} & set(modalities) else None
    with atomic_path(folder, directory=True) as temporary:
        for modality in modalities:
            rng = np.random.default_rng([*seeds, MODALITIES.index(modality)])
            array = render(state, modality, rng, volume)
            if modality == "ct":
                write_nifti(temporary / FILES[modality], array)
            elif modality == "ecg":
                write_wfdb(temporary, FILES[modality], array)
            else:
                write_png(temporary / FILES[modality], array)
