"""Colours of DICOM files whose label and codestream disagree, against the image they were made from."""

import struct
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
from pydicom.encaps import encapsulate
from pydicom.pixels import convert_color_space
from pydicom.uid import UID

from m3bind.errors import ReadError
from m3bind.modalities.formats import dicom
from modalities.test_dicom import make, save

BASELINE, LOSSLESS = "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.70"
JPEG_2000 = "1.2.840.10008.1.2.4.90"


def photograph(seed: int = 0) -> np.ndarray:
    """An orange disc with a bright spot and dark lines on black, (96, 96, 3) uint8; smooth, so that JPEG is close."""
    y, x = np.mgrid[:96, :96] / 95 - 0.5
    lit = np.clip((0.45 - np.hypot(y, x)) * 12, 0, 1)
    spot = np.exp(-((y - 0.05 * seed) ** 2 + (x - 0.2) ** 2) * 90)
    wave = 0.1 * np.sin(12 * x + seed) * np.cos(9 * y)
    red, green, blue = 0.75 + wave, 0.4 + wave + 0.4 * spot, 0.15 + 0.5 * spot
    return np.clip(np.stack([red, green, blue], -1) * lit[..., None] * 255, 0, 255).astype(np.uint8)


def jpeg(rgb: np.ndarray, stored: str, marks: str = "", ids: tuple[int, ...] = (1, 2, 3), half: bool = False) -> bytes:
    """A JPEG whose components are `stored` ("RGB" or "YBR") and whose markers say only what `marks` does."""
    values = rgb if stored == "RGB" else convert_color_space(rgb, "RGB", "YBR_FULL")
    subsampling = "420" if half else "444"
    data = bytearray(imagecodecs.jpeg8_encode(
        np.ascontiguousarray(values), level=98, colorspace="YCBCR", outcolorspace="YCBCR", subsampling=subsampling
    ))  # fmt: skip
    at = 2
    while data[at + 1] != 0xDB:  # application segments of the encoder
        del data[at : at + 2 + struct.unpack(">H", data[at + 2 : at + 4])[0]]
    for code, shift in ((b"\xff\xc0", 6), (b"\xff\xda", 1)):
        start = data.find(code) + 4
        for k, number in enumerate(ids):
            data[start + (shift + 3 * k if code == b"\xff\xc0" else shift + 2 * k)] = number
    adobe = b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0"
    segments = {"": b"", "JFIF": b"\xff\xe0\0\x10JFIF\0\1\1\0\0\1\0\1\0\0", "Adobe 0": adobe + b"\0",
                "Adobe 1": adobe + b"\1"}  # fmt: skip
    data[2:2] = segments[marks]
    return bytes(data)


