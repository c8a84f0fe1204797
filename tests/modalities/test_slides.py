"""Whole slides: geometry against naive sums, tissue against discs of known area, hostile and damaged files."""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import tifffile
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from m3bind import modalities
from m3bind.errors import ReadError
from m3bind.modalities.formats import slide as _slide
from m3bind.modalities.formats import slides, tiff
from m3bind.modalities.formats.slides import open_slide
from m3bind.modalities.formats.tissue import tissue_map, tissue_places, tissue_tiles

PINK = (225, 130, 190)
Bytes = np.ndarray


def write_tiff(
    path: Path, picture: Bytes, mpp: float | None = 0.5, factors: tuple[int, ...] = (4, 16), **more: Any
) -> Path:
    """A tiled pyramid whose levels are exact means of `factors`² pixels."""
    settings: dict[str, Any] = {
        "photometric": "rgb",
        "tile": (64, 64),
        "metadata": None,
        "compression": "deflate",
    } | more
    with tifffile.TiffWriter(path) as writer:
        for factor in (1, *factors):
            unit = {} if mpp is None else {"resolution": (1e4 / mpp / factor,) * 2, "resolutionunit": "CENTIMETER"}
            writer.write(shrunk(picture, factor), subfiletype=int(factor > 1), **unit, **settings)
    return path


