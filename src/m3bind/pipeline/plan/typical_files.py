"""Generated files of the size and format of the published data sets, to measure decoding where the files are missing.

* `write_typical`: the files of a modality. * `TypicalFiles`: them, and what one whole file of the data set holds.

Radiograph (MIMIC-CXR-JPG): JPEG 2544 x 3056. Fundus photograph: JPEG 2048 x 1536. Tile: PNG 512 x 512. ECG
(MIMIC-IV-ECG): WFDB, 12 leads, 10 s at 500 Hz. CT (CT-RATE): NIfTI, gzip, 512 x 512 x 300; two flatter volumes are
written, from which the whole one is extrapolated.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

CT_SLICES = 300  # of a volume; 108 MB compressed
CT_WRITTEN = (24, 48)  # slices of the volumes that are written
LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")


@dataclass(frozen=True)
class TypicalFiles:
    """Files of one modality."""

    paths: list[Path]
    title: str
    sizes: tuple[float, ...] = ()  # of each file in units in which cost is linear; (): all are whole files
    whole: float = 0.0  # of a whole file, in these units


def write_typical(modality: str, folder: Path) -> TypicalFiles | None:
    """The files of a modality in `folder`; None if its data sets are unknown."""
    random = np.random.default_rng(0)
    if modality == "xray":
        path = folder / "xray.jpg"
        Image.fromarray(_texture(random, 3056, 2544, 3.0)).save(path, quality=90)
        return TypicalFiles([path], "JPEG 2544 x 3056")
    if modality == "retina":
        path, disc = folder / "retina.jpg", _texture(random, 1536, 2048, 2.0)
        y, x = np.ogrid[-1:1:1536j, -4 / 3 : 4 / 3 : 2048j]
        disc = np.where(x**2 + y**2 < 0.9, disc, 0).astype(np.uint8)
        Image.fromarray(np.stack([disc, disc // 2, disc // 4], axis=-1)).save(path, quality=90)
        return TypicalFiles([path], "JPEG 2048 x 1536")
    if modality == "pathology":
        path, tissue = folder / "tile.png", _texture(random, 512, 512, 6.0)
        Image.fromarray(np.stack([255 - tissue // 3, 255 - tissue // 2, 255 - tissue // 3], axis=-1)).save(path)
        return TypicalFiles([path], "PNG 512 x 512")
    if modality == "ecg":
        return TypicalFiles([_record(folder)], "WFDB, 10 s at 500 Hz")
    if modality == "ct":
        paths = [_volume(folder / f"ct_{slices}.nii.gz", slices, random) for slices in CT_WRITTEN]
        return TypicalFiles(paths, "NIfTI 512 x 512 x 300 (from flatter ones)", CT_WRITTEN, CT_SLICES)
    return None


def _texture(random: np.random.Generator, height: int, width: int, grain: float) -> NDArray[np.uint8]:
    """(H, W) grey structures of all sizes with grain, which compress as real pictures do."""
    coarse = Image.fromarray(random.integers(40, 215, (max(height // 40, 4), max(width // 40, 4)), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BILINEAR), np.float32)
    noisy = smooth + grain * random.standard_normal((height, width), np.float32)
    return np.clip(noisy, 1, 254).astype(np.uint8)


def _record(folder: Path) -> Path:
    import wfdb

    time = np.arange(5000) / 500
    beat = np.exp(-(((time % 0.8) - 0.3) ** 2) / 3e-4) + 0.2 * np.exp(-(((time % 0.8) - 0.55) ** 2) / 3e-3)
    limb = np.stack([0.6 * beat, beat, 0.4 * beat, -0.8 * beat, 0.1 * beat, 0.7 * beat], axis=1)
    signal = np.concatenate([limb, beat[:, None] * np.linspace(0.2, 1.5, 6)], axis=1)
    wfdb.wrsamp(
        "ecg",
        fs=500,
        units=["mV"] * 12,
        sig_name=list(LEADS),
        p_signal=signal,
        fmt=["16"] * 12,
        write_dir=str(folder),
    )
    return folder / "ecg"


def _volume(path: Path, slices: int, random: np.random.Generator) -> Path:
    import nibabel
    from nibabel.openers import Opener

    noise = random.normal(0, 20, (512, 512, slices)).astype(np.int16)
    x, y = np.ogrid[-1:1:512j, -1:1:512j]
    inside = (x**2 + y**2 < 0.8)[..., None]
    values = noise + np.where(inside, 40, -1000).astype(np.int16)
    values[120:220, 180:330] -= 850  # a lung
    image = nibabel.Nifti1Image(values, np.diag([0.75, 0.75, 1.5, 1.0]))
    image.header.set_xyzt_units("mm")
    level, Opener.default_compresslevel = Opener.default_compresslevel, 1
    try:
        nibabel.save(image, path)
    finally:
        Opener.default_compresslevel = level
    return path