def read(path: Path, rgb: np.ndarray, stream: bytes, uid: str, label: str, **entries: Any) -> tuple[np.ndarray, str]:
    """The picture and its doubts, in one text."""
    header = make(rgb, PhotometricInterpretation=label, **entries)
    header.file_meta.TransferSyntaxUID = UID(uid)
    header.PixelData = encapsulate([stream])
    header["PixelData"].is_undefined_length = True
    save(header, path)
    array, _, doubts = dicom.colour(dicom.open_dicom(path), path)
    return array, "; ".join(doubts)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(
    ("stored", "marks", "ids", "half", "label", "said"),
    [
        ("YBR", "JFIF", (1, 2, 3), False, "YBR_FULL", ""),
        ("YBR", "", (1, 2, 3), True, "YBR_FULL_422", ""),
        ("YBR", "Adobe 1", (1, 2, 3), False, "YBR_FULL", ""),
        ("RGB", "", (82, 71, 66), False, "RGB", ""),
        ("RGB", "Adobe 0", (1, 2, 3), False, "RGB", ""),
        ("RGB", "", (1, 2, 3), False, "RGB", ""),
        ("YBR", "", (1, 2, 3), False, "RGB", "labelled RGB, but the JPEG stream has no marker of RGB: taken as YBR"),
        ("YBR", "", (0, 1, 2), True, "RGB", "labelled RGB, but YBR by colour at half the resolution: taken as YBR"),
        ("YBR", "JFIF", (1, 2, 3), False, "RGB", "labelled RGB, but YBR by a JFIF marker: taken as YBR"),
        ("YBR", "Adobe 1", (1, 2, 3), False, "RGB", "labelled RGB, but YBR by an Adobe marker (transform 1)"),
        ("RGB", "JFIF", (1, 2, 3), False, "RGB", "labelled RGB, but YBR by a JFIF marker: taken as RGB"),
        ("RGB", "Adobe 0", (1, 2, 3), False, "YBR_FULL", "labelled YBR_FULL, but RGB by an Adobe marker (transform 0)"),
        ("RGB", "", (82, 71, 66), False, "YBR_FULL_422", "RGB by component numbers that spell RGB: taken as RGB"),
        ("YBR", "", (82, 71, 66), False, "YBR_FULL", "RGB by component numbers that spell RGB: taken as YBR"),
    ],
)
def test_a_jpeg_shows_its_colours_whatever_it_is_labelled(
    tmp_path: Path, seed: int, stored: str, marks: str, ids: tuple[int, ...], half: bool, label: str, said: str
) -> None:
    rgb = photograph(seed)
    array, doubts = read(tmp_path / "a.dcm", rgb, jpeg(rgb, stored, marks, ids, half), BASELINE, label)
    assert np.abs(array - rgb / 255).mean() < 0.02
    assert said in doubts and bool(said) == bool(doubts)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(
    ("transform", "stored", "label", "said"),
    [
        (True, "RGB", "YBR_RCT", ""),
        (False, "RGB", "RGB", ""),
        (False, "YBR", "YBR_FULL", ""),
        (True, "RGB", "RGB", "labelled RGB, but its JPEG 2000 stream has a colour transform, which was inverted"),
        (True, "RGB", "YBR_FULL", "labelled YBR_FULL, but its JPEG 2000 stream has a colour transform: taken as RGB"),
        (False, "RGB", "YBR_RCT", "labelled YBR_RCT, but its JPEG 2000 stream has no colour transform: taken as RGB"),
        (False, "YBR", "YBR_ICT", "labelled YBR_ICT, but its JPEG 2000 stream has no colour transform: taken as YBR"),
    ],
)
def test_jpeg_2000_shows_its_colours_whatever_it_is_labelled(
    tmp_path: Path, seed: int, transform: bool, stored: str, label: str, said: str
) -> None:
    rgb = photograph(seed)
    values = rgb if stored == "RGB" else convert_color_space(rgb, "RGB", "YBR_FULL")
    stream = imagecodecs.jpeg2k_encode(np.ascontiguousarray(values), mct=transform, reversible=True, codecformat="J2K")
    array, doubts = read(tmp_path / "a.dcm", rgb, stream, JPEG_2000, label)
    assert np.abs(array - rgb / 255).mean() < 0.01
    assert said in doubts and bool(said) == bool(doubts)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(
    ("stored", "label", "said"),
    [
        ("RGB", "RGB", ""),
        ("YBR", "YBR_FULL", ""),
        ("RGB", "YBR_RCT", "labelled YBR_RCT, but the pixels are not compressed: taken as RGB"),
        ("YBR", "YBR_ICT", "labelled YBR_ICT, but the pixels are not compressed: taken as YBR"),
        ("YBR", "RGB", "labelled RGB, but its values look like YBR: colours may be wrong"),
        ("RGB", "YBR_FULL", "labelled YBR_FULL, but its values look like RGB: colours may be wrong"),
    ],
)
def test_labels_of_uncompressed_pixels_are_held_against_the_values(
    tmp_path: Path, seed: int, stored: str, label: str, said: str
) -> None:
    rgb = photograph(seed)
    values = rgb if stored == "RGB" else convert_color_space(rgb, "RGB", "YBR_FULL")
    path = save(make(values, PhotometricInterpretation=label), tmp_path / "a.dcm")
    array, _, doubts = dicom.colour(dicom.open_dicom(path), path)
    assert said in "; ".join(doubts) and bool(said) == bool(doubts)
    if "may be wrong" not in said:
        assert np.abs(array - rgb / 255).mean() < 0.01


def test_colours_without_a_planar_configuration(tmp_path: Path) -> None:
    rgb = photograph()
    header = make(rgb)
    del header.PlanarConfiguration
    path = save(header, tmp_path / "a.dcm")
    array, _, doubts = dicom.colour(dicom.open_dicom(path), path)
    np.testing.assert_allclose(array, rgb / 255, atol=1e-6)
    assert any("PlanarConfiguration" in text for text in doubts)


# --- other facts ------------------------------------------------------------------------------------------------------

RAMP = np.linspace(0, 255, 64 * 80).reshape(64, 80).astype(np.uint8)


def grey(path: Path, stored: np.ndarray, stream: bytes, uid: str, **entries: Any) -> tuple[np.ndarray, str]:
    header = make(stored, **entries)
    header.file_meta.TransferSyntaxUID = UID(uid)
    header.PixelData = encapsulate([stream])
    header["PixelData"].is_undefined_length = True
    save(header, path)
    array, _, doubts = dicom.grey(dicom.open_dicom(path), path)
    return array, "; ".join(doubts)


