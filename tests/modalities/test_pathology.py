"""Histology reader: tiles of every format, the tile chosen from a slide, doubts, and what is not read."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from scipy.ndimage import gaussian_filter

from m3bind import modalities
from m3bind.data import read_manifest
from m3bind.errors import ReadError
from m3bind.modalities import get
from m3bind.modalities.pathology import MIN_SHARPNESS, sharpness

PINK, GREEN = (225, 130, 190), (40, 160, 70)
SVS = "wsi/cmu-1-small-region.svs"


def tissue(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Pink ground, violet grains as sharp as cells, a little noise."""
    rng = np.random.default_rng(seed)
    grain = gaussian_filter(rng.normal(size=(height, width)), 1.5)
    cells = (grain > np.quantile(grain, 0.7))[..., None]
    return (np.where(cells, (120, 60, 150), PINK) + rng.integers(-9, 10, (height, width, 1))).astype(np.uint8)


def write_slide(path: Path, picture: np.ndarray, mpp: float | None = 0.5, description: str = "") -> Path:
    with tifffile.TiffWriter(path) as writer:
        for factor in (1, 4):
            unit = {} if mpp is None else {"resolution": (1e4 / mpp / factor,) * 2, "resolutionunit": "CENTIMETER"}
            writer.write(
                picture[::factor, ::factor], photometric="rgb", tile=(64, 64), metadata=None, compression="deflate",
                subfiletype=int(factor > 1), description=description or None, **unit,
            )  # fmt: skip
    return path


def glass(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), 242, np.uint8)


def test_tiff_tiles_are_read_as_png_tiles(tmp_path: Path) -> None:
    pixels = tissue(96, 96)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    expected = get("pathology").read(tmp_path / "a.png").array
    for name, options in {"plain": {}, "tiled": {"tile": (32, 32), "compression": "lzw"}}.items():
        tifffile.imwrite(tmp_path / f"{name}.tif", pixels, photometric="rgb", **options)
        np.testing.assert_array_equal(get("pathology").read(tmp_path / f"{name}.tif").array, expected)


def test_mini5_tiles_are_what_their_jpegs_hold(mini5: Path) -> None:
    for record in read_manifest(mini5 / "manifest.csv", modalities=["pathology"]).records[::100]:
        with Image.open(record.path) as image:
            expected = np.asarray(image).astype(np.float32) * np.float32(1 / 255)
        sample = get("pathology").read(record.path)
        assert sample.array.tobytes() == expected.tobytes() and sample.steps == [] and sample.spacing is None


# --- slides -----------------------------------------------------------------------------------------------------------


def test_a_slide_is_its_most_tissue_rich_tile(tmp_path: Path) -> None:
    picture = glass(900, 1200)
    picture[224:448, 448:672] = tissue(224, 224)  # one tile of the grid, all tissue
    picture[448:672, 448:600] = tissue(224, 152)  # and one that is two thirds
    sample = get("pathology").read(write_slide(tmp_path / "a.tif", picture))
    np.testing.assert_allclose(sample.array * 255, picture[224:448, 448:672], atol=0.5)
    assert sample.spacing == (0.0005, 0.0005) and sample.warnings == []
    assert "TIFF whole slide, 1200 x 900 pixels of 0.5 micrometres" in sample.steps[0]
    assert "at (448, 224), 100% tissue; 2 of 20 tiles are tissue" in sample.steps[1]


def test_a_finely_scanned_slide_is_averaged(tmp_path: Path) -> None:
    picture = np.kron(tissue(300, 300), np.ones((2, 2, 1), np.uint8))
    sample = get("pathology").read(write_slide(tmp_path / "a.tif", picture, mpp=0.25))
    assert sample.array.shape == (224, 224, 3) and "224 x 224 pixels of 0.5 micrometres" in sample.steps[1]
    np.testing.assert_allclose(sample.array * 255, picture[:448:2, :448:2], atol=1.5)


def test_a_coarsely_scanned_slide_is_not_enlarged(tmp_path: Path) -> None:
    sample = get("pathology").read(write_slide(tmp_path / "a.tif", tissue(300, 300), mpp=1.0))
    assert sample.spacing == pytest.approx((0.001, 0.001)) and "coarser than 0.5" in " ".join(sample.warnings)


