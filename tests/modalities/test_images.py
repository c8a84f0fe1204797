"""PNG and JPEG decoding, and the X-ray, retina and pathology readers."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from m3bind.errors import ReadError
from m3bind.modalities import _images, get

Make = Callable[..., Path]


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
    array, steps = _images.read_picture(tmp_path / "a.png")
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
            with pytest.raises(ReadError, match=r"a colour picture, not a.*check the modality"):
                get(modality).read(five_files[picture])
    for modality in ("retina", "pathology"):
        with pytest.raises(ReadError, match=r"a grey picture, not .* check the modality"):
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


def test_missing_empty_folder_and_foreign_content(tmp_path: Path) -> None:
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
