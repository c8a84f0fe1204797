"""Pixel sizes wherever slides state them, contradictions among them, and tile compressions."""

from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from pydicom.pixels import convert_color_space

from m3bind.errors import ReadError
from m3bind.modalities import get
from m3bind.modalities.formats import slide_scale
from m3bind.modalities.formats.slides import open_slide
from modalities.test_slides import PINK, changed, discs, write_dicom

APERIO = "Aperio Image Library v12.0.15\r\n512x512 [0,0 512x512] (256x256) JPEG/RGB Q=90|AppMag = 30|{}|Filename = x"
OME = (
    '<?xml version="1.0" encoding="UTF-8"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
    '<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" SizeX="512" SizeY="512" SizeC="3"'
    ' SizeZ="1" SizeT="1" {}><Channel ID="Channel:0" SamplesPerPixel="3"/><TiffData IFD="0" PlaneCount="1"/></Pixels>'
    "</Image></OME>"
)
PICTURE = discs(512, 512, (256, 256, 200, PINK))


def write(path: Path, description: str, **more: Any) -> Path:
    options: dict[str, Any] = {"tile": (256, 256), "photometric": "rgb", "metadata": None, **more}
    if description:
        options["description"] = description.encode()
    with tifffile.TiffWriter(path) as out:
        out.write(PICTURE, subifds=1, **options)
        out.write(PICTURE[::2, ::2].copy(), subfiletype=1, tile=(256, 256), photometric="rgb", metadata=None)
    return path


def scale(path: Path) -> tuple[tuple[float, float] | None, str]:
    with open_slide(path) as slide:
        return slide.pixel, "; ".join(slide.notes)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("MPP = 0,2500", 0.25), ("MPP = 0.2500", 0.25), ("MPP = 0,5", 0.5), ("MPP=,499", 0.499), ("MPP = 2,5e-1", 0.25)],
)
def test_aperio_in_any_spelling(tmp_path: Path, text: str, expected: float) -> None:
    pixel, notes = scale(write(tmp_path / "a.svs", APERIO.format(text)))
    assert pixel == pytest.approx((expected, expected)) and notes == ""


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ('PhysicalSizeX="0.25" PhysicalSizeY="0.25"', (0.25, 0.25)),
        ('PhysicalSizeX="0.25" PhysicalSizeXUnit="µm" PhysicalSizeY="0.25" PhysicalSizeYUnit="µm"', (0.25, 0.25)),
        ('PhysicalSizeX="250" PhysicalSizeXUnit="nm" PhysicalSizeY="250" PhysicalSizeYUnit="nm"', (0.25, 0.25)),
        ('PhysicalSizeX="0.00025" PhysicalSizeXUnit="mm"', (0.25, 0.25)),
        ('PhysicalSizeX="0.25" PhysicalSizeXUnit="&#181;m" PhysicalSizeY="0.25" PhysicalSizeYUnit="μm"', (0.25, 0.25)),
        ('PhysicalSizeX="0.25" PhysicalSizeXUnit="Âµm" PhysicalSizeY="0.25" PhysicalSizeYUnit="micron"', (0.25, 0.25)),
        ('PhysicalSizeX="0,5" PhysicalSizeY="0,5"', (0.5, 0.5)),
    ],
)
def test_ome_in_any_unit(tmp_path: Path, entries: str, expected: tuple[float, float]) -> None:
    pixel, notes = scale(write(tmp_path / "a.tif", OME.format(entries)))
    assert pixel == pytest.approx(expected) and notes == ""


@pytest.mark.parametrize(("unit", "per"), [("CENTIMETER", 20_000), ("INCH", 50_800)])
def test_resolution_tags(tmp_path: Path, unit: str, per: float) -> None:
    pixel, notes = scale(write(tmp_path / "a.tif", "", resolution=(per, per), resolutionunit=unit))
    assert pixel == pytest.approx((0.5, 0.5), rel=1e-4) and notes == ""


@pytest.mark.parametrize("unit", ["micron", "um", "\\u00B5m", "µm"])
def test_imagej_has_units_of_its_own(tmp_path: Path, unit: str) -> None:
    text = f"ImageJ=1.53\nunit={unit}\n"
    pixel, _ = scale(write(tmp_path / "a.tif", text, resolution=(4, 4), resolutionunit="NONE"))
    assert pixel == pytest.approx((0.25, 0.25))