def test_a_slide_of_unknown_size_of_pixel_is_read_at_level_0(tmp_path: Path) -> None:
    picture = tissue(300, 300)
    sample = get("pathology").read(write_slide(tmp_path / "a.tif", picture, mpp=None))
    np.testing.assert_allclose(sample.array * 255, picture[:224, :224], atol=1e-3)
    assert sample.spacing is None and "level 0" in sample.steps[1]
    assert any("does not state its pixel size" in text for text in sample.warnings)
    assert any("read at level 0" in text for text in sample.warnings)


def test_pen_marks_and_empty_slides_are_doubted(tmp_path: Path) -> None:
    picture = glass(600, 600)
    picture[:224, :224] = tissue(224, 224)
    picture[400:500, 50:500] = GREEN
    sample = get("pathology").read(write_slide(tmp_path / "a.tif", picture))
    assert any("pen marks on 1" in text for text in sample.warnings) and "1 of 4 tiles" in sample.steps[1]
    empty = get("pathology").read(write_slide(tmp_path / "b.tif", glass(600, 600)))
    assert {"no tile is at least half tissue", "almost only empty glass"} <= set(empty.warnings)


def test_real_slide_in_a_child_process(native: Path) -> None:
    sample = modalities.read("pathology", native / SVS)
    assert sample.array.shape == (224, 224, 3) and sample.array.dtype == np.float32
    assert sample.spacing == (0.0005, 0.0005) and sample.warnings == []
    assert "2220 x 2967 pixels of 0.499 micrometres" in sample.steps[0] and "of 117 tiles are tissue" in sample.steps[1]
    red, green, blue = sample.array.mean((0, 1))
    assert green < red and green < blue
    with pytest.raises(ReadError, match="not a TIFF or SVS file"):
        modalities.read("pathology", native / "wsi" / "broken.svs")


def test_labels_are_never_opened_nor_headers_quoted(
    native: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tifffile.TiffFile(native / SVS) as file:
        private = [page for page in file.pages if not page.is_tiled]
        assert len(private) == 3  # thumbnail, label, macro
        spans = [(a, b) for page in private for a, b in zip(page.dataoffsets, page.databytecounts)]
    expected = get("pathology").read(native / SVS)
    data = bytearray((native / SVS).read_bytes())
    for start, count in spans:
        data[start : start + count] = bytes(count)  # undecodable: reading them would fail or show
    (tmp_path / "a.svs").write_bytes(data)
    sample = get("pathology").read(tmp_path / "a.svs")
    assert sample.array.tobytes() == expected.array.tobytes() and sample.tags == {}
    text = " ".join(sample.steps + sample.warnings)
    for secret in ("Aperio", "CMU", "ScanScope", "12/29/09", "b414003d"):
        assert secret not in text
    named = write_slide(tmp_path / "b.tif", tissue(300, 300), description="Doe, Jane 1970-01-01")
    assert "Doe" not in str(get("pathology").read(named).steps)


# --- doubts -----------------------------------------------------------------------------------------------------------


def test_out_of_focus(tmp_path: Path) -> None:
    pixels = tissue(224, 224).astype(float)
    found = {}
    for blur in (0, 4):
        Image.fromarray(gaussian_filter(pixels, (blur, blur, 0)).astype(np.uint8)).save(tmp_path / "a.png")
        found[blur] = get("pathology").read(tmp_path / "a.png").warnings
    assert found[0] == [] and "out of focus" in found[4][0]


def test_real_tiles_are_in_focus_until_blurred(mini5: Path) -> None:
    records = read_manifest(mini5 / "manifest.csv", modalities=["pathology"]).records[::20]
    sharp = [get("pathology").read(record.path).array for record in records]
    assert min(map(sharpness, sharp)) > 1.5 * MIN_SHARPNESS
    assert max(sharpness(gaussian_filter(array, (3, 3, 0))) for array in sharp) < MIN_SHARPNESS


def test_grey_and_damaged_files_are_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "grey.tif", tissue(96, 96)[..., 0])
    with pytest.raises(ReadError, match="grey image"):
        get("pathology").read(tmp_path / "grey.tif")
    path = write_slide(tmp_path / "a.tif", tissue(300, 300))
    data = path.read_bytes()
    for length in range(10, len(data), len(data) // 10):
        (tmp_path / "cut.tif").write_bytes(data[:length])
        with pytest.raises(ReadError):
            get("pathology").read(tmp_path / "cut.tif")
    (tmp_path / "text.svs").write_text("not a slide at all")
    with pytest.raises(ReadError, match="not a TIFF or SVS file"):
        get("pathology").read(tmp_path / "text.svs")
