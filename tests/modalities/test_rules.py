"""A rule of one reader applies to all: every rule for every reader it concerns, against values computed by hand.

Rows are rules, columns are readers; a cell is a small file and its expected result: values, with or without a
doubt, or a refusal.
Signals have their own tests: `test_calibration`, `test_signal_sets`. NIfTI files: `test_nifti`.
"""

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID

from m3bind.errors import ReadError
from m3bind.modalities import get
from modalities.test_damage import hurt_tiff
from modalities.test_damage import middle as hurt
from modalities.test_dicom import BIG_ENDIAN, make, save
from modalities.test_picture_kinds import PROFILES

H, W = 64, 72
RAMP = np.linspace(0, 1, H * W).reshape(H, W)
HU = (RAMP * 2000 - 1000).round()
WAVES = 0.5 + 0.4 * np.sin(np.arange(W) / 9) * np.cos(np.arange(H) / 7)[:, None]
COLOUR = np.stack([0.3 + 0.6 * RAMP, 0.1 + 0.4 * WAVES, 0.2 + 0.5 * RAMP[::-1]], axis=-1)
BYTES = (COLOUR * 255).round().astype(np.uint8)
KINDS = {"xray": ("DX", "1.1.1"), "ct": ("CT", "2"), "retina": ("OP", "77.1.5.1"), "pathology": ("GM", "77.1.2")}
SWAPPED = PROFILES[4][0]  # a colour profile that exchanges red and blue


@dataclass
class Cell:
    """A file, and what is right: `values`, a doubt about them (`said`), or a refusal for that reason (no values)."""

    path: Path
    values: np.ndarray | None
    said: str = ""
    within: float = 1e-5


def judge(modality: str, cell: Cell) -> None:
    if cell.values is None:
        with pytest.raises(ReadError, match=cell.said):
            get(modality).read(cell.path)
        return
    sample = get(modality).read(cell.path)
    np.testing.assert_allclose(sample.array, cell.values, atol=cell.within)
    assert not cell.said or any(re.search(cell.said, text) for text in sample.warnings), sample.warnings


def between(values: np.ndarray) -> np.ndarray:
    return (values - values.min()) / np.ptp(values)


# --- grey DICOM: radiographs are shown as 0..1, CT is in Hounsfield units ---------------------------------------------


def as_dicom(folder: Path, modality: str, stored: np.ndarray, bits: int | None = None, **entries: Any) -> Dataset:
    kind, number = KINDS[modality]
    dataset = make(stored, bits, Modality=kind, SOPClassUID=UID(f"1.2.840.10008.5.1.4.1.1.{number}"), **entries)
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    return dataset


@dataclass
class Grey:
    """Stored values, entries, the values in Hounsfield units (None: refused) and what is said."""

    stored: np.ndarray
    entries: dict[str, Any]
    hounsfield: np.ndarray | None = None
    said: str = ""
    change: Callable[[Dataset], Any] = lambda dataset: None


CORNER = np.zeros((H, W), bool)
CORNER[:9, :9] = True
ONCE = {"RescaleSlope": 1, "RescaleIntercept": 0}
SHIFTED = {"RescaleSlope": 1, "RescaleIntercept": -1024}
UP = (HU + 1024).astype(np.uint16)


def floats(dataset: Dataset, values: np.ndarray) -> None:
    del dataset.PixelData
    dataset.FloatPixelData = values.astype("<f4").tobytes()


def big_endian(dataset: Dataset) -> None:
    dataset.file_meta.TransferSyntaxUID = UID(BIG_ENDIAN)
    dataset.PixelData = np.frombuffer(dataset.PixelData, "<u2").astype(">u2").tobytes()


def cut(dataset: Dataset) -> None:
    dataset.PixelData = dataset.PixelData[:-200]


def longer(dataset: Dataset) -> None:
    dataset.PixelData += bytes(400)