def shrunk(picture: Bytes, factor: int) -> Bytes:
    if factor == 1:
        return picture
    height, width = (side // factor * factor for side in picture.shape[:2])
    blocks = picture[:height, :width].reshape(height // factor, factor, width // factor, factor, -1)
    return np.rint(blocks.mean((1, 3))).astype(picture.dtype)


def noise(height: int, width: int, seed: int = 0) -> Bytes:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def discs(height: int, width: int, *found: tuple[int, int, int, tuple[int, int, int]]) -> Bytes:
    """White glass with coloured discs (x, y, radius, colour), all slightly noisy as scans are."""
    y, x = np.mgrid[:height, :width]
    picture = np.full((height, width, 3), 243.0)
    for x0, y0, radius, colour in found:
        picture[np.hypot(x - x0, y - y0) <= radius] = colour
    grain = np.random.default_rng(1).normal(0, 3, (height, width, 1))
    return np.clip(picture + grain, 0, 255).astype(np.uint8)


def naive_mean(picture: Bytes, left: float, top: float, right: float, bottom: float) -> Bytes:
    """Mean colour of a rectangle with fractional borders, pixel by pixel, white outside."""
    total, area = np.zeros(3), 0.0
    for row in range(int(np.floor(top)), int(np.ceil(bottom))):
        for column in range(int(np.floor(left)), int(np.ceil(right))):
            part = (min(right, column + 1) - max(left, column)) * (min(bottom, row + 1) - max(top, row))
            inside = 0 <= row < picture.shape[0] and 0 <= column < picture.shape[1]
            total += part * (picture[row, column] if inside else 255.0)
            area += part
    return total / area / 255


# --- geometry ---------------------------------------------------------------------------------------------------------


def test_level_zero_is_exact_and_white_outside(tmp_path: Path) -> None:
    picture = noise(200, 300)
    with open_slide(write_tiff(tmp_path / "a.tif", picture, factors=(2,))) as slide:
        assert slide.size == (300, 200) and slide.mpp == pytest.approx(0.5, rel=1e-4)
        for mpp in (0.5, None):
            region = slide.read_region(-10, 150, 60, 80, mpp)
            assert region.dtype == np.float32 and region.shape == (80, 60, 3)
            np.testing.assert_allclose(region[:50, 10:] * 255, picture[150:, :50], atol=0.02)
            assert (region[50:] == 1).all() and (region[:, :10] == 1).all()
        assert (slide.read_region(5000, 0, 4, 4, 0.5) == 1).all()


@pytest.mark.parametrize("mpp", [0.61, 0.5, 0.9])
def test_regions_are_means_of_areas(tmp_path: Path, mpp: float) -> None:
    picture = noise(90, 120)
    with open_slide(write_tiff(tmp_path / "a.tif", picture, factors=())) as slide:
        step = mpp / slide.pixel[0]
        region = slide.read_region(7, 11, 9, 8, mpp)
        for row, column in ((0, 0), (3, 5), (7, 8)):
            left, top = 7 + column * step, 11 + row * step
            expected = naive_mean(picture, left, top, left + step, top + step)
            np.testing.assert_allclose(region[row, column], expected, atol=2e-4)


def test_bands_do_not_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_slide(write_tiff(tmp_path / "a.tif", noise(400, 300), factors=())) as slide:
        whole = slide.read_region(3, 5, 100, 130, 1.37)
        monkeypatch.setattr(_slide, "_BAND_PIXELS", 3000)
        np.testing.assert_allclose(slide.read_region(3, 5, 100, 130, 1.37), whole, atol=1e-6)


@pytest.mark.parametrize(("mpp", "level"), [(0.5, 0), (1.99, 0), (2.0, 1), (3.0, 1), (8.0, 2), (50.0, 2)])
def test_the_coarsest_level_that_is_fine_enough_is_read(tmp_path: Path, mpp: float, level: int) -> None:
    path = write_tiff(tmp_path / "a.tif", noise(512, 768))
    with open_slide(path) as slide:
        slide.pixel = (0.5, 0.5)  # without the rounding of the file's fraction
        used, decode = [], slide.decode
        slide.decode = lambda number, *rest: used.append(number) or decode(number, *rest)  # type: ignore[func-returns-value]
        region = slide.read_region(64, 64, 4, 4, mpp)
        assert set(used) == {level} and region.shape == (4, 4, 3)


def test_levels_agree(tmp_path: Path) -> None:
    picture = noise(512, 768)
    with (
        open_slide(write_tiff(tmp_path / "a.tif", picture)) as pyramid,
        open_slide(write_tiff(tmp_path / "b.tif", picture, factors=())) as single,
    ):
        one, other = (slide.read_region(16, 32, 30, 20, 8.001) for slide in (pyramid, single))
        np.testing.assert_allclose(one[:, :20], other[:, :20], atol=0.003)  # levels are rounded to 8 bits


def test_finer_than_scanned_is_refused(tmp_path: Path) -> None:
    with open_slide(write_tiff(tmp_path / "a.tif", noise(100, 100))) as slide:
        with pytest.raises(ReadError, match="finer than the scan"):
            slide.read_region(0, 0, 10, 10, 0.25)
        assert slide.finest(0.25) == pytest.approx(0.5, rel=1e-3) and slide.finest(1.0) == 1.0


def test_too_much_to_decode_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_slide(write_tiff(tmp_path / "a.tif", noise(512, 512), factors=())) as slide:
        monkeypatch.setattr(slides.limits, "LIMITS", slides.limits.from_environment("pixels=30000"))
        with pytest.raises(ReadError, match=r"pixels to decode.*smaller levels"):
            slide.read_region(0, 0, 32, 32, 8.0)


@pytest.mark.parametrize(
    ("mpp", "note"), [(None, "does not state its pixel size"), (353.0, "implausible"), (0.001, "implausible")]
)
def test_unknown_and_implausible_sizes_of_pixel(tmp_path: Path, mpp: float | None, note: str) -> None:
    with open_slide(write_tiff(tmp_path / "a.tif", noise(300, 300), mpp=mpp)) as slide:
        assert slide.mpp is None and note in slide.notes[0] and slide.finest(0.5) is None
        with pytest.raises(ReadError, match="does not state its pixel size"):
            slide.read_region(0, 0, 10, 10, 0.5)
        assert slide.read_region(0, 0, 10, 10, None).shape == (10, 10, 3)


def test_pixels_that_are_not_square(tmp_path: Path) -> None:
    picture = noise(64, 64)
    unit = {"resolution": (1e4 / 0.25, 1e4 / 0.5), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(tmp_path / "a.tif", picture, photometric="rgb", tile=(32, 32), metadata=None, **unit)
    with open_slide(tmp_path / "a.tif") as slide:
        assert "not square" in slide.notes[0]
        region = slide.read_region(0, 0, 32, 64, 0.5)
        np.testing.assert_allclose(region[5, 7] * 255, picture[5, 14:16].mean(0), atol=0.1)


def test_missing_tiles_are_white(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", np.full((128, 192, 3), 90, np.uint8), factors=())
    for tag in ("TileByteCounts", "TileOffsets"):
        with tifffile.TiffFile(path, mode="r+") as file:
            entry = file.pages[0].tags[tag]
            values = list(entry.value)
            values[1 if tag == "TileOffsets" else 2] = 0
            entry.overwrite(values)
    with open_slide(path) as slide:
        tiles = slide.read_region(0, 0, 192, 128, None).reshape(2, 64, 3, 64, 3).mean((1, 3, 4))
    assert tiles[0] == pytest.approx([90 / 255, 1, 1]) and tiles[1] == pytest.approx([90 / 255] * 3)


# --- tissue -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pink discs of 600 and 250 pixels' radius, a green and a black pen mark, on 3,000 x 2,000 of glass."""
    pens = (2300, 1500, 200, (40, 160, 70)), (2800, 1800, 80, (15, 15, 15))
    picture = discs(2000, 3000, (800, 900, 600, PINK), (2300, 500, 250, PINK), *pens)
    return write_tiff(tmp_path_factory.mktemp("slide") / "a.tif", picture, compression=None)


def test_tissue_is_the_discs(stained: Path) -> None:
    with open_slide(stained) as slide:
        found = tissue_map(slide)
        area = found.step_x * found.step_y
        assert slide.pixel is not None and found.step_x * slide.pixel[0] == pytest.approx(8, rel=0.01)
        assert found.tissue.sum() * area == pytest.approx(np.pi * (600**2 + 250**2), rel=0.03)
        assert found.pen.sum() * area == pytest.approx(np.pi * 200**2, rel=0.06)
        rows, columns = (np.flatnonzero(found.tissue.any(axis)) for axis in (1, 0))
        assert rows[0] * found.step_y == pytest.approx(250, abs=20)
        assert columns[0] * found.step_x == pytest.approx(200, abs=20)
        assert columns[-1] * found.step_x == pytest.approx(2550, abs=20)


def test_places_are_a_grid_ordered_by_tissue(stained: Path) -> None:
    with open_slide(stained) as slide:
        places = tissue_places(slide, tissue_map(slide), 224, 0.5)
        shares = [share for share, _, _ in places]
        assert len(places) == (3000 // 224) * (2000 // 224) and shares == sorted(shares, reverse=True)
        assert shares[0] == pytest.approx(1) and shares[-1] == 0
        full = [(y, x) for share, x, y in places if share == shares[0]]
        assert full == sorted(full) and len(full) > 5  # equals stay in order of rows
        y, x = np.mgrid[:2000, :3000]
        truth = (np.hypot(x - 800, y - 900) <= 600) | (np.hypot(x - 2300, y - 500) <= 250)
        for share, left, top in places:
            assert share == pytest.approx(truth[top : top + 224, left : left + 224].mean(), abs=0.05)


def test_tiles_are_tissue_and_counted(stained: Path) -> None:
    with open_slide(stained) as slide:
        tiles = list(tissue_tiles(slide, 224, 0.5))
        expected = sum(share >= 0.5 for share, _, _ in tissue_places(slide, tissue_map(slide), 224, 0.5))
        assert len(tiles) == expected and 15 < expected < 30
        for tile in tiles:
            assert tile.array.shape == (224, 224, 3) and tile.tissue >= 0.5
            np.testing.assert_array_equal(tile.array, slide.read_region(tile.x, tile.y, 224, 224, 0.5))
        few = list(tissue_tiles(slide, 224, 0.5, limit=3))
        assert [(tile.x, tile.y) for tile in few] == [(tile.x, tile.y) for tile in tiles[:3]]
        wide = list(tissue_tiles(slide, 112, 1.0))  # the same tiles at half the resolution
        assert {(tile.x, tile.y) for tile in wide} == {(tile.x, tile.y) for tile in tiles}


@pytest.mark.parametrize(("picture", "share"), [(discs(600, 600), 0.0), (discs(600, 600, (300, 300, 999, PINK)), 1.0)])
def test_empty_and_full_slides(tmp_path: Path, picture: Bytes, share: float) -> None:
    with open_slide(write_tiff(tmp_path / "a.tif", picture)) as slide:
        assert tissue_map(slide).tissue.mean() == pytest.approx(share, abs=0.05)
        assert bool(list(tissue_tiles(slide))) == bool(share)


def test_slides_smaller_than_a_tile_have_one(tmp_path: Path) -> None:
    with open_slide(write_tiff(tmp_path / "a.tif", discs(100, 150, (75, 50, 300, PINK)), factors=())) as slide:
        (tile,) = tissue_tiles(slide, 128, 0.5)
        assert (tile.x, tile.y) == (0, 0) and (tile.array[100:] == 1).all()


# --- real and damaged files -------------------------------------------------------------------------------------------


def test_real_slide(native: Path) -> None:
    with open_slide(native / "wsi" / "cmu-1-small-region.svs") as slide:
        assert slide.size == (2220, 2967) and slide.mpp == pytest.approx(0.499) and slide.notes == []
        tiles = list(tissue_tiles(slide))
        assert 30 < len(tiles) < 60
        means = [tile.array.mean((0, 1)) for tile in tiles]
        assert all(green < red and green < blue for red, green, blue in means)  # haematoxylin and eosin
        glass = slide.read_region(0, 2400, 224, 224, 0.5)
        assert glass.mean() > 0.9


def test_real_broken_slide(native: Path) -> None:
    with pytest.raises(ReadError, match="not a TIFF or SVS file"):
        open_slide(native / "wsi" / "broken.svs")


def test_damaged_tiles_of_the_real_slide(native: Path, tmp_path: Path) -> None:
    data = bytearray((native / "wsi" / "cmu-1-small-region.svs").read_bytes())
    with tifffile.TiffFile(native / "wsi" / "cmu-1-small-region.svs") as file:
        start, count = file.pages[0].dataoffsets[0], file.pages[0].databytecounts[0]
    data[start : start + count] = bytes(count)
    (tmp_path / "a.svs").write_bytes(data)
    with open_slide(tmp_path / "a.svs") as slide, pytest.raises(ReadError, match="a tile of it is damaged"):
        slide.read_region(0, 0, 50, 50, None)


def put(offset: int, data: bytes) -> Callable[[bytearray], None]:
    def change(file: bytearray) -> None:
        file[offset : offset + len(data)] = data

    return change


def test_hostile_and_cut_files_are_refused(tmp_path: Path) -> None:
    sound = write_tiff(tmp_path / "a.tif", noise(256, 320))
    data = sound.read_bytes()
    with tifffile.TiffFile(sound) as file:
        tags, first, last = file.pages[0].tags, file.pages[0].offset, file.pages[-1].offset
        start, count = file.pages[0].dataoffsets[0], file.pages[0].databytecounts[0]
        entries = {name: tags[name].offset for name in ("ImageWidth", "TileWidth")}
        offsets = tags["TileOffsets"].valueoffset
    (number,) = struct.unpack_from("<H", data, last)
    (number_first,) = struct.unpack_from("<H", data, first)
    cases = {
        "cyclic": (put(last + 2 + 12 * number, struct.pack("<I", first)), "endless"),
        "itself": (put(first + 2 + 12 * number_first, struct.pack("<I", first)), "endless"),
        "outside": (put(last + 2 + 12 * number, struct.pack("<I", len(data) + 9)), "leads outside"),
        "wide": (put(entries["ImageWidth"] + 2, struct.pack("<HII", 4, 1, 2**31 - 1)), "declares"),
        "wide tile": (put(entries["TileWidth"] + 2, struct.pack("<HII", 4, 1, 2**24)), "pixels, more than"),
        "tile gone": (put(offsets, struct.pack("<I", len(data) + 99)), "tile of it is damaged"),
        "garbage": (put(start, bytes(range(256)) * (count // 256)), "tile of it is damaged"),
    }
    for name, (change, reason) in cases.items():
        file = bytearray(data)
        change(file)
        (tmp_path / "b.tif").write_bytes(file)
        with pytest.raises(ReadError, match=reason), open_slide(tmp_path / "b.tif") as slide:
            slide.read_region(0, 0, 64, 64, None)
            pytest.fail(name)
    for length in range(0, len(data), len(data) // 20):
        (tmp_path / "b.tif").write_bytes(data[:length])
        with pytest.raises(ReadError), open_slide(tmp_path / "b.tif") as slide:
            for mpp in (None, 8.1):
                slide.read_region(0, 0, 256, 256, mpp)
            pytest.fail(f"cut after {length} of {len(data)} bytes")


def test_more_directories_than_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiff, "MAX_DIRECTORIES", 2)
    with pytest.raises(ReadError, match="endless"):
        open_slide(write_tiff(tmp_path / "a.tif", noise(256, 320)))


def test_other_kinds_of_pixel_are_refused(tmp_path: Path) -> None:
    grey = {"photometric": "minisblack", "tile": (64, 64)}
    tifffile.imwrite(tmp_path / "grey.tif", noise(128, 128)[..., 0], **grey)
    tifffile.imwrite(tmp_path / "deep.tif", noise(128, 128).astype(np.uint16), photometric="rgb", tile=(64, 64))
    tifffile.imwrite(tmp_path / "alpha.tif", np.zeros((128, 128, 4), np.uint8), photometric="rgb", tile=(64, 64))
    for name in ("grey", "deep", "alpha"):
        with pytest.raises(ReadError, match="not an 8-bit RGB slide"):
            open_slide(tmp_path / f"{name}.tif")
    with pytest.raises(ReadError, match="no such file"):
        open_slide(tmp_path / "gone.svs")


def test_slides_are_distinguished_from_tiles(tmp_path: Path) -> None:
    assert slides.is_slide(write_tiff(tmp_path / "a.tif", noise(256, 256)))
    assert not slides.is_slide(write_tiff(tmp_path / "b.tif", noise(256, 256), factors=()))
    tifffile.imwrite(tmp_path / "c.tif", noise(64, 64), photometric="rgb")
    assert not slides.is_slide(tmp_path / "c.tif")
    large = np.zeros((4160, 4160, 3), np.uint8)
    assert slides.is_slide(write_tiff(tmp_path / "d.tif", large, factors=(), tile=(416, 416)))


# --- DICOM ------------------------------------------------------------------------------------------------------------


def write_dicom(
    folder: Path, picture: Bytes, factors: tuple[int, ...] = (1, 4), mpp: float = 0.5, tile: int = 64
) -> Path:
    """One file a level: TILED_FULL, uncompressed."""
    folder.mkdir(parents=True, exist_ok=True)
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    for number, factor in enumerate(factors):
        pixels = shrunk(picture, factor)
        height, width = pixels.shape[:2]
        rows, columns = -(-height // tile), -(-width // tile)
        padded = np.full((rows * tile, columns * tile, 3), 255, np.uint8)
        padded[:height, :width] = pixels
        frames = padded.reshape(rows, tile, columns, tile, 3).swapaxes(1, 2)
        ds = Dataset()
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.SOPClassUID, ds.SOPInstanceUID = slides.WHOLE_SLIDE, generate_uid()
        ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = study, series, frame
        ds.Modality, ds.PatientName, ds.PatientID = "SM", "Doe^Jane", "4711"
        ds.ImageType = (
            ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"] if factor == 1 else ["DERIVED", "PRIMARY", "VOLUME", "RESAMPLED"]
        )
        ds.DimensionOrganizationType, ds.InstanceNumber = "TILED_FULL", number + 1
        ds.Rows = ds.Columns = tile
        ds.NumberOfFrames, ds.TotalPixelMatrixRows, ds.TotalPixelMatrixColumns = rows * columns, height, width
        ds.TotalPixelMatrixFocalPlanes = ds.NumberOfOpticalPaths = 1
        ds.ImagedVolumeWidth, ds.ImagedVolumeHeight = picture.shape[1] * mpp / 1000, picture.shape[0] * mpp / 1000
        ds.ImagedVolumeDepth = 1.0
        ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PlanarConfiguration = 3, "RGB", 0
        ds.BitsAllocated = ds.BitsStored = 8
        ds.HighBit, ds.PixelRepresentation = 7, 0
        ds.BurnedInAnnotation = ds.SpecimenLabelInImage = ds.ExtendedDepthOfField = "NO"
        ds.FocusMethod, ds.VolumetricProperties, ds.LossyImageCompression = "AUTO", "VOLUME", "00"
        measures = Dataset()
        measures.PixelSpacing = [mpp * factor / 1000] * 2
        measures.SliceThickness = measures.SpacingBetweenSlices = 0.001
        shared, path, origin = Dataset(), Dataset(), Dataset()
        shared.PixelMeasuresSequence = [measures]
        path.OpticalPathIdentifier = "1"
        origin.XOffsetInSlideCoordinateSystem = origin.YOffsetInSlideCoordinateSystem = 0
        ds.SharedFunctionalGroupsSequence, ds.OpticalPathSequence = [shared], [path]
        ds.TotalPixelMatrixOriginSequence, ds.ImageOrientationSlide = [origin], [0, -1, 0, -1, 0, 0]
        ds.PixelData = frames.tobytes()
        ds.save_as(folder / f"level{number}.dcm", enforce_file_format=True)
    return folder


def changed(path: Path, **entries: object) -> None:
    ds = pydicom.dcmread(path)
    for keyword, value in entries.items():
        setattr(ds, keyword, value)
    ds.save_as(path)


def test_dicom_slides(tmp_path: Path) -> None:
    picture = discs(800, 1000, (500, 400, 350, PINK))
    folder = write_dicom(tmp_path / "slide", picture)
    assert slides.is_slide(folder) and slides.is_slide(folder / "level1.dcm")
    with open_slide(folder) as slide:
        assert slide.size == (1000, 800) and slide.mpp == pytest.approx(0.5) and slide.kind == "DICOM"
        assert [level.scale_x for level in slide.levels] == [1, 4]
        np.testing.assert_allclose(
            slide.read_region(930, 60, 80, 50, 0.5)[:, :70] * 255, picture[60:110, 930:], atol=0.01
        )
        coarse = slide.read_region(400, 400, 10, 10, 2.0)
        np.testing.assert_allclose(coarse * 255, shrunk(picture, 4)[100:110, 100:110], atol=0.01)
        found = tissue_map(slide)
        assert found.tissue.sum() * found.step_x * found.step_y == pytest.approx(np.pi * 350**2, rel=0.03)
        assert slide.tags["Rows"] == "64" and "Doe" not in str(slide.tags)
    with open_slide(folder / "level0.dcm") as slide:
        assert slide.size == (1000, 800) and len(slide.levels) == 1


def test_dicom_labels_are_left_alone(tmp_path: Path) -> None:
    folder = write_dicom(tmp_path / "slide", noise(128, 128), factors=(1, 2, 4))
    changed(folder / "level1.dcm", ImageType=["ORIGINAL", "PRIMARY", "LABEL", "NONE"], PixelData=b"not to be seen")
    changed(folder / "level2.dcm", ImageType=["ORIGINAL", "PRIMARY", "OVERVIEW", "NONE"], PixelData=b"not to be seen")
    (folder / "notes.txt").write_text("not DICOM")
    with open_slide(folder) as slide:
        assert len(slide.levels) == 1
    with pytest.raises(ReadError, match="no DICOM whole slide"):
        open_slide(folder / "level1.dcm")


def test_dicom_folders_of_no_or_several_slides(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ReadError, match="declares 0 files"):
        open_slide(tmp_path / "empty")
    (tmp_path / "empty" / "a.txt").write_text("nothing " * 30)
    with pytest.raises(ReadError, match="no DICOM whole slide"):
        open_slide(tmp_path / "empty")
    folder = write_dicom(tmp_path / "slides", noise(64, 64), factors=(1,))
    (folder / "level0.dcm").rename(folder / "other.dcm")
    write_dicom(folder, noise(64, 64), factors=(1,))
    with pytest.raises(ReadError, match="2 whole slides"):
        open_slide(folder)


def test_damaged_dicom_slides(tmp_path: Path) -> None:
    for entries, reason in (
        ({"TotalPixelMatrixRows": 2_000_000_000}, "declares"),
        ({"TotalPixelMatrixColumns": 0}, "declares"),
        ({"Rows": 60000, "Columns": 60000}, "pixels, more than"),
        ({"SamplesPerPixel": 1}, "not an 8-bit RGB slide"),
        ({"SharedFunctionalGroupsSequence": []}, "not a readable DICOM slide"),
    ):
        path = write_dicom(tmp_path / "slide", noise(128, 128), factors=(1,)) / "level0.dcm"
        changed(path, **entries)
        with pytest.raises(ReadError, match=reason):
            open_slide(path)
    path = write_dicom(tmp_path / "slide", noise(128, 128), factors=(1,)) / "level0.dcm"
    path.write_bytes(path.read_bytes()[:-20000])
    with pytest.raises(ReadError), open_slide(path) as slide:
        slide.read_region(0, 0, 128, 128, None)


def test_a_slide_in_parts_is_its_most_tissue_rich_tiles_with_their_places(tmp_path: Path) -> None:
    picture = discs(900, 1400, (300, 300, 260, PINK), (1000, 500, 300, PINK))
    path = write_tiff(tmp_path / "a.tif", picture)
    reader = modalities.get("pathology")
    whole = reader.decode_parts(path, modalities.Cut(most=100))
    with open_slide(path) as slide:
        tiles = list(tissue_tiles(slide, 224, slide.finest(0.5)))
    assert whole.places == [[tile.x, tile.y] for tile in tiles] and len(tiles) > 4
    for array, tile in zip(whole.array, tiles):
        np.testing.assert_array_equal(array, tile.array)
    few = modalities.decode_parts("pathology", path, modalities.Cut(most=3))
    assert few.places == whole.places[:3] and few.array.shape == (3, 224, 224, 3)
    np.testing.assert_array_equal(few.array[0], reader.decode(path).array)
    empty = reader.decode_parts(write_tiff(tmp_path / "b.tif", discs(600, 600)), modalities.Cut())
    assert len(empty.array) == 1 and "no tile is at least half tissue" in empty.warnings
