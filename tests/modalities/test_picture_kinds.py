"""PNG, JPEG and TIFF of every depth, sign, colour model and opacity, against the values they were made from."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

from m3bind.errors import ReadError
from m3bind.modalities import get
from m3bind.modalities.formats import damage, images

H, W = 64, 48
RAMP = np.linspace(0, 1, H * W).reshape(H, W)
COLOUR = np.stack([RAMP, RAMP[::-1] * 0.6, RAMP[:, ::-1] * 0.3], axis=-1)
OPAQUE = np.full((H, W), 255, np.uint8)
OPAQUE[:16], OPAQUE[16:24] = 0, 128


def read_image(path: Path) -> tuple[images.Array, list[str]]:
    decoded = images.decode_image(path)
    return decoded.array, decoded.steps


def tiff(path: Path, values: np.ndarray, **options: Any) -> Path:
    tifffile.imwrite(path, values, **options)
    return path


def between(values: np.ndarray) -> np.ndarray:
    low, high = float(values.min()), float(values.max())
    return (values.astype(np.float64) - low) / (high - low)


@pytest.mark.parametrize(
    ("kind", "low", "high"),
    [("i1", -100, 100), ("i2", -1024, 1016), ("i2", -32768, 32767), ("i4", -100_000, 900_000), ("i4", 0, 2_000_000),
     ("u4", 0, 4e9), ("f2", -3, 5), ("f4", -3, 5), ("f8", -1000, 3000)],
)  # fmt: skip
@pytest.mark.parametrize(
    "options",
    [{}, {"byteorder": ">"}, {"compression": "lzw", "predictor": True}, {"compression": "zstd"}, {"tile": (32, 32)}],
    ids=["plain", "big-endian", "lzw", "zstd", "tiled"],
)
def test_numbers_are_stretched_and_never_clipped(
    tmp_path: Path, kind: str, low: float, high: float, options: dict[str, Any]
) -> None:
    values = (low + RAMP * (high - low)).astype(kind)
    array, steps = read_image(tiff(tmp_path / "a.tif", values, **options))
    np.testing.assert_allclose(array, between(values), atol=1e-5)
    assert any(step.startswith("stretched from its minimum") for step in steps)
    assert len(np.unique(array)) > 0.9 * len(np.unique(values))


@pytest.mark.parametrize("kind", ["u2", "u4", "i2", "i4"])
def test_twelve_bits_are_twelve_bits_in_any_container(tmp_path: Path, kind: str) -> None:
    values = (RAMP * 4095).astype(kind)
    array, steps = read_image(tiff(tmp_path / "a.tif", values))
    np.testing.assert_allclose(array, values / 4095, atol=1e-6)
    assert steps == ["16-bit values divided by 4095"]


@pytest.mark.parametrize("kind", ["u1", "u2", "i2", "f4"])
def test_white_is_zero_is_turned_once(tmp_path: Path, kind: str) -> None:
    low, high = {"u1": (0, 255), "u2": (0, 65535), "i2": (-1024, 1016), "f4": (0, 1)}[kind]
    values = (high - RAMP * (high - low)).astype(kind)
    array, _ = read_image(tiff(tmp_path / "a.tif", values, photometric="miniswhite"))
    np.testing.assert_allclose(array, RAMP, atol=5e-3)


@pytest.mark.parametrize("top", [65535, 4095])
@pytest.mark.parametrize("form", ["png", "tiff", "planes", "big-endian"])
def test_colours_of_sixteen_bits(tmp_path: Path, top: int, form: str) -> None:
    values = (COLOUR * top).astype(np.uint16)
    path = tmp_path / ("a.png" if form == "png" else "a.tif")
    if form == "png":
        path.write_bytes(imagecodecs.png_encode(values))
    elif form == "planes":
        tiff(path, np.moveaxis(values, -1, 0), photometric="rgb", planarconfig="separate")
    else:
        tiff(path, values, photometric="rgb", byteorder=">" if form == "big-endian" else "<")
    np.testing.assert_allclose(read_image(path)[0], values / top, atol=1e-6)


@pytest.mark.parametrize("kind", ["i2", "f4", "u4"])
def test_colours_are_stretched_together(tmp_path: Path, kind: str) -> None:
    low, high = {"i2": (-1000, 1000), "f4": (-2, 7), "u4": (0, 4e9)}[kind]
    values = (low + COLOUR * (high - low)).astype(kind)
    array, _ = read_image(tiff(tmp_path / "a.tif", values, photometric="rgb"))
    np.testing.assert_allclose(array, between(values), atol=1e-5)


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("kind", ["u1", "i2"])
def test_orientation_is_applied_whoever_reads(tmp_path: Path, turn: int, kind: str) -> None:
    values = (RAMP * 255).astype("u1") if kind == "u1" else (RAMP * 2040 - 1024).astype("i2")
    tiff(tmp_path / "a.tif", values, extratags=[(274, "H", 1, turn, True)])
    upright = {1: RAMP, 2: RAMP[:, ::-1], 3: RAMP[::-1, ::-1], 4: RAMP[::-1], 5: RAMP.T, 6: np.rot90(RAMP, -1),
               7: RAMP[::-1, ::-1].T, 8: np.rot90(RAMP)}[turn]  # fmt: skip
    np.testing.assert_allclose(read_image(tmp_path / "a.tif")[0], upright, atol=5e-3)


@pytest.mark.parametrize("compression", ["jpeg2000", "webp", "jpegxl", "lzw", "zstd", "packbits", "lzma"])
def test_compressions_inside_tiff_are_read(tmp_path: Path, compression: str) -> None:
    values = (COLOUR * 255).astype(np.uint8)
    options: dict[str, Any] = {"compressionargs": {"level": 100, "lossless": True}} if compression == "webp" else {}
    path = tiff(tmp_path / "a.tif", values, photometric="rgb", compression=compression, **options)
    np.testing.assert_allclose(read_image(path)[0], values / 255, atol=0.02)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    path = tiff(tmp_path / "a.tif", (COLOUR * 255).astype(np.uint8), photometric="rgb", compression="jpeg2000")
    with tifffile.TiffFile(path) as file:
        at, count = file.pages[0].dataoffsets[0], file.pages[0].databytecounts[0]
    data = bytearray(path.read_bytes())
    data[at : at + count] = bytes(count)
    path.write_bytes(data)
    with pytest.raises(ReadError, match="cannot be decoded as JPEG 2000"):
        read_image(path)
    values = np.zeros((H, W, 4), np.uint16)
    with pytest.raises(ReadError, match="colour model"):
        read_image(tiff(tmp_path / "b.tif", values[..., :3], photometric="icclab"))


# --- transparency -----------------------------------------------------------------------------------------------------


def clear(path: Path, mode: str) -> Path:
    """A picture whose rows 0..15 are transparent, 16..23 half so, with white or magenta hidden below."""
    grey, colour = (RAMP * 255).astype(np.uint8), (COLOUR * 255).astype(np.uint8)
    grey[:16], colour[:16] = 255, (255, 0, 255)
    both, four = np.dstack([grey, OPAQUE]), np.dstack([colour, OPAQUE])
    key = {"transparency": 255}
    if mode in ("LA", "RGBA"):
        Image.fromarray(both if mode == "LA" else four).save(path)
    elif mode in ("LA16", "RGBA16"):
        path.write_bytes(imagecodecs.png_encode((both if mode == "LA16" else four).astype(np.uint16) * 257))
    elif mode == "L key":
        Image.fromarray(np.where(OPAQUE == 0, 255, np.minimum(grey, 254)).astype(np.uint8)).save(path, **key)
    elif mode == "P key":
        Image.fromarray(np.where(OPAQUE == 0, 255, np.minimum(grey, 254)).astype(np.uint8)).convert("P").save(
            path, **key
        )
    elif mode == "RGB key":
        Image.fromarray(colour).save(path, transparency=(255, 0, 255))
    elif mode == "16-bit key":
        wide = (RAMP * 60000).astype(np.uint16)
        wide[:16] = 65535
        Image.fromarray(wide).save(path, transparency=65535)
    else:
        premultiplied = mode == "TIFF premultiplied"
        if premultiplied:
            four[..., :3] = (four[..., :3] * (OPAQUE[..., None] / 255)).astype(np.uint8)
        tiff(path, four, photometric="rgb", extrasamples=["assocalpha" if premultiplied else "unassalpha"])
    return path


MODES = ["LA", "RGBA", "LA16", "RGBA16", "L key", "P key", "RGB key", "16-bit key", "TIFF", "TIFF premultiplied"]


@pytest.mark.parametrize("mode", MODES)
def test_what_is_transparent_is_seen_on_black(tmp_path: Path, mode: str) -> None:
    path = clear(tmp_path / ("a.tif" if mode.startswith("TIFF") else "a.png"), mode)
    array, steps = read_image(path)
    assert array[:16].max() == 0 and any("transparent" in step for step in steps)
    truth = COLOUR if array.ndim == 3 and mode != "P key" else RAMP
    if mode == "P key":
        array = array[..., 0]
    if mode == "16-bit key":
        truth = RAMP * 60000 / 65535
    np.testing.assert_allclose(array[24:], truth[24:], atol=5e-3)
    if "key" not in mode:
        np.testing.assert_allclose(array[16:24], truth[16:24] * 128 / 255, atol=1e-2)


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_opaque_pictures_are_as_without_opacity(tmp_path: Path, mode: str) -> None:
    plain = (RAMP if mode == "LA" else COLOUR) * 255
    Image.fromarray(np.dstack([plain, np.full((H, W), 255)]).astype(np.uint8)).save(tmp_path / "a.png")
    array, steps = read_image(tmp_path / "a.png")
    np.testing.assert_array_equal(array, plain.astype(np.uint8) * np.float32(1 / 255))
    assert not any("transparent" in step for step in steps)


# --- damage -----------------------------------------------------------------------------------------------------------


def jpeg(**options: Any) -> bytes:
    out = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 80, COLOUR.shape)
    Image.fromarray(np.clip(COLOUR * 255 + noise, 0, 255).astype(np.uint8)).save(out, "JPEG", quality=90, **options)
    return out.getvalue()


@pytest.mark.parametrize("kind", ["ends early", "noise", "bytes lost", "zeros"])
@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"subsampling": 0}], ids=["plain", "progressive", "444"]
)
def test_damaged_data_in_a_jpeg_are_reported(tmp_path: Path, kind: str, options: dict[str, Any]) -> None:
    data = bytearray(jpeg(**options))
    middle = len(data) // 2
    if kind == "ends early":
        data[middle:] = b"\xff\xd9"
    elif kind == "noise":
        data[middle : middle + 200] = np.random.default_rng(1).integers(0, 255, 200, np.uint8).tobytes()
    elif kind == "bytes lost":
        del data[middle : middle + 300]
    else:
        data[middle : middle + 300] = bytes(300)
    (tmp_path / "a.jpg").write_bytes(data)
    try:
        doubts = images.decode_image(tmp_path / "a.jpg").warnings
    except ReadError as error:
        assert "damaged" in error.reason
    else:
        assert any("JPEG data are damaged" in text for text in doubts), doubts


def test_valid_jpegs_are_not_doubted(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for number, options in enumerate(
        [{}, {"progressive": True}, {"subsampling": 0}, {"quality": 20, "optimize": True}]
    ):
        data = jpeg(**options) if "quality" not in options else jpeg(optimize=True)
        (tmp_path / f"{number}.jpg").write_bytes(data)
        assert images.decode_image(tmp_path / f"{number}.jpg").warnings == []
    data = jpeg()
    assert damage.complaint(data[: len(data) // 2] + b"\xff\xd9") == "premature end of data segment"
    assert capfd.readouterr().err == ""


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(rows: int) -> bytes:
    """A grey PNG whose data end after so many of its `H` rows."""
    values = (RAMP * 254 + 1).astype(np.uint8)
    raw = b"".join(b"\0" + line.tobytes() for line in values[:rows])
    head = struct.pack(">IIBBBBB", W, H, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("rows", [1, H // 2, H - 1])
def test_a_png_with_rows_missing_is_refused(tmp_path: Path, rows: int) -> None:
    (tmp_path / "a.png").write_bytes(png(rows))
    with pytest.raises(ReadError, match="end before its last row"):
        read_image(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(png(H))
    assert images.decode_image(tmp_path / "b.png").warnings == []


def test_a_png_with_a_wrong_checksum_is_doubted_or_refused(tmp_path: Path) -> None:
    data = bytearray(png(H))
    at = data.find(b"IDAT")
    (length,) = struct.unpack(">I", data[at - 4 : at])
    data[at + 4 + length] ^= 1
    (tmp_path / "a.png").write_bytes(data)
    assert any("checksum" in text for text in images.decode_image(tmp_path / "a.png").warnings)
    data[at + 4 + length // 2] ^= 8
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(ReadError, match="damaged"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("kind", ["u1", "i2", "f4"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_a_tiff_that_is_cut_short_is_refused(tmp_path: Path, kind: str, compression: str | None) -> None:
    noise = np.random.default_rng(0).integers(-100, 100, (H, W)).astype(kind)
    out = io.BytesIO()
    tifffile.imwrite(out, noise, compression=compression)
    (tmp_path / "a.tif").write_bytes(out.getvalue()[:-800])
    with pytest.raises(ReadError):
        get("xray").read(tmp_path / "a.tif")


@pytest.mark.parametrize("gamma", [100_000, 30_000, 220_000])
def test_a_gamma_that_is_not_applied_is_reported(tmp_path: Path, gamma: int) -> None:
    data = png(H)
    at = data.find(b"IDAT") - 4
    (tmp_path / "a.png").write_bytes(data[:at] + chunk(b"gAMA", struct.pack(">I", gamma)) + data[at:])
    assert any("gamma" in text for text in images.decode_image(tmp_path / "a.png").warnings)
    (tmp_path / "a.png").write_bytes(data[:at] + chunk(b"gAMA", struct.pack(">I", 45_455)) + data[at:])
    assert images.decode_image(tmp_path / "a.png").warnings == []


def test_no_reason_is_the_name_of_an_exception(tmp_path: Path) -> None:
    good = jpeg()
    for number, data in enumerate(
        [good[:50], good[:300], png(H)[:60], png(H)[:-40], b"II*\0" + bytes(40), b"MM\0*abc"]
    ):
        path = tmp_path / f"{number}{'.jpg' if number < 2 else '.png' if number < 4 else '.tif'}"
        path.write_bytes(data)
        with pytest.raises(ReadError) as caught:
            get("retina").read(path)
        assert "Error" not in str(caught.value.reason)


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        (
            "a.jpg",
            imagecodecs.jpeg8_encode((RAMP * 4095).astype(np.uint16), bitspersample=12),
            "a JPEG file of 12 bits",
        ),
        ("a.jpg", imagecodecs.jpegls_encode((RAMP * 255).astype(np.uint8)), "a lossless JPEG or JPEG-LS file"),
        ("a.jpg", imagecodecs.ljpeg_encode((RAMP * 65535).astype(np.uint16)), "a lossless JPEG or JPEG-LS file"),
        ("a.png", imagecodecs.jpeg2k_encode((COLOUR * 255).astype(np.uint8)), "a JPEG 2000 file"),
        ("a.png", imagecodecs.jpegxl_encode((COLOUR * 255).astype(np.uint8)), "a JPEG XL file"),
        ("a.jpg", b"\0\0\0\x24ftypheic" + bytes(200), "a HEIC file, as phones write"),
        ("a.jpg", b"\0\0\0\x20ftypavif" + bytes(200), "an AVIF file"),
        ("a.jpg", b"\0\0\0\x18ftypmp42" + bytes(200), "a video, or an image stored as one"),
        ("a.jpg", b"\xff\xd8\xff\xe0\0\x10JFIF" + bytes(200), "a damaged JPEG file"),
    ],
)
def test_pictures_that_are_not_read_are_named(tmp_path: Path, name: str, content: bytes, kind: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ReadError, match=f"it is {kind}"):
        read_image(tmp_path / name)


def profile(*columns: bytes, gamma: float | None = None) -> bytes:
    """sRGB with the colours of its channels in another order, or with another curve."""
    plain = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    count = struct.unpack(">I", plain[128:132])[0]
    places = {plain[132 + 12 * k : 136 + 12 * k]: struct.unpack(">I", plain[136 + 12 * k : 140 + 12 * k])[0]
              for k in range(count)}  # fmt: skip
    found = bytearray(plain)
    for name, source in zip((b"rXYZ", b"gXYZ", b"bXYZ"), columns):
        found[places[name] : places[name] + 20] = plain[places[source] : places[source] + 20]
    for name in (b"rTRC", b"gTRC", b"bTRC") if gamma else ():
        found[places[name] + 8 : places[name] + 16] = struct.pack(">HHi", 0, 0, round(gamma * 65536))
    return bytes(found)


PROFILES = [
    (profile(), False), (profile(gamma=2.2), False), (profile(gamma=1.8), False), (b"junk" * 100, False),
    (profile(b"bXYZ", b"gXYZ", b"rXYZ"), True), (profile(b"gXYZ", b"rXYZ", b"bXYZ"), True), (profile(gamma=1.0), True),
]  # fmt: skip


@pytest.mark.parametrize(("icc", "said"), PROFILES)
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "wide.tif"])
def test_a_colour_profile_that_matters_is_reported(tmp_path: Path, icc: bytes, said: bool, name: str) -> None:
    if name == "wide.tif":
        tifffile.imwrite(tmp_path / name, (COLOUR * 65535).astype(np.uint16), photometric="rgb", iccprofile=icc)
    else:
        Image.fromarray((COLOUR * 255).astype(np.uint8)).save(tmp_path / name, icc_profile=icc)
    picture = images.decode_image(tmp_path / name)
    assert [doubt for doubt in picture.warnings if "colour profile, which is not applied" in doubt] == (
        picture.warnings if said else []
    )
    assert bool(picture.warnings) == said


@pytest.mark.parametrize("number", [0, 9, 77])
def test_an_orientation_that_is_none_turns_nothing(tmp_path: Path, number: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = number
    Image.fromarray((RAMP * 255).astype(np.uint8)).save(tmp_path / "a.png", exif=exif)
    array, steps = read_image(tmp_path / "a.png")
    np.testing.assert_allclose(array, RAMP, atol=5e-3)
    assert steps == []
