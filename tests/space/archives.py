"""Archives of generated files of seven formats, some bad in one of fifteen ways, and a small space for them.

* `make_archive`: the files, and which of them must be quarantined. * `make_space`: towers with 8 x 8 inputs.
* `register`: registers what both need, also in processes that tests start.

Files are small and derived from a seed. Bad ones are spread evenly; the list gives the reason why each must be refused.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from m3bind import modalities
from m3bind.models import registry
from space import tiny

LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
NAMES = ("xray", "retina", "ct", "ecg", "pathology")
BAD_SHARE = 0.03
PER_FOLDER = 500
Maker = Callable[[Path, np.random.Generator], Path]


class Reduced(tiny.Tiny):
    """The tiny towers for any sample, reduced to 8 x 8 numbers in 0..1."""

    name = "reduced"

    def preprocess(self, sample):
        array = sample.array
        if array.ndim == 3:
            array = array.mean(-1) if array.shape[-1] == 3 else array[len(array) // 2]
        low, high = float(array.min()), float(array.max())
        picture = Image.fromarray((array - low) / max(high - low, 1e-6)).resize((8, 8), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.asarray(picture, np.float32).copy())


def register():
    """Make the model known, and the modalities of the package."""
    registry._registry._classes = {"reduced": Reduced}
    modalities.base._registry._classes = None


def make_space():
    """Five modalities in 8 dimensions."""
    from m3bind.space.bundle import Space

    rng = np.random.default_rng(0)
    models = {name: Reduced(6, seed) for seed, name in enumerate(NAMES)}
    for model in models.values():
        model.registered_name = "reduced"
    bridges = {name: np.linalg.qr(rng.normal(size=(8, 6)))[0].T for name in NAMES}
    return Space(models, bridges, {name: rng.normal(size=8) / 9 for name in NAMES})


# --- sound files ------------------------------------------------------------------------------------------------------


def png(path, rng):
    path = path.with_suffix(".png")
    Image.fromarray(rng.integers(60, 200, (24, 24), dtype=np.uint8)).resize((40, 40)).save(path)
    return path


def jpeg(path, rng):
    path = path.with_suffix(".jpg")
    y, x = np.mgrid[:48, :48] / 48 - 0.5
    tone = np.array([190, 90, 40]) * rng.uniform(0.6, 1, (48, 48, 1)) * (np.hypot(x, y) < 0.48)[..., None]
    Image.fromarray(tone.astype(np.uint8)).save(path, quality=90)
    return path


def dicom(path, rng, code="DX", pixels=True):
    import pydicom
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    path = path.with_suffix(".dcm")
    dataset = pydicom.Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = "1.2.3"
    dataset.Modality, dataset.PhotometricInterpretation = code, "MONOCHROME2"
    dataset.Rows = dataset.Columns = 40
    dataset.SamplesPerPixel, dataset.PixelRepresentation = 1, 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    if pixels:
        dataset.PixelData = rng.integers(0, 4096, (40, 40), dtype=np.uint16).tobytes()
    dataset.save_as(path, enforce_file_format=True)
    return path


def nifti(path, rng):
    import nibabel

    path = path.with_suffix(".nii.gz")
    values = np.full((16, 16, 8), -1000, np.int16)
    values[3:-3, 3:-3] = rng.integers(-100, 300, (10, 10, 8))
    nibabel.save(nibabel.Nifti1Image(values, np.diag([2, 2, 3, 1])), path)
    return path


def signals(rng, seconds=10):
    beat = np.sin(np.arange(100 * seconds) / rng.uniform(9, 14)) ** 15
    first, second = beat * 0.6, beat + rng.normal(0, 0.01, len(beat))
    limb = [first, second, second - first, -(first + second) / 2, first - second / 2, second - first / 2]
    return np.stack([*limb, *(beat * k / 4 for k in rng.uniform(1, 6, 6))], axis=1)


def wfdb(path, rng, seconds=10, leads=12):
    counts = np.round(signals(rng, seconds) * 1000).astype("<i2")[:, :leads]
    path.with_suffix(".dat").write_bytes(counts.tobytes())
    lines = [f"{path.name} {leads} 100 {len(counts)}"]
    for lead in range(leads):
        total = int(counts[:, lead].astype(np.int64).sum()) & 0xFFFF
        lines.append(f"{path.name}.dat 16 1000(0)/mV 16 0 {counts[0, lead]} {total} 0 {LEADS[lead]}")
    path.with_suffix(".hea").write_text("\n".join(lines) + "\n")
    return path.with_suffix(".hea")


def long_wfdb(path, rng):
    return wfdb(path, rng, seconds=35)


def edf(path, rng):
    import edfio

    path = path.with_suffix(".edf")
    made = [edfio.EdfSignal(np.ascontiguousarray(lead), 100, label=name, physical_dimension="mV")
            for name, lead in zip(LEADS, signals(rng).T)]  # fmt: skip
    edfio.Edf(made).write(path)
    return path


def slide(path, rng):
    """A tiled TIFF of two levels with two tiles of tissue."""
    import tifffile

    path = path.with_suffix(".tif")
    picture = np.full((256, 512, 3), 243, np.uint8)
    picture[:, :460] = np.array([200, 110, 170]) - rng.integers(0, 40, (256, 460, 1))
    with tifffile.TiffWriter(path) as writer:
        for factor in (1, 4):
            writer.write(
                picture[::factor, ::factor],
                subfiletype=int(factor > 1),
                photometric="rgb",
                tile=(64, 64),
                metadata=None,
                resolution=(1e4 / 0.5 / factor,) * 2,
                resolutionunit="CENTIMETER",
            )
    return path


# Maker and parts of a hundred.
SOUND: tuple[tuple[Maker, int], ...] = (
    (png, 30), (jpeg, 22), (dicom, 16), (nifti, 12), (wfdb, 10), (edf, 6), (slide, 2), (long_wfdb, 2)
)  # fmt: skip


# --- bad ones ---------------------------------------------------------------------------------------------------------


def changed(make: Maker, change: Callable[[bytes], bytes]) -> Maker:
    def maker(path, rng):
        path = make(path, rng)
        path.write_bytes(change(path.read_bytes()))
        return path

    return maker


def without_signals(path, rng):
    header = wfdb(path, rng)
    header.with_suffix(".dat").unlink()
    return header


def cut_signals(path, rng):
    header = wfdb(path, rng)
    data = header.with_suffix(".dat")
    data.write_bytes(data.read_bytes()[:-5000])
    return header


def empty(data):
    return b""


def half(data):
    return data[: len(data) // 2]


BAD: dict[str, Maker] = {
    "empty PNG": changed(png, empty),
    "cut PNG": changed(png, half),
    "words for a PNG": changed(png, lambda data: b"no picture at all, rather a long line of words" * 4),
    "PNG of absurd size": changed(png, lambda data: data[:16] + b"\x7f\xff\xff\xff" * 2 + data[24:]),
    "head of a JPEG": changed(jpeg, lambda data: data[:60]),
    "page for a JPEG": changed(jpeg, lambda data: b"<html><body>404</body></html>" * 9),
    "cut DICOM": changed(dicom, half),
    "DICOM without pixels": lambda path, rng: dicom(path, rng, pixels=False),
    "DICOM of another kind": lambda path, rng: dicom(path, rng, code="PR"),
    "cut NIfTI": changed(nifti, half),
    "words for a NIfTI": changed(nifti, lambda data: b"words" * 100),
    "WFDB header alone": without_signals,
    "WFDB cut short": cut_signals,
    "three leads": lambda path, rng: wfdb(path, rng, leads=3),
    "cut EDF": changed(edf, lambda data: data[:300]),
}


def make_archive(folder: Path, count: int, seed: int = 0) -> dict[Path, str]:
    """`count` files in subfolders of `folder`; returns the bad ones and their kinds, in the order of the paths."""
    makers = [maker for maker, share in SOUND for _ in range(share)]
    bad_count = max(round(count * BAD_SHARE), len(BAD)) if count >= len(BAD) else 0
    kinds = np.random.default_rng(seed).permutation(np.arange(bad_count) % len(BAD))
    at = dict(zip(np.linspace(0, count - 1, bad_count).astype(int).tolist(), kinds.tolist()))
    expected: dict[Path, str] = {}
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        path = folder / f"{number // PER_FOLDER:03d}" / f"{number:06d}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if number in at:
            name, maker = list(BAD.items())[at[number]]
            expected[maker(path, rng)] = name
        else:
            makers[int(rng.integers(len(makers)))](path, rng)
    return dict(sorted(expected.items()))
