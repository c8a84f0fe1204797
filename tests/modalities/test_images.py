"""PNG, JPEG and TIFF decoding, and the code shared by the X-ray, retina and pathology readers."""

import os
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from m3bind.errors import ReadError
from m3bind.modalities import get
from m3bind.modalities.formats import images, limits

Make = Callable[..., Path]


def read_image(path: Path) -> tuple[images.Array, list[str]]:
    decoded = images.decode_image(path)
    return decoded.array, decoded.steps


@pytest.fixture
def ramp() -> np.ndarray:
    return np.add.outer(np.arange(40), np.arange(60)).astype(np.uint8) * 2


def test_eight_bit_grey_is_exact(tmp_path: Path, ramp: np.ndarray) -> None:
    Image.fromarray(ramp).save(tmp_path / "a.png")
    sample = get("xray").read(tmp_path / "a.png")
    assert sample.array.dtype == np.float32 and sample.array.shape == (40, 60)
    np.testing.assert_allclose(sample.array, ramp / 255, atol=1e-6)
    assert sample.warnings == ["only 60 x 40 pixels"]


@pytest.mark.parametrize(("top", "divisor"), [(200, 255), (1000, 1023), (4000, 4095), (60000, 65535)])
def test_sixteen_bit_is_scaled_by_the_bits_in_use(tmp_path: Path, top: int, divisor: int) -> None:
    values = np.linspace(0, top, 80 * 80).astype(np.uint16).reshape(80, 80)
    Image.fromarray(values).save(tmp_path / "a.png")
    array, steps = read_image(tmp_path / "a.png")
    np.testing.assert_allclose(array, values / divisor, atol=1e-6)
    assert steps == [f"16-bit values divided by {divisor}"]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "LA", "1"])
def test_grey_pictures_stored_in_other_modes_are_radiographs(tmp_path: Path, ramp: np.ndarray, mode: str) -> None:
    Image.fromarray(ramp).convert(mode).save(tmp_path / "a.png")
    array = get("xray").read(tmp_path / "a.png").array
    assert array.shape == (40, 60)
    if mode != "1":
        np.testing.assert_allclose(array, ramp / 255, atol=0.03)


def test_cmyk_jpeg(tmp_path: Path, make_picture: Make) -> None:
    Image.open(make_picture(tmp_path / "p.png", "pathology")).convert("CMYK").save(tmp_path / "p.jpg")
    assert get("pathology").read(tmp_path / "p.jpg").array.shape == (64, 64, 3)


def test_exif_orientation_is_applied(tmp_path: Path, ramp: np.ndarray) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise
    Image.fromarray(ramp).save(tmp_path / "a.jpg", exif=exif, quality=100)
    sample = get("xray").read(tmp_path / "a.jpg")
    np.testing.assert_allclose(sample.array, np.rot90(ramp, -1) / 255, atol=0.02)
    assert any("EXIF" in step for step in sample.steps)


def test_wrong_modality_is_refused_or_doubted(five_files: dict[str, Path]) -> None:
    for modality in ("xray", "ct"):
        for picture in ("retina", "pathology"):
            with pytest.raises(ReadError, match=r"a colour image, not a.*check the modality"):
                get(modality).read(five_files[picture])
    for modality in ("retina", "pathology"):
        with pytest.raises(ReadError, match=r"a grey image, not .* check the modality"):
            get(modality).read(five_files["xray"])
    assert "stained tissue" in " ".join(get("retina").read(five_files["pathology"]).warnings)
    assert "fundus" in " ".join(get("pathology").read(five_files["retina"]).warnings)


@pytest.mark.parametrize("modality", ["xray", "retina", "pathology"])
def test_right_modality_has_no_doubts(five_files: dict[str, Path], modality: str) -> None:
    assert get(modality).read(five_files[modality]).warnings == []


