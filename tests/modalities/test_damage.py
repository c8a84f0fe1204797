"""Damaged compressed data that the decoder accepts: images, TIFF, DICOM and slides report it."""

import io
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image
from pydicom.encaps import encapsulate, get_frame
from pydicom.uid import UID

from m3bind.errors import ReadError
from m3bind.modalities import get
from m3bind.modalities.formats import damage, dicom, images
from modalities import ct_files
from modalities.test_dicom import make, save
from modalities.test_slides import PINK, discs, write_dicom

GREY = (1000 + 800 * np.sin(np.arange(96)[:, None] / 7) * np.cos(np.arange(96) / 5)).astype(np.uint16)
SLIDE = discs(512, 512, (256, 256, 230, PINK))
Damage = Callable[[bytes], bytes]


def tail(data: bytes) -> bytes:
    """The second half zero, as copies that were interrupted are."""
    return data[: len(data) // 2] + bytes(len(data) - len(data) // 2)


def middle(data: bytes) -> bytes:
    """Sixty bytes in the middle overwritten."""
    noise = np.random.default_rng(3).integers(1, 250, 60).astype(np.uint8).tobytes()
    return data[: len(data) // 2] + noise + data[len(data) // 2 + 60 :]


def no_end(data: bytes) -> bytes:
    return data.rstrip(b"\0")[:-2] + b"\0\0"


def hurt_tiff(path: Path, how: Damage | None) -> Path:
    """Every compressed piece of the first page damaged in place."""
    with tifffile.TiffFile(path) as file:
        places = list(zip(file.pages[0].dataoffsets, file.pages[0].databytecounts))
    data = bytearray(path.read_bytes())
    for at, count in places if how else ():
        data[at : at + count] = how(bytes(data[at : at + count])).ljust(count, b"\0")
    path.write_bytes(data)
    return path


def doubts(warnings: list[str]) -> list[str]:
    return [doubt for doubt in warnings if "data are damaged" in doubt]


KINDS = [("jpeg", None), ("jpeg", tail), ("jpeg", middle), ("jpeg2000", None), ("jpeg2000", no_end)]


@pytest.mark.parametrize(("compression", "how"), KINDS)
@pytest.mark.parametrize("tile", [None, (256, 256)])
def test_tiff_pictures(tmp_path: Path, compression: str, how: Damage | None, tile: tuple[int, int] | None) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, SLIDE, compression=compression, photometric="rgb", tile=tile)
    picture = images.decode_image(hurt_tiff(path, how))
    assert len(doubts(picture.warnings)) == (how is not None)


@pytest.mark.parametrize(("compression", "how"), KINDS)
def test_tiff_slides(tmp_path: Path, compression: str, how: Damage | None) -> None:
    path = tmp_path / "a.svs"
    with tifffile.TiffWriter(path) as out:
        kind = {"tile": (128, 128), "compression": compression, "photometric": "rgb", "metadata": None}
        out.write(SLIDE, resolution=(20_000, 20_000), resolutionunit="CENTIMETER", **kind)
        out.write(SLIDE[::4, ::4].copy(), subfiletype=1, **kind)
    sample = get("pathology").read(hurt_tiff(path, how))
    assert len(doubts(sample.warnings)) == (how is not None)
    assert sample.spacing == (0.0005, 0.0005)


@pytest.mark.parametrize("how", [None, tail, middle])
def test_dicom_slides(tmp_path: Path, how: Damage | None) -> None:
    import pydicom

    path = write_dicom(tmp_path / "s", SLIDE, factors=(1,), tile=256) / "level0.dcm"
    header = pydicom.dcmread(path)
    frames = np.frombuffer(header.PixelData, np.uint8).reshape(-1, 256, 256, 3)
    streams = [imagecodecs.jpeg8_encode(np.ascontiguousarray(frame), level=90) for frame in frames]
    header.PixelData = encapsulate([how(stream) if how else stream for stream in streams])
    header["PixelData"].is_undefined_length = True
    header.PhotometricInterpretation = "YBR_FULL_422"
    header.file_meta.TransferSyntaxUID = UID("1.2.840.10008.1.2.4.50")
    header.save_as(path)
    assert len(doubts(get("pathology").read(path).warnings)) == (how is not None)


def encoded(kind: str) -> tuple[bytes, str]:
    if kind == "lossless":
        return imagecodecs.ljpeg_encode(GREY, bitspersample=12), "1.2.840.10008.1.2.4.70"
    if kind == "JPEG-LS":
        return imagecodecs.jpegls_encode(GREY), "1.2.840.10008.1.2.4.80"
    stream = imagecodecs.jpeg2k_encode(GREY, level=0, codecformat="J2K", bitspersample=12, reversible=True)
    return stream, "1.2.840.10008.1.2.4.90"


@pytest.mark.parametrize("kind", ["lossless", "JPEG 2000", "JPEG-LS"])
@pytest.mark.parametrize("pad", [b"", b"\0", b"\0\0", b"\xff"], ids=["", "0", "00", "ff"])
def test_whole_frames_are_not_doubted_whatever_they_are_padded_with(tmp_path: Path, kind: str, pad: bytes) -> None:
    stream, uid = encoded(kind)
    array, found = shown(tmp_path, stream + pad, uid)
    assert found == []
    np.testing.assert_allclose(array, (GREY - GREY.min()) / np.ptp(GREY), atol=1e-4)


@pytest.mark.parametrize("kind", ["lossless", "JPEG 2000"])
def test_frames_without_an_end_are_doubted(tmp_path: Path, kind: str) -> None:
    stream, uid = encoded(kind)
    assert len(shown(tmp_path, no_end(stream), uid)[1]) == 1


def test_other_frames_without_an_end_are_refused(tmp_path: Path) -> None:
    stream, uid = encoded("JPEG-LS")
    with pytest.raises(ReadError, match="cut short"):
        shown(tmp_path, no_end(stream), uid)


# --- in the middle of a frame -----------------------------------------------------------------------------------------


LARGE = np.tile(GREY, (3, 3))
NOISY = (LARGE + np.random.default_rng(0).normal(0, 20, LARGE.shape)).clip(0, 4095).astype(np.uint16)
ROOT = "1.2.840.10008.1.2."


def rle(values: np.ndarray) -> bytes:
    header = make(values, bits=12)
    header.compress(f"{ROOT}5")
    return get_frame(header.PixelData, 0, number_of_frames=1)


CODECS: dict[str, tuple[Callable[[np.ndarray], bytes], str]] = {
    "JPEG 2000": (lambda a: imagecodecs.jpeg2k_encode(a, level=0, codecformat="J2K", reversible=True), f"{ROOT}4.90"),
    "JPEG-LS": (imagecodecs.jpegls_encode, f"{ROOT}4.80"),
    "lossless JPEG": (lambda a: imagecodecs.ljpeg_encode(a, bitspersample=12), f"{ROOT}4.70"),
    "JPEG of 12 bits": (lambda a: imagecodecs.jpeg8_encode(a, level=95, bitspersample=12), f"{ROOT}4.51"),
    "RLE": (rle, f"{ROOT}5"),
}


def zeros(data: bytes, at: int) -> bytes:
    return data[:at] + bytes(2400) + data[at + 2400 :]


def lost(data: bytes, at: int) -> bytes:
    return data[:at] + data[at + 2400 :]


def twice(data: bytes, at: int) -> bytes:
    return data[:at] + data[at - 2400 :]


def other(data: bytes, at: int) -> bytes:
    noise = np.random.default_rng(at).integers(0, 256, 2400).astype(np.uint8).tobytes()
    return data[:at] + noise + data[at + 2400 :]


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("change", [zeros, lost, twice, other])
@pytest.mark.parametrize("place", [0.3, 0.5, 0.7])
def test_damage_in_the_middle_is_refused_or_reported(
    tmp_path: Path, codec: str, change: Callable[[bytes, int], bytes], place: float
) -> None:
    encode, uid = CODECS[codec]
    stream = encode(NOISY)
    assert shown(tmp_path, stream, uid, NOISY)[1] == []
    try:
        said = shown(tmp_path, change(stream, int(place * len(stream))), uid, NOISY)[1]
    except ReadError as error:
        said = [error.reason]
    assert any("damaged" in text for text in said)


PACKINGS: list[dict[str, Any]] = [
    {}, {"tile_size": (32, 32)}, {"quality_mode": "rates", "quality_layers": [9, 3, 0]}, {"plt": True},
    {"precinct_size": (32, 32), "codeblock_size": (16, 16)},
]  # fmt: skip


@pytest.mark.parametrize("options", PACKINGS)
@pytest.mark.parametrize("level", [0, 255, None])
def test_complete_jpeg_2000_is_not_doubted_however_it_is_packed(options: dict[str, Any], level: int | None) -> None:
    values = np.full((200, 300, 3), level or 0, np.uint8)
    if level is None:
        values[100:] = np.random.default_rng(1).integers(0, 256, (100, 300, 3))
    out = io.BytesIO()
    Image.fromarray(values).save(out, "JPEG2000", no_jp2=True, **options)
    assert damage.of_stream(out.getvalue()) == ""


def packed(values: np.ndarray, across_rows: bool) -> bytes:
    """RLE as PS3.5 Annex G says, or with packets that go on over the ends of rows, as some writers leave it."""
    found = bytearray()
    for line in [values.ravel()] if across_rows else values:
        for start in range(0, len(line), 128):
            part = line[start : start + 128]
            same = len(part) > 1 and (part == part[0]).all()
            found += bytes([257 - len(part), part[0]]) if same else bytes([len(part) - 1]) + part.tobytes()
    found += bytes(len(found) % 2)
    return struct.pack("<16I", 1, 64, *[0] * 14) + bytes(found)


@pytest.mark.parametrize("across_rows", [False, True])
@pytest.mark.parametrize("shape", [(40, 50), (40, 128), (40, 129), (9, 300)])
@pytest.mark.parametrize("kind", ["noise", "black", "margins"])
def test_whole_rle_is_not_doubted(across_rows: bool, shape: tuple[int, int], kind: str) -> None:
    values = np.random.default_rng(2).integers(0, 256, shape).astype(np.uint8)
    if kind != "noise":
        values[:, :9] = values[:, -9:] = values[:9] = 0
    if kind == "black":
        values[:] = 0
    assert damage.of_rle(packed(values, across_rows), *shape) == ""


def shown(folder: Path, stream: bytes, uid: str, like: np.ndarray = GREY) -> tuple[np.ndarray, list[str]]:
    header = make(like, bits=12)
    header.file_meta.TransferSyntaxUID = UID(uid)
    header.PixelData = encapsulate([stream])
    header["PixelData"].is_undefined_length = True
    path = save(header, folder / "a.dcm")
    array, _, found = dicom.grey(dicom.open_dicom(path), path)
    return array, found


def test_what_is_not_compressed_is_no_matter() -> None:
    assert damage.of_stream(b"") == damage.of_stream(b"\0\xff\xd8\xff\xc0" * 20) == ""


@pytest.mark.parametrize("hurt", [0, 1, 3])
def test_slices_of_ct(tmp_path: Path, hurt: int) -> None:
    volume = ct_files.body(side=32)
    made = ct_files.slices(volume)
    for number, header in enumerate(made):
        stored = np.frombuffer(header.PixelData, np.uint16).reshape(32, 32)
        stream = imagecodecs.jpeg2k_encode(stored, level=0, codecformat="J2K", reversible=True)
        header.file_meta.TransferSyntaxUID = UID("1.2.840.10008.1.2.4.90")
        header.PixelData = encapsulate([no_end(stream) if number < hurt else stream])
        header["PixelData"].is_undefined_length = True
    found = doubts(get("ct").read(ct_files.write(tmp_path / "s", made)).warnings)
    assert len(found) == bool(hurt) and all(doubt.startswith(f"{hurt} of 12 slices: ") for doubt in found)