def packed(
    uid: str, encode: Callable[[np.ndarray], bytes], damage: Callable[[bytes], bytes] = lambda data: data
) -> Any:
    def change(dataset: Dataset) -> None:
        shape = (dataset.Rows, dataset.Columns) + ((3,) if dataset.SamplesPerPixel == 3 else ())
        kind = np.uint8 if dataset.BitsAllocated == 8 else np.uint16
        stream = encode(np.frombuffer(dataset.PixelData, kind)[: int(np.prod(shape))].reshape(shape))
        dataset.file_meta.TransferSyntaxUID = UID(f"1.2.840.10008.1.2.4.{uid}")
        dataset.PixelData = encapsulate([damage(stream)])
        dataset["PixelData"].is_undefined_length = True

    return change


def lossless(values: np.ndarray) -> bytes:
    return imagecodecs.ljpeg_encode(values, bitspersample=16)


def jpeg_2000(values: np.ndarray) -> bytes:
    return imagecodecs.jpeg2k_encode(values, level=0, codecformat="J2K", reversible=True)


def gap(data: bytes) -> bytes:
    return data[: len(data) // 2] + data[len(data) // 2 + 100 :]


def padded(value: int) -> np.ndarray:
    return np.where(CORNER, value, HU)


GREY: dict[str, Grey] = {
    "signed": Grey(HU.astype(np.int16), ONCE, HU),
    "unsigned": Grey(UP, SHIFTED, HU),
    "a slope": Grey((UP * 2).astype(np.uint16), {"RescaleSlope": 0.5, "RescaleIntercept": -1024}, HU),
    "signed, 32 bits": Grey(HU.astype(np.int32), ONCE, HU),
    "unsigned, 32 bits": Grey(UP.astype(np.uint32), SHIFTED, HU),
    "floats": Grey(HU.astype(np.int32), ONCE, HU, change=lambda d: floats(d, HU)),
    "big endian": Grey(UP, SHIFTED, HU, change=big_endian),
    "slope 0": Grey(UP, SHIFTED | {"RescaleSlope": 0}, HU, "slope is 0"),
    "slope empty": Grey(UP, SHIFTED | {"RescaleSlope": ""}, HU, "slope is"),
    "intercept missing": Grey(HU.astype(np.int16), {"RescaleSlope": 1}, HU, "intercept is missing"),
    "type empty": Grey(HU.astype(np.int16), ONCE | {"RescaleType": ""}, HU),
    "padding": Grey(padded(-2000).astype(np.int16), ONCE | {"PixelPaddingValue": -2000}, padded(-1024)),
    "padding, a range": Grey(np.where(RAMP < 0.01, -1999, padded(-2000)).astype(np.int16),
                             ONCE | {"PixelPaddingValue": -2000, "PixelPaddingRangeLimit": -1990},
                             np.where(RAMP < 0.01, -1024, padded(-1024))),
    "truncated": Grey(UP, SHIFTED, None, "bytes, .* are stored", cut),
    "too long": Grey(UP, SHIFTED, HU, "of which the header describes", longer),
    "lossless JPEG": Grey(UP, SHIFTED, HU, change=packed("70", lossless)),
    "damaged JPEG 2000": Grey(UP, SHIFTED, None, "damaged", packed("90", jpeg_2000, gap)),
    "another size inside": Grey(UP, SHIFTED, None, "compressed frame", packed("70", lambda a: lossless(a[:40]))),
}  # fmt: skip


@pytest.mark.parametrize("modality", ["xray", "ct"])
@pytest.mark.parametrize("rule", GREY)
def test_grey_dicom(tmp_path: Path, modality: str, rule: str) -> None:
    cell = GREY[rule]
    dataset = as_dicom(tmp_path, modality, cell.stored, **cell.entries)
    cell.change(dataset)
    values = cell.hounsfield
    if values is not None and modality == "ct":
        values = values[None]
    elif values is not None:
        padding = values == -1024
        values = np.where(padding, 0, (values - values[~padding].min()) / np.ptp(values[~padding]))
    judge(modality, Cell(save_any(dataset, tmp_path), values, cell.said))


def save_any(dataset: Dataset, folder: Path) -> Path:
    if "PixelData" not in dataset or str(dataset.file_meta.TransferSyntaxUID) != BIG_ENDIAN:
        return save(dataset, folder / "a.dcm")
    dataset.save_as(folder / "a.dcm", implicit_vr=False, little_endian=False, enforce_file_format=True)
    return folder / "a.dcm"


@pytest.mark.parametrize("modality", ["xray", "ct"])
def test_indices_of_a_palette_are_no_values(tmp_path: Path, modality: str) -> None:
    dataset = as_dicom(tmp_path, modality, BYTES)
    palette(dataset)
    judge(modality, Cell(save(dataset, tmp_path / "a.dcm"), None, "in colour|a colour image|screen capture"))


def test_what_white_means_is_for_radiographs_only(tmp_path: Path) -> None:
    for modality, values in (("xray", 1 - RAMP), ("ct", HU[None])):
        dataset = as_dicom(tmp_path, modality, UP, PhotometricInterpretation="MONOCHROME1", **SHIFTED)
        judge(modality, Cell(save(dataset, tmp_path / "a.dcm"), values, within=1e-3))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none(tmp_path: Path, value: float) -> None:
    for modality, values in (("xray", None), ("ct", np.where(CORNER, -1024, HU)[None])):
        dataset = as_dicom(tmp_path, modality, HU.astype(np.int32), **ONCE)
        floats(dataset, np.where(CORNER, value, HU))
        judge(modality, Cell(save(dataset, tmp_path / "a.dcm"), values, "not finite|NaN or infinite"))
    path = tmp_path / "a.tif"
    for modality, truth in (("xray", HU), ("retina", COLOUR), ("pathology", COLOUR)):
        broken = truth.astype(np.float32)
        broken[:9, :9] = value
        tifffile.imwrite(path, broken, photometric="rgb" if truth is COLOUR else "minisblack")
        judge(modality, Cell(path, None, "not finite|8-bit RGB"))


def test_several_frames(tmp_path: Path) -> None:
    frames = np.stack([UP, UP[::-1], UP])
    path = save(as_dicom(tmp_path, "xray", frames, **SHIFTED), tmp_path / "a.dcm")
    judge("xray", Cell(path, RAMP[::-1], "3 frames, of which only the middle one", 1e-3))
    assert get("ct").read(save(as_dicom(tmp_path, "ct", frames, **SHIFTED), path)).array.shape == (3, H, W)
    several = np.stack([BYTES, BYTES[::-1], BYTES])
    for modality in ("retina", "pathology"):
        dataset = as_dicom(tmp_path, modality, BYTES, NumberOfFrames="3", PixelData=several.tobytes())
        judge(modality, Cell(save(dataset, path), BYTES[::-1] / 255, "3 frames, of which only the middle one"))


# --- colour DICOM -----------------------------------------------------------------------------------------------------


def planes(dataset: Dataset) -> None:
    dataset.PlanarConfiguration = 1
    dataset.PixelData = np.moveaxis(np.frombuffer(dataset.PixelData, np.uint8).reshape(H, W, 3), -1, 0).tobytes()


def palette(dataset: Dataset) -> None:
    dataset.PhotometricInterpretation, dataset.SamplesPerPixel = "PALETTE COLOR", 1
    del dataset.PlanarConfiguration
    index = (np.arange(H * W).reshape(H, W) % 256).astype(np.uint8)
    for k, name in enumerate(("Red", "Green", "Blue")):
        setattr(dataset, f"{name}PaletteColorLookupTableDescriptor", [256, 0, 16])
        setattr(dataset, f"{name}PaletteColorLookupTableData", (PALETTE[:, k].astype(np.uint16) * 257).tobytes())
    dataset.PixelData = index.tobytes()


def ybr(dataset: Dataset) -> None:
    dataset.PhotometricInterpretation = "YBR_FULL"
    red, green, blue = (BYTES[..., k].astype(float) for k in range(3))
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    parts = (luma, (blue - luma) / 1.772 + 128, (red - luma) / 1.402 + 128)
    dataset.PixelData = np.stack(parts, axis=-1).round().clip(0, 255).astype(np.uint8).tobytes()


def sixteen(dataset: Dataset, order: str = "<") -> None:
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
    dataset.PixelData = (BYTES.astype(f"{order}u2") * 257).astype(f"{order}u2").tobytes()
    dataset["PixelData"].VR = "OW"
    if order == ">":
        dataset.file_meta.TransferSyntaxUID = UID(BIG_ENDIAN)


def unsaid(dataset: Dataset) -> None:
    del dataset.PlanarConfiguration


def profiled(dataset: Dataset) -> None:
    dataset.ICCProfile = SWAPPED


def small_palette(dataset: Dataset) -> None:
    palette(dataset)
    for k, name in enumerate(("Red", "Green", "Blue")):
        setattr(dataset, f"{name}PaletteColorLookupTableData", PALETTE[:, k].astype("<u2").tobytes())


def signed(dataset: Dataset) -> None:
    dataset.PixelRepresentation = 1


def signed_twelve(dataset: Dataset) -> None:
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 1
    dataset.PixelData = (SHOWN * 4095).round().astype("<u2").tobytes()


def jpeg(values: np.ndarray) -> bytes:
    return imagecodecs.jpeg8_encode(values, level=100, subsampling="444")


PALETTE = (np.stack([np.arange(256), 255 - np.arange(256), np.arange(256) // 2], axis=-1)).astype(np.uint8)
INDEXED = PALETTE[np.arange(H * W).reshape(H, W) % 256] / 255
SHOWN = BYTES / 255
PHOTOGRAPHS: dict[str, tuple[Callable[[Dataset], Any], np.ndarray | None, str, float]] = {
    "RGB": (lambda d: None, SHOWN, "", 1e-5),
    "plane by plane": (planes, SHOWN, "", 1e-5),
    "planes unsaid": (unsaid, SHOWN, "PlanarConfiguration is missing", 1e-5),
    "palette": (palette, INDEXED, "", 1e-3),
    "palette of 8 bits in 16": (small_palette, INDEXED, "palette states 16 bits", 1e-3),
    "signed": (signed, SHOWN, "signed numbers", 1e-5),
    "signed, 12 bits": (signed_twelve, SHOWN, "signed numbers", 1e-3),
    "YBR": (ybr, SHOWN, "", 0.02),
    "16 bits": (sixteen, SHOWN, "", 1e-5),
    "16 bits, big endian": (lambda d: sixteen(d, ">"), SHOWN, "", 1e-5),
    "a colour profile": (profiled, SHOWN, "colour profile, which is not applied", 1e-5),
    "truncated": (cut, None, "bytes, .* are stored", 0),
    "too long": (longer, SHOWN, "of which the header describes", 1e-5),
    "JPEG labelled RGB": (packed("50", jpeg), SHOWN, "labelled RGB, but", 0.05),
    "damaged JPEG": (packed("50", jpeg, lambda data: data[: len(data) // 2] + bytes(300) + data[-900:]), None, "", 0),
}


@pytest.mark.parametrize("modality", ["retina", "pathology"])
@pytest.mark.parametrize("rule", PHOTOGRAPHS)
def test_colour_dicom(tmp_path: Path, modality: str, rule: str) -> None:
    change, values, said, within = PHOTOGRAPHS[rule]
    dataset = as_dicom(tmp_path, modality, BYTES)
    change(dataset)
    path = save_any(dataset, tmp_path)
    if rule == "damaged JPEG":
        assert any("data are damaged" in text for text in get(modality).read(path).warnings)
    else:
        judge(modality, Cell(path, values, said, within))


# --- pictures ---------------------------------------------------------------------------------------------------------


Writer = Callable[[Path, np.ndarray], Path]  # (H, W) or (H, W, 3) of bytes


def by_pillow(name: str, turn: Callable[[Image.Image], Image.Image] = lambda image: image, **options: Any) -> Writer:
    def write(folder: Path, values: np.ndarray) -> Path:
        turn(Image.fromarray(values)).save(folder / name, **options)
        return folder / name

    return write


def by_tifffile(turn: Callable[[np.ndarray], np.ndarray], **options: Any) -> Writer:
    def write(folder: Path, values: np.ndarray) -> Path:
        entries = {"photometric": "rgb" if values.ndim == 3 else "minisblack"} | options
        tifffile.imwrite(folder / "a.tif", turn(values), **entries)
        return folder / "a.tif"

    return write


def with_opacity(image: Image.Image) -> Image.Image:
    image.putalpha(Image.fromarray(np.where(CORNER, 0, 255).astype(np.uint8)))
    return image


def cmyk(image: Image.Image) -> Image.Image:
    return image.convert("CMYK")


def on_side(number: int = 6) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = number
    return exif


def wide_png(folder: Path, values: np.ndarray) -> Path:
    (folder / "a.png").write_bytes(imagecodecs.png_encode(values.astype(np.uint16) * 257))
    return folder / "a.png"


def cut_png(folder: Path, values: np.ndarray) -> Path:
    path = by_pillow("a.png")(folder, values)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def cut_jpeg(folder: Path, values: np.ndarray) -> Path:
    out = io.BytesIO()
    Image.fromarray(values).save(out, "JPEG", quality=100)
    (folder / "a.jpg").write_bytes(out.getvalue()[: len(out.getvalue()) // 2])
    return folder / "a.jpg"


def hurt_tiff_picture(folder: Path, values: np.ndarray) -> Path:
    return hurt_tiff(by_tifffile(lambda v: v, compression="jpeg")(folder, values), hurt)


def negative(values: np.ndarray) -> np.ndarray:
    return values.astype(np.int16) * 8 - 1024


def pages(folder: Path, values: np.ndarray) -> Path:
    first, second = Image.fromarray(values), Image.fromarray(values[::-1].copy())
    first.save(folder / "a.tif", save_all=True, append_images=[second])
    return folder / "a.tif"


def opened(values: np.ndarray) -> np.ndarray:
    return np.where(CORNER[..., None] if values.ndim == 3 else CORNER, 0, values) / 255


def turned(values: np.ndarray) -> np.ndarray:
    return np.rot90(values, -1) / 255


def stretched(values: np.ndarray) -> np.ndarray:
    return between(values.astype(float))


def plain(values: np.ndarray) -> np.ndarray:
    return values / 255


Right = Callable[[np.ndarray], np.ndarray] | None  # of the bytes; None: refused
PICTURES: dict[str, tuple[Writer, Right, str, float]] = {
    "PNG": (by_pillow("a.png"), plain, "", 1e-5),
    "PNG, opacity": (by_pillow("a.png", with_opacity), opened, "", 1e-5),
    "PNG, 16 bits": (wide_png, plain, "", 1e-5),
    "PNG, on its side": (by_pillow("a.png", exif=on_side()), turned, "", 1e-5),
    "PNG, cut short": (cut_png, None, "damaged|cut short", 0),
    "JPEG": (by_pillow("a.jpg", quality=100, subsampling=0), plain, "", 0.03),
    "JPEG, on its side": (by_pillow("a.jpg", quality=100, subsampling=0, exif=on_side()), turned, "", 0.03),
    "JPEG, cut short": (cut_jpeg, None, "damaged|cut short", 0),
    "TIFF, big endian": (by_tifffile(lambda v: v.astype(np.uint16) * 257, byteorder=">"), plain, "", 1e-5),
    "TIFF, signed": (by_tifffile(negative), stretched, "", 1e-5),
    "TIFF, 32 bits": (by_tifffile(lambda v: v.astype(np.uint32) * 9_000_000), stretched, "", 1e-5),
    "TIFF, floats": (by_tifffile(lambda v: v.astype(np.float32) / 255), plain, "", 1e-5),
    "TIFF, on its side": (by_tifffile(lambda v: v, extratags=[(274, "H", 1, 6, True)]), turned, "", 1e-5),
    "TIFF, LZW": (by_tifffile(lambda v: v, compression="lzw", predictor=True), plain, "", 1e-5),
    "TIFF, several pages": (pages, None, "several pages", 0),
}
OF_COLOURS: dict[str, tuple[Writer, Right, str, float]] = {
    "PNG, palette": (by_pillow("a.png", lambda image: image.quantize(200)), plain, "", 0.1),
    "PNG, a colour profile": (by_pillow("a.png", icc_profile=SWAPPED), plain, "colour profile, which is not", 1e-5),
    "JPEG, a colour profile": (by_pillow("a.jpg", quality=100, subsampling=0, icc_profile=SWAPPED), plain,
                               "colour profile, which is not", 0.03),
    "JPEG, CMYK": (by_pillow("a.jpg", cmyk, quality=100, subsampling=0), plain, "", 0.05),
    "TIFF, CMYK": (by_pillow("a.tif", cmyk), plain, "", 0.01),
    "TIFF, plane by plane": (by_tifffile(lambda v: np.moveaxis(v, -1, 0), planarconfig="separate"), plain, "", 1e-5),
    "TIFF, a colour profile": (by_tifffile(lambda v: v, iccprofile=SWAPPED), plain, "colour profile, which is", 1e-5),
    "TIFF, damaged JPEG": (hurt_tiff_picture, plain, "data are damaged", 1.0),
}  # fmt: skip
OF_GREYS: dict[str, tuple[Writer, Right, str, float]] = {
    "PNG, one bit": (by_pillow("a.png", lambda image: image.point(lambda v: 255 * (v > 99), "1")),
                     lambda v: (v > 99).astype(float), "only a few flat tones", 1e-5),
    "PNG, palette": (by_pillow("a.png", lambda image: image.convert("P")), plain, "", 1e-2),
    "TIFF, white is zero": (by_tifffile(lambda v: 255 - v, photometric="miniswhite"), plain, "", 1e-5),
    "TIFF, damaged JPEG": (hurt_tiff_picture, plain, "data are damaged", 1.0),
}  # fmt: skip
COLOURED = [(modality, rule) for modality in ("retina", "pathology") for rule in PICTURES | OF_COLOURS]
GREYS = [(modality, rule) for modality in ("xray", "ct") for rule in PICTURES | OF_GREYS
         if modality == "xray" or "TIFF" not in rule]  # fmt: skip


@pytest.mark.parametrize(("modality", "rule"), COLOURED)
def test_colour_pictures(tmp_path: Path, modality: str, rule: str) -> None:
    write, right, said, within = (PICTURES | OF_COLOURS)[rule]
    path = write(tmp_path, BYTES)
    judge(modality, Cell(path, None if right is None else right(BYTES), said, within))


@pytest.mark.parametrize(("modality", "rule"), GREYS)
def test_grey_pictures(tmp_path: Path, modality: str, rule: str) -> None:
    write, right, said, within = (PICTURES | OF_GREYS)[rule]
    values = (RAMP * 255).round().astype(np.uint8)
    truth = None if right is None else right(values)
    if truth is not None and modality == "ct":
        truth, within = truth[None] * 2000 - 1000, within * 2000
    judge(modality, Cell(write(tmp_path, values), truth, said if modality == "xray" or right is None else "", within))


@pytest.mark.parametrize("turn", [1, 3, 6])
def test_a_slide_that_lies_on_its_side_is_reported(tmp_path: Path, turn: int) -> None:
    big = np.kron(np.random.default_rng(0).integers(120, 240, (16, 16, 3)), np.ones((20, 20, 1))).astype(np.uint8)
    with tifffile.TiffWriter(tmp_path / "s.svs") as out:
        for picture in (big, big[::2, ::2].copy()):
            tags = [(274, "H", 1, turn, True)]
            out.write(picture, tile=(128, 128), photometric="rgb", subfiletype=int(picture is not big), extratags=tags)
    found = get("pathology").read(tmp_path / "s.svs").warnings
    assert any("orientation tag" in text for text in found) == (turn > 1)