@pytest.mark.parametrize(
    ("modality", "other", "reader"), [("xray", "ct", "ct"), ("ecg", "xray", "ct, pathology, retina and xray|xray")]
)
def test_other_kinds_of_file_name_their_reader(
    five_files: dict[str, Path], modality: str, other: str, reader: str
) -> None:
    with pytest.raises(ReadError, match=f"not a file that {modality} reads") as caught:
        get(modality).read(five_files[other])
    assert any(name in str(caught.value) for name in reader.split("|"))


def test_missing_empty_folder_and_other_content(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "page.png").write_text("<html>not found</html>")
    (tmp_path / "dicom.png").write_bytes(bytes(128) + b"DICM" + bytes(50))
    (tmp_path / "folder.png").mkdir()
    for name, reason in (
        ("gone.png", "no such file"),
        ("empty.png", "empty"),
        ("page.png", "web page"),
        ("dicom.png", "DICOM"),
        ("folder.png", "folder"),
    ):
        with pytest.raises(ReadError, match=reason):
            get("xray").read(tmp_path / name)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_cut_short_is_refused_at_every_length(tmp_path: Path, suffix: str, make_picture: Make) -> None:
    whole = make_picture(tmp_path / f"a.{suffix}", "xray").read_bytes()
    for length in range(1, len(whole) - 20, max(1, len(whole) // 15)):
        (tmp_path / f"cut.{suffix}").write_bytes(whole[:length])
        with pytest.raises(ReadError, match=r"damaged|not a PNG or JPEG"):
            get("xray").read(tmp_path / f"cut.{suffix}")


def test_pixel_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_picture: Make) -> None:
    Image.new("L", (8000, 8001)).save(tmp_path / "big.png")
    with pytest.raises(ReadError, match="more than 64,000,000"):
        get("xray").read(tmp_path / "big.png")
    Image.new("L", (15, 500)).save(tmp_path / "thin.png")
    with pytest.raises(ReadError, match="only 15 x 500"):
        get("xray").read(tmp_path / "thin.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # Pillow's own guard ends as our error, too
    with pytest.raises(ReadError, match="more than 64,000,000"):
        get("xray").read(make_picture(tmp_path / "a.png", "xray", size=100))


def test_implausible_pictures_are_doubted(tmp_path: Path) -> None:
    def doubts(pixels: np.ndarray, modality: str = "xray") -> str:
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "a.png")
        return " ".join(get(modality).read(tmp_path / "a.png").warnings)

    assert "nearly blank" in doubts(np.full((80, 80), 120))
    assert "flat tones" in doubts(np.kron(np.eye(2), np.full((40, 40), 200)))
    assert "elongated" in doubts(np.random.default_rng(0).integers(0, 255, (70, 300)))
    dark = np.zeros((80, 80))
    dark[30:50, 30:50] = np.linspace(50, 250, 20)
    assert "CT slice" in doubts(dark)
    slightly = np.stack([np.tile(np.arange(80) * 2 + shift, (80, 1)) for shift in (0, 3, 5)], axis=2)
    assert "slightly coloured" in doubts(slightly)
    assert "hardly any colour" in doubts(slightly, "retina")
    glass = np.full((80, 80, 3), 245)
    glass[..., 1] = 235
    glass[:8, :8] = (200, 100, 180)
    assert "empty glass" in doubts(glass, "pathology")


@pytest.mark.parametrize("modality", ["xray", "ct", "retina", "ecg", "pathology"])
@pytest.mark.parametrize("size", [40, 160, 400])
def test_thumbnails_fit_and_show_something(five_files: dict[str, Path], modality: str, size: int) -> None:
    reader = get(modality)
    thumbnail = reader.thumbnail(reader.read(five_files[modality]), size)
    assert thumbnail.mode == "RGB" and max(thumbnail.size) <= size and max(thumbnail.size) >= size - 1
    assert np.asarray(thumbnail).std() > 5


# ------------------------------------------------------------------------------------------------------------- TIFF


@pytest.mark.parametrize("suffix", [".tif", ".tiff"])
@pytest.mark.parametrize("tile", [None, (16, 32)])
@pytest.mark.parametrize("compression", [None, "deflate", "lzw", "packbits"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_grey_tiff_is_exact(
    tmp_path: Path, ramp: np.ndarray, dtype: type, compression: str | None, tile: tuple[int, int] | None, suffix: str
) -> None:
    values = ramp.astype(dtype) * (1 if dtype is np.uint8 else 200)
    tifffile.imwrite(tmp_path / f"a{suffix}", values, compression=compression, tile=tile)
    array = get("xray").read(tmp_path / f"a{suffix}").array
    np.testing.assert_allclose(array, values / (255 if dtype is np.uint8 else 65535), atol=1e-6)


@pytest.mark.parametrize("tile", [None, (16, 32)])
@pytest.mark.parametrize("compression", [None, "deflate", "lzw", "jpeg"])
def test_colour_tiff(tmp_path: Path, compression: str | None, tile: tuple[int, int] | None, make_picture: Make) -> None:
    pixels = np.asarray(Image.open(make_picture(tmp_path / "p.png", "retina")))
    tifffile.imwrite(tmp_path / "a.tif", pixels, compression=compression, tile=tile, photometric="rgb")
    array = get("retina").read(tmp_path / "a.tif").array
    close = 1e-6 if compression != "jpeg" else 0.3
    np.testing.assert_allclose(array, pixels / 255, atol=close)
    assert np.abs(array - pixels / 255).mean() < 0.02


@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_sixteen_bit_colour_and_white_is_zero(tmp_path: Path, ramp: np.ndarray, byteorder: str) -> None:
    colour = np.stack([ramp, ramp // 2, ramp // 3], axis=2).astype(np.uint16) * 256
    tifffile.imwrite(tmp_path / "c.tif", colour, photometric="rgb", byteorder=byteorder)
    np.testing.assert_allclose(read_image(tmp_path / "c.tif")[0], colour / 65535, atol=1.1 / 255)
    for values in (ramp, ramp.astype(np.uint16) * 257):
        tifffile.imwrite(tmp_path / "w.tif", values, photometric="miniswhite", byteorder=byteorder)
        if values.dtype == np.uint16 and byteorder == ">":  # Pillow does not know this one
            with pytest.raises(ReadError, match="it is a TIFF file; export it as PNG"):
                read_image(tmp_path / "w.tif")
            continue
        array, _ = read_image(tmp_path / "w.tif")
        np.testing.assert_allclose(array, 1 - ramp / 255, atol=2e-3)


@pytest.mark.parametrize("compression", [None, "deflate"])
@pytest.mark.parametrize("turn", [1, 3, 6, 8])
def test_tiff_orientation_is_applied_once(tmp_path: Path, ramp: np.ndarray, turn: int, compression: str | None) -> None:
    tifffile.imwrite(tmp_path / "a.tif", ramp, compression=compression, extratags=[(274, 3, 1, turn, True)])
    array, steps = read_image(tmp_path / "a.tif")
    np.testing.assert_allclose(array, np.rot90(ramp, {1: 0, 3: 2, 6: -1, 8: 1}[turn]) / 255, atol=1e-6)
    assert sum("upright" in step for step in steps) == (turn != 1)


def test_floating_point_tiff(tmp_path: Path, ramp: np.ndarray) -> None:
    for values in (ramp / 200, ramp * 31.0 - 900):
        tifffile.imwrite(tmp_path / "a.tif", values.astype(np.float32))
        array, steps = read_image(tmp_path / "a.tif")
        true = values if values.max() <= 1 else (values - values.min()) / np.ptp(values)
        np.testing.assert_allclose(array, true, atol=1e-5)
        assert bool(steps) == (values.max() > 1)
    tifffile.imwrite(tmp_path / "a.tif", np.where(ramp == 6, np.nan, ramp).astype(np.float32))
    with pytest.raises(ReadError, match="not finite"):
        read_image(tmp_path / "a.tif")


def test_pages_of_a_tiff(tmp_path: Path, ramp: np.ndarray) -> None:
    with tifffile.TiffWriter(tmp_path / "copy.tif") as writer:
        writer.write(ramp)
        writer.write(ramp[::2, ::2], subfiletype=1)
    np.testing.assert_allclose(read_image(tmp_path / "copy.tif")[0], ramp / 255, atol=1e-6)
    tifffile.imwrite(tmp_path / "pages.tif", np.stack([ramp] * 3), photometric="minisblack")
    with pytest.raises(ReadError, match="several pages"):
        read_image(tmp_path / "pages.tif")


@pytest.mark.parametrize("target", ["itself", "back"])
def test_a_tiff_whose_pages_go_in_a_circle(tmp_path: Path, ramp: np.ndarray, target: str) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, ramp if target == "itself" else np.stack([ramp, ramp]), photometric="minisblack")
    data = bytearray(path.read_bytes())
    first = struct.unpack("<I", data[4:8])[0]
    at = first
    for _ in range(1 if target == "itself" else 2):  # the link at the end of the first or the second page
        link = at + 2 + 12 * struct.unpack("<H", data[at : at + 2])[0]
        at = struct.unpack("<I", data[link : link + 4])[0]
    assert at == 0
    data[link : link + 4] = struct.pack("<I", first)
    path.write_bytes(data)
    start = time.monotonic()
    try:
        np.testing.assert_allclose(read_image(path)[0], ramp / 255, atol=1e-6)
        assert target == "itself"
    except ReadError as error:
        assert "pages" in error.reason or "damaged" in error.reason
    assert time.monotonic() - start < 2


def test_cut_tiff_is_refused(tmp_path: Path, ramp: np.ndarray) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.random.default_rng(0).integers(0, 255, (99, 99), dtype=np.uint8))
    whole = (tmp_path / "a.tif").read_bytes()
    for length in range(4, len(whole) - 20, len(whole) // 15):
        (tmp_path / "cut.tif").write_bytes(whole[:length])
        with pytest.raises(ReadError, match=r"damaged|not a PNG or JPEG or TIFF"):
            get("xray").read(tmp_path / "cut.tif")


# --------------------------------------------------------------------------------------------- files that cost much


def test_special_files_are_never_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "device.png").symlink_to("/dev/zero")
    start = time.monotonic()
    for name in ("pipe.png", "device.png"):
        with pytest.raises(ReadError, match="not a regular file"):
            get("xray").read(tmp_path / name)
    assert time.monotonic() - start < 1


def test_stored_bytes_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_picture: Make) -> None:
    path = make_picture(tmp_path / "a.png", "xray")
    monkeypatch.setattr(limits, "LIMITS", limits.Limits(bytes=100))
    with pytest.raises(ReadError, match=r"bytes, more than 100;.* raise bytes in"):
        get("xray").read(path)


def test_a_size_that_no_compression_explains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 7000, 7000, 8, 2, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + head + body)
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("decoded"))
    with pytest.raises(ReadError, match=r"declares 147,000,000 bytes of content in \d+ stored bytes"):
        get("xray").read(tmp_path / "a.png")


def test_errors_do_not_quote_the_file(tmp_path: Path, ramp: np.ndarray) -> None:
    tifffile.imwrite(tmp_path / "a.tif", ramp, description="DOE JANE 1950")
    data = (tmp_path / "a.tif").read_bytes()
    for at in range(8, min(len(data), 400), 3):
        (tmp_path / "b.tif").write_bytes(data[:at] + b"\xff\xff" + data[at + 2 :])
        try:
            get("xray").read(tmp_path / "b.tif")
        except ReadError as error:
            assert "DOE" not in error.reason + error.hint