@pytest.mark.parametrize(
    ("description", "first"),
    [
        (APERIO.format("MPP = 0.25"), "MPP"),
        (OME.format('PhysicalSizeX="0.25"'), "OME"),
        ('<iScan ScanRes="0.25"/>', "ScanRes"),
    ],
)
def test_two_statements_that_differ_are_reported(tmp_path: Path, description: str, first: str) -> None:
    path = write(tmp_path / "a.tif", description, resolution=(10_000, 10_000), resolutionunit="CENTIMETER")
    pixel, notes = scale(path)
    assert pixel == pytest.approx((0.25, 0.25))
    assert notes == f"contradictory pixel sizes: 0.25 micrometres by {first} (taken) and 1 by the TIFF resolution"
    same = write(tmp_path / "b.tif", description, resolution=(40_000, 40_000), resolutionunit="CENTIMETER")
    assert scale(same)[1] == ""
    printers = write(tmp_path / "c.tif", description, resolution=(72, 72), resolutionunit="INCH")
    assert scale(printers)[1] == ""


@pytest.mark.parametrize("text", ["MPP = 0", "MPP = nan", "MPP = -1", "MPP = x", "mpp"])
def test_invalid_sizes_are_none(tmp_path: Path, text: str) -> None:
    pixel, notes = scale(write(tmp_path / "a.svs", APERIO.format(text)))
    assert pixel is None and "does not state" in notes


@pytest.mark.parametrize("unit", ["px", "", "reference frame", "µ"])
def test_units_that_are_no_length(unit: str) -> None:
    assert slide_scale.micrometres(unit) is None


@pytest.mark.parametrize("off", [0.5, 1.5, 4.0])
def test_a_dicom_slide_of_another_extent(tmp_path: Path, off: float) -> None:
    import pydicom

    folder = write_dicom(tmp_path / "slide", PICTURE)
    for file in folder.iterdir():
        header = pydicom.dcmread(file)
        spacing = header.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing
        header.ImagedVolumeWidth = float(spacing[1]) * header.TotalPixelMatrixColumns * off
        header.ImagedVolumeHeight = float(spacing[0]) * header.TotalPixelMatrixRows * off
        header.save_as(file)
    assert "contradictory" in scale(folder)[1] and "ImagedVolumeWidth" in scale(folder)[1]