@pytest.mark.parametrize(("bits", "precision"), [(12, 8), (16, 8), (8, 12)])
def test_another_precision_than_the_header_states(tmp_path: Path, bits: int, precision: int) -> None:
    values = (RAMP.astype(np.uint16) * ((1 << precision) - 1) // 255).astype("<u2" if precision > 8 else "u1")
    stream = imagecodecs.jpeg2k_encode(values, bitspersample=precision, reversible=True, codecformat="J2K")
    allocated = 8 if bits == 8 else 16
    array, doubts = grey(tmp_path / "a.dcm", values.astype("<u2" if allocated == 16 else "u1"), stream, JPEG_2000,
                         BitsAllocated=allocated, BitsStored=bits, HighBit=bits - 1)  # fmt: skip
    assert f"the header states {bits} bits, the compressed frame {precision}" in doubts
    np.testing.assert_allclose(array, values / values.max(), atol=1e-6)


@pytest.mark.parametrize("bits", [12, 16])
def test_eight_bit_colours_labelled_deeper_are_not_dark(tmp_path: Path, bits: int) -> None:
    rgb = photograph()
    stream = imagecodecs.jpeg2k_encode(rgb, mct=True, reversible=True, codecformat="J2K")
    array, doubts = read(tmp_path / "a.dcm", rgb, stream, JPEG_2000, "YBR_RCT",
                         BitsAllocated=16, BitsStored=bits, HighBit=bits - 1)  # fmt: skip
    np.testing.assert_allclose(array, rgb / 255, atol=0.01)
    assert "bits, the compressed frame" in doubts


@pytest.mark.parametrize("signed", [0, 1])
def test_another_sign_than_the_header_states(tmp_path: Path, signed: int) -> None:
    values = RAMP.astype(np.int16) * 4 if not signed else RAMP.astype(np.uint16) * 4
    stream = imagecodecs.jpeg2k_encode(values, reversible=True, codecformat="J2K")
    _, doubts = grey(tmp_path / "a.dcm", values.astype("<i2" if signed else "<u2"), stream, JPEG_2000)
    assert f"the header states {('unsigned', 'signed')[signed]} values (taken)" in doubts


@pytest.mark.parametrize(("samples", "components"), [(1, 3), (3, 1)])
def test_another_number_of_components_is_refused(tmp_path: Path, samples: int, components: int) -> None:
    rgb = photograph()
    stream = jpeg(rgb, "YBR") if components == 3 else imagecodecs.jpeg8_encode(rgb[..., 0].copy())
    with pytest.raises(ReadError, match=f"header: {samples} samples per pixel, compressed frame: {components}"):
        if samples == 1:
            grey(tmp_path / "a.dcm", rgb[..., 0], stream, BASELINE)
        else:
            read(tmp_path / "a.dcm", rgb, stream, BASELINE, "RGB")


@pytest.mark.parametrize("kind", ["ends early", "noise", "bytes lost"])
@pytest.mark.parametrize("colour", [True, False])
def test_damaged_jpeg_data_are_reported(tmp_path: Path, kind: str, colour: bool) -> None:
    noise = np.random.default_rng(0).integers(0, 60, (96, 96, 3)).astype(np.uint8)
    rgb = np.clip(photograph().astype(int) + noise, 0, 255).astype(np.uint8)
    data = bytearray(jpeg(rgb, "YBR", "JFIF") if colour else imagecodecs.jpeg8_encode(rgb[..., 0].copy(), level=90))
    middle = len(data) // 2
    if kind == "ends early":
        data[middle:] = b"\xff\xd9"
    elif kind == "noise":
        data[middle : middle + 300] = np.random.default_rng(1).integers(0, 255, 300, np.uint8).tobytes()
    else:
        del data[middle : middle + 300]
    try:
        doubts = (read(tmp_path / "a.dcm", rgb, bytes(data), BASELINE, "YBR_FULL") if colour else
                  grey(tmp_path / "a.dcm", rgb[..., 0].copy(), bytes(data), BASELINE))[1]  # fmt: skip
    except ReadError as error:
        doubts = error.reason
    assert "damaged" in doubts
    assert "damaged" not in read(tmp_path / "b.dcm", rgb, jpeg(rgb, "YBR", "JFIF"), BASELINE, "YBR_FULL")[1]


@pytest.mark.parametrize("label", ["YBR_RCT", "YBR_ICT"])
@pytest.mark.parametrize("size", [0.9, 1.0, 1.07])
def test_the_label_decides_where_values_do_not(tmp_path: Path, label: str, size: float) -> None:
    """A large orange disc on black: as luminance and differences most of it would be colours, too."""
    y, x = np.mgrid[-1:1:96j, -1:1:96j]
    radius = np.hypot(y, x)[..., None]
    rgb = np.where(radius < size, [0.75, 0.38, 0.16] - radius * [0.25, 0.15, 0.08], 0.0)
    stored = (rgb * 255).astype(np.uint8)
    stream = imagecodecs.jpeg2k_encode(stored, level=0, codecformat="J2K", reversible=True, mct=False)
    array, doubts = read(tmp_path / "a.dcm", stored, stream, JPEG_2000, label)
    np.testing.assert_allclose(array, stored / 255, atol=1e-6)
    assert "has no colour transform: taken as RGB" in doubts