def test_a_tile_states_its_size_if_the_file_does(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    for description, expected in ((OME.format('PhysicalSizeX="0.5" PhysicalSizeY="0.25"'), (2.5e-4, 5e-4)), ("", None)):
        tifffile.imwrite(path, PICTURE, photometric="rgb", metadata=None, description=description.encode() or None)
        sample = get("pathology").decode(path)
        assert sample.spacing == (pytest.approx(expected) if expected else None)


# --- compressions -----------------------------------------------------------------------------------------------------


def tiled(path: Path, compression: Any, encode: Any = None, photometric: str = "rgb") -> Path:
    options: dict[str, Any] = {
        "tile": (256, 256), "photometric": photometric, "compression": compression, "metadata": None,
        "resolution": (20_000, 20_000), "resolutionunit": "CENTIMETER",
    }  # fmt: skip
    tiles = (np.ascontiguousarray(PICTURE[y : y + 256, x : x + 256]) for y in (0, 256) for x in (0, 256))
    with tifffile.TiffWriter(path) as out:
        if encode is None:
            out.write(PICTURE, **options)
        else:
            out.write((encode(tile) for tile in tiles), shape=PICTURE.shape, dtype="u1", **options)
    return path.rename(path.with_suffix(".svs"))


def jpeg_2000(tile: np.ndarray) -> bytes:
    return bytes(imagecodecs.jpeg2k_encode(tile, mct=True, codecformat="J2K", reversible=True))


def jpeg_2000_ybr(tile: np.ndarray) -> bytes:
    ybr = np.ascontiguousarray(convert_color_space(tile, "RGB", "YBR_FULL"))
    return bytes(imagecodecs.jpeg2k_encode(ybr, mct=False, codecformat="J2K", reversible=True))


def webp(tile: np.ndarray) -> bytes:
    return bytes(imagecodecs.webp_encode(tile, lossless=True))


@pytest.mark.parametrize(
    ("compression", "encode", "photometric"),
    [("jpeg2000", None, "rgb"), ("webp", None, "rgb"), ("jpegxl", None, "rgb"), ("lzw", None, "rgb"),
     ("zstd", None, "rgb"), ("lerc", None, "rgb"), (33005, jpeg_2000, "rgb"), (33003, jpeg_2000_ybr, "ycbcr"),
     (33003, jpeg_2000_ybr, "rgb"), (33003, jpeg_2000, "rgb"), (34712, jpeg_2000_ybr, "ycbcr"),
     (34712, jpeg_2000, "ycbcr"), (50001, webp, "rgb"), (34927, webp, "rgb")],
)  # fmt: skip
def test_tiles_of_any_compression(tmp_path: Path, compression: Any, encode: Any, photometric: str) -> None:
    with open_slide(tiled(tmp_path / "a.tif", compression, encode, photometric)) as slide:
        np.testing.assert_allclose(slide.decode(0, 100, 50, 300, 200).astype(int), PICTURE[50:250, 100:400], atol=2)


@pytest.mark.parametrize(
    ("compression", "name"), [(33003, "JPEG 2000"), (50001, "WEBP"), (50002, "JPEGXL"), (50000, "ZSTD")]
)
def test_the_compression_of_a_tile_that_cannot_be_read_is_named(tmp_path: Path, compression: int, name: str) -> None:
    path = tiled(tmp_path / "a.tif", compression, lambda _: b"no such thing" * 20)
    with pytest.raises(ReadError, match=f"a tile of it is damaged, or an unsupported variant of {name}"):
        get("pathology").decode(path)


@pytest.mark.parametrize("text", ["MPP = 0,2,5", "MPP = 1.234,5", "MPP = 0.25.1", "MPP = ,", "MPP = 1,000,000"])
def test_values_that_are_not_numbers_state_nothing(tmp_path: Path, text: str) -> None:
    pixel, notes = scale(write(tmp_path / "a.svs", APERIO.format(text)))
    assert pixel is None and "does not state" in notes


@pytest.mark.parametrize(
    ("times", "mpp", "said"),
    [("40", "0.5", True), ("20", "0.25", True), ("5", "0.5", True), ("40", "0.2503", False), ("20", "0.4942", False),
     ("20", "0.325", False), ("40", "0,16", False), ("0", "0.5", False), ("x", "0.5", False)],
)  # fmt: skip
def test_a_contradicting_magnification_is_reported(tmp_path: Path, times: str, mpp: str, said: bool) -> None:
    text = APERIO.format(f"MPP = {mpp}").replace("AppMag = 30", f"AppMag = {times}")
    pixel, notes = scale(write(tmp_path / "a.svs", text))
    assert pixel == pytest.approx((float(mpp.replace(",", ".")),) * 2)
    assert notes == (f"pixels of {pixel[0]:.4g} micrometres (taken) do not fit its magnification of {times}" if said
                     else "")  # fmt: skip


def test_a_magnification_alone_is_reported_and_not_used(tmp_path: Path) -> None:
    pixel, notes = scale(write(tmp_path / "a.svs", APERIO.format("x")))
    assert pixel is None and "magnification of 30 would mean about 0.33 micrometres" in notes


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
@pytest.mark.parametrize("marked", [True, False])
def test_levels_of_a_dicom_slide_do_not_contradict_each_other(
    tmp_path: Path, order: tuple[int, ...], marked: bool
) -> None:
    folder = write_dicom(tmp_path / "s", discs(512, 512, (256, 256, 200, PINK)), factors=(1, 2, 4))
    for number, level in enumerate(order):
        file = (folder / f"level{level}.dcm").rename(folder / f"{number}.dcm")
        if not marked:
            changed(file, ImageType=["ORIGINAL", "PRIMARY", "VOLUME", "NONE"])
    pixel, notes = scale(folder)
    assert pixel == pytest.approx((0.5, 0.5)) and notes == ""
