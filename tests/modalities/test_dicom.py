"""DICOM: opening within limits, stored values, and the display pipeline against pydicom's own."""

import io
import logging
import os
import struct
import time
import tracemalloc
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.data.data_manager import DATA_ROOT
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.pixels import apply_modality_lut, apply_voi_lut, get_decoder
from pydicom.sequence import Sequence
from pydicom.uid import UID

from m3bind.errors import ReadError
from m3bind.modalities.formats import dicom, limits

SHIPPED = sorted((Path(DATA_ROOT) / "test_files").glob("*.dcm"))
EXPLICIT, BIG_ENDIAN = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"
DX = "1.2.840.10008.5.1.4.1.1.1.1"
UNREADABLE = {  # pictures among pydicom's files that are refused, and why
    "JPEG2000-embedded-sequence-delimiter.dcm": "compressed frame",
    "MR_truncated.dcm": "need 8,192 bytes, 8,130 are stored",
    "badVR.dcm": "NumberOfFrames is not a number",
    "meta_missing_tsyntax.dcm": "Rows is missing",
    "nested_priv_SQ.dcm": "Rows is missing",
}


def make(stored: np.ndarray, bits: int | None = None, **entries: Any) -> Dataset:
    """A radiograph of stored values (H, W), (H, W, 3) or (F, H, W)."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = UID(EXPLICIT)
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = UID(DX), UID("1.2.3")
    ds.SOPClassUID, ds.SOPInstanceUID, ds.Modality, ds.PatientName = UID(DX), UID("1.2.3"), "DX", "DOE^JANE"
    colour = stored.ndim == 3 and stored.shape[2] == 3
    ds.SamplesPerPixel = 3 if colour else 1
    ds.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    if colour:
        ds.PlanarConfiguration = 0
    if stored.ndim == 3 and not colour:
        ds.NumberOfFrames = str(len(stored))
    ds.Rows, ds.Columns = stored.shape[:2] if colour else stored.shape[-2:]
    ds.BitsAllocated = 8 * stored.dtype.itemsize
    ds.BitsStored = bits or ds.BitsAllocated
    ds.HighBit = ds.BitsStored - 1
    ds.PixelRepresentation = int(stored.dtype.kind == "i")
    ds.PixelData = stored.tobytes() + b"\0" * (stored.nbytes % 2)
    ds["PixelData"].VR = "OB" if stored.dtype.itemsize == 1 else "OW"
    for keyword, value in entries.items():
        setattr(ds, keyword, value)
    return ds


def save(ds: Dataset, path: Path) -> Path:
    ds.save_as(path, enforce_file_format=True)
    return path


def grey(ds: Dataset, tmp_path: Path) -> tuple[np.ndarray, list[str], list[str]]:
    """`dicom.grey` of a dataset that went through a file."""
    path = save(ds, tmp_path / "a.dcm")
    return dicom.grey(dicom.open_dicom(path), path)


def reference(ds: Dataset, frame: int) -> np.ndarray:
    """0..1 by pydicom: modality LUT, VOI LUT, the range of its output, MONOCHROME1 turned."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stored = ds.pixel_array
        stored = stored[frame] if int(ds.get("NumberOfFrames", 1) or 1) > 1 else stored
        values = apply_modality_lut(stored, ds).astype(float)
        if "WindowWidth" not in ds:
            out = (values - values.min()) / (values.max() - values.min())
        else:
            shown = apply_voi_lut(values, ds)
            low, high = (0, 2**ds.BitsStored - 1) if not ds.PixelRepresentation else (
                -(2 ** (ds.BitsStored - 1)), 2 ** (ds.BitsStored - 1) - 1)  # fmt: skip
            slope, intercept = float(ds.get("RescaleSlope", 1)), float(ds.get("RescaleIntercept", 0))
            low, high = low * slope + intercept, high * slope + intercept
            out = (shown - low) / (high - low)
    if "PixelPaddingValue" in ds:
        out[stored == ds.PixelPaddingValue] = 0
    return 1 - out if ds.PhotometricInterpretation == "MONOCHROME1" else out


def pictures() -> list[Path]:
    """pydicom's files with pixels that its own pipeline reads."""
    found = []
    for path in SHIPPED:
        ds = pydicom.dcmread(path, force=True)
        if any(name in ds for name in ("PixelData", "FloatPixelData")) and path.name not in UNREADABLE:
            found.append(path)
    return found


PICTURES = pictures()
TWELVE_BIT = ("JPGExtended.dcm", "JPEG-lossy.dcm")  # pydicom's GPL-free plugins do not read these


def test_pydicom_ships_what_the_tests_need() -> None:
    syntaxes = {str(pydicom.dcmread(path, stop_before_pixels=True).file_meta.TransferSyntaxUID) for path in PICTURES}
    tails = {uid.removeprefix("1.2.840.10008.1.2") for uid in syntaxes}
    assert {"", ".1", ".2", ".5", ".1.99", ".4.50", ".4.51", ".4.70", ".4.80", ".4.81", ".4.90", ".4.91"} <= tails
    assert len(PICTURES) >= 50


@pytest.mark.parametrize("path", PICTURES, ids=lambda path: path.name)
def test_stored_values_are_pydicoms(path: Path) -> None:
    if path.name in TWELVE_BIT:
        pytest.skip("pydicom has no GPL-free decoder for it; see test_twelve_bit_jpeg")
    ours = dicom.pixel_frames(dicom.open_dicom(path), path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ds = pydicom.dcmread(path)
        theirs, _ = get_decoder(ds.file_meta.TransferSyntaxUID).as_array(ds, raw=True)
    assert ours.shape[0] == int(ds.get("NumberOfFrames", 1) or 1)
    np.testing.assert_array_equal(ours, theirs.reshape(ours.shape))


@pytest.mark.parametrize("path", PICTURES, ids=lambda path: path.name)
def test_shown_values_are_pydicoms(path: Path) -> None:
    if path.name in TWELVE_BIT:
        pytest.skip("pydicom has no GPL-free decoder for it; see test_twelve_bit_jpeg")
    ds = pydicom.dcmread(path)
    frames = int(ds.get("NumberOfFrames", 1) or 1)
    opened = dicom.open_dicom(path)
    if ds.PhotometricInterpretation.startswith("MONO"):
        array, steps, doubts = dicom.grey(opened, path)
        np.testing.assert_allclose(array, reference(ds, frames // 2), atol=2e-6)
    else:
        array, steps, doubts = dicom.colour(opened, path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = ds.pixel_array
        theirs = theirs[frames // 2] if frames > 1 else theirs
        if ds.PhotometricInterpretation == "PALETTE COLOR":
            theirs = pydicom.pixels.apply_color_lut(theirs, ds)
        top = float(np.iinfo(theirs.dtype).max)
        np.testing.assert_allclose(array, theirs / top, atol=1.1 / 255 if "YBR converted to RGB" in steps else 1e-6)
    assert array.dtype == np.float32 and array.min() >= 0 and array.max() <= 1
    assert any("frame" in step for step in steps) == any("frames" in doubt for doubt in doubts) == (frames > 1)


@pytest.mark.parametrize("name", TWELVE_BIT)
def test_twelve_bit_jpeg(name: str) -> None:
    """No second decoder is here; the picture is the one JPEG2000.dcm holds, both lossily compressed."""
    path, other = (Path(get_testdata_file(n)) for n in (name, "JPEG2000.dcm"))
    ours = dicom.pixel_frames(dicom.open_dicom(path), path, 0).astype(float)
    same = dicom.pixel_frames(dicom.open_dicom(other), other, 0).astype(float)
    assert ours.shape == same.shape == (1024, 256)
    assert np.corrcoef(ours.ravel(), same.ravel())[0, 1] > 0.95


def test_twelve_bit_jpeg_is_the_lossless_picture(native: Path) -> None:
    path = Path(get_testdata_file(TWELVE_BIT[0]))
    ours = dicom.pixel_frames(dicom.open_dicom(path), path, 0).astype(float)
    true = pydicom.dcmread(native / "dicom" / "JPEG-LL.dcm").pixel_array
    assert np.abs(ours - true).mean() < 4 and np.corrcoef(ours.ravel(), true.ravel())[0, 1] > 0.98


@pytest.mark.parametrize(("name", "reason"), UNREADABLE.items())
def test_damaged_files_report_their_fault(name: str, reason: str) -> None:
    path = Path(get_testdata_file(name))
    with pytest.raises(ReadError, match=reason):
        dicom.pixel_frames(dicom.open_dicom(path), path)


@pytest.mark.parametrize("path", [p for p in SHIPPED if p not in PICTURES], ids=lambda path: path.name)
def test_files_without_pictures_are_typed_errors(path: Path) -> None:
    with pytest.raises(ReadError) as caught:
        dicom.pixel_frames(dicom.open_dicom(path), path)
    assert "cannot be decoded" not in caught.value.reason


def test_real_files(native: Path) -> None:
    refused = []
    for path in sorted((native / "dicom").rglob("*.dcm")):
        ds = pydicom.dcmread(path)
        try:
            if str(ds.PhotometricInterpretation).startswith("MONO"):
                array, _, _ = dicom.grey(dicom.open_dicom(path), path)
                frames = int(ds.get("NumberOfFrames", 1) or 1)
                if "PixelPaddingRangeLimit" not in ds:
                    np.testing.assert_allclose(array, reference(ds, frames // 2), atol=2e-6)
            else:
                assert dicom.colour(dicom.open_dicom(path), path)[0].ndim == 3
        except ReadError:
            refused.append(path.name)
    assert refused == ["MR_truncated.dcm"]


# ---------------------------------------------------------------------------------------------------------- opening


@pytest.mark.parametrize(
    "name", ["ExplVR_BigEndNoMeta.dcm", "ExplVR_LitEndNoMeta.dcm", "rtstruct.dcm", "no_meta_group_length.dcm"]
)
def test_files_without_preamble_or_meta_are_opened(name: str) -> None:
    path = Path(get_testdata_file(name))
    assert dicom.is_dicom(path) and len(dicom.open_dicom(path)) >= 3


@pytest.mark.parametrize("implicit", [True, False])
def test_a_bare_data_set_is_read_like_the_whole_file(tmp_path: Path, implicit: bool) -> None:
    ds = make(np.arange(600, dtype=np.uint16).reshape(20, 30))
    del ds.file_meta
    ds.save_as(tmp_path / "bare.dcm", implicit_vr=implicit, little_endian=True)
    assert (tmp_path / "bare.dcm").read_bytes()[128:132] != b"DICM"
    opened = dicom.open_dicom(tmp_path / "bare.dcm")
    assert dicom.is_dicom(tmp_path / "bare.dcm") and dicom.kind_of(opened) == "radiograph"
    frame = dicom.pixel_frames(opened, tmp_path / "bare.dcm", 0)
    np.testing.assert_array_equal(frame, np.arange(600).reshape(20, 30))


@pytest.mark.parametrize("content", [b"", b"x" * 20, b"\x08\0", b"\x89PNG" + bytes(300), bytes(500), b"\x08\0\x05\0"])
def test_other_files_are_not_dicom(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").write_bytes(content)
    assert not dicom.is_dicom(tmp_path / "a")
    with pytest.raises(ReadError, match="not a DICOM file"):
        dicom.open_dicom(tmp_path / "a")


def test_pipes_are_never_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.dcm")
    start = time.monotonic()
    assert not dicom.is_dicom(tmp_path / "a.dcm")
    with pytest.raises(ReadError, match="not a regular file"):
        dicom.open_dicom(tmp_path / "a.dcm")
    assert time.monotonic() - start < 1


def deflated(body: bytes, level: int = 9) -> bytes:
    ds = make(np.zeros((16, 16), dtype=np.uint8))
    ds.file_meta.TransferSyntaxUID = UID("1.2.840.10008.1.2.1.99")
    out = io.BytesIO()
    ds.save_as(out, enforce_file_format=True)
    head = out.getvalue()
    meta = 144 + struct.unpack("<I", head[140:144])[0]
    engine = zlib.compressobj(level, zlib.DEFLATED, -15)
    return head[:meta] + engine.compress(body) + engine.flush()


@pytest.mark.parametrize("stop", [True, False])
def test_deflated_files_are_inflated(tmp_path: Path, stop: bool) -> None:
    path = Path(get_testdata_file("image_dfl.dcm"))
    ds, theirs = dicom.open_dicom(path, stop_before_pixels=stop), pydicom.dcmread(path)
    assert ("PixelData" in ds) != stop and ds.Rows == theirs.Rows == 512
    assert ds.file_meta.TransferSyntaxUID == EXPLICIT
    if not stop:
        np.testing.assert_array_equal(dicom.pixel_frames(ds, path, 0), theirs.pixel_array)
    whole = path.read_bytes()
    (tmp_path / "cut.dcm").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ReadError, match="deflated content is cut short"):
        dicom.open_dicom(tmp_path / "cut.dcm")


def test_a_deflated_bomb_is_refused_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bomb.dcm").write_bytes(deflated(bytes(1 << 29)))
    assert (tmp_path / "bomb.dcm").stat().st_size < 1_000_000
    start = time.monotonic()
    tracemalloc.start()
    with pytest.raises(ReadError, match=r"inflates to more than .* bytes from") as caught:
        dicom.open_dicom(tmp_path / "bomb.dcm")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert time.monotonic() - start < 2 and peak < 80_000_000 and "malicious" in caught.value.hint
    noise = np.random.default_rng(0).integers(0, 256, 3_000_000, dtype=np.uint8).tobytes()
    (tmp_path / "big.dcm").write_bytes(deflated(noise, 1))
    monkeypatch.setattr(limits, "LIMITS", limits.Limits(memory=4_000_000))
    with pytest.raises(ReadError, match="more than 1,000,000 bytes"):
        dicom.open_dicom(tmp_path / "big.dcm")


def nested(depth: int, implicit: bool, bounded: bool) -> bytes:
    """A sequence in a sequence in a sequence, `depth` deep, with or without declared lengths."""
    body = b""
    head = b"\x40\0\x30\xa7" + (b"" if implicit else b"SQ\0\0")
    if not bounded:
        ends = (b"\xfe\xff\x0d\xe0" + bytes(4) + b"\xfe\xff\xdd\xe0" + bytes(4)) * depth
        return (head + b"\xff" * 4 + b"\xfe\xff\0\xe0" + b"\xff" * 4) * depth + ends
    for _ in range(depth):
        item = b"\xfe\xff\0\xe0" + struct.pack("<I", len(body)) + body
        body = head + struct.pack("<I", len(item)) + item
    return body


@pytest.mark.parametrize("implicit", [True, False])
@pytest.mark.parametrize("bounded", [True, False])
@pytest.mark.parametrize("depth", [1, 32, 33, 300, 5000])
def test_depth_of_sequences(tmp_path: Path, implicit: bool, bounded: bool, depth: int) -> None:
    out = io.BytesIO()
    ds = make(np.zeros((16, 16), dtype=np.uint8))
    ds.file_meta.TransferSyntaxUID = UID("1.2.840.10008.1.2" if implicit else EXPLICIT)
    ds.save_as(out, enforce_file_format=True)
    data = out.getvalue()
    at = data.rindex(b"\xe0\x7f\x10\0")
    path = tmp_path / "deep.dcm"
    path.write_bytes(data[:at] + nested(depth, implicit, bounded) + data[at:])
    start = time.monotonic()
    if depth <= limits.LIMITS.depth:
        assert dicom.pixel_frames(dicom.open_dicom(path), path).shape == (1, 16, 16)
    else:
        with pytest.raises(ReadError, match="nested"):
            dicom.open_dicom(path)
    assert time.monotonic() - start < 2


def test_many_sequences_side_by_side_are_not_deep(tmp_path: Path) -> None:
    ds = make(np.zeros((16, 16), dtype=np.uint8))
    ds.PerFrameFunctionalGroupsSequence = Sequence([Dataset() for _ in range(500)])
    for item in ds.PerFrameFunctionalGroupsSequence:
        item.FrameContentSequence = Sequence([Dataset()])
        item.FrameContentSequence[0].FrameLabel = "x"
    for undefined in (False, True):
        ds["PerFrameFunctionalGroupsSequence"].is_undefined_length = undefined
        path = save(ds, tmp_path / "wide.dcm")
        assert len(dicom.open_dicom(path).PerFrameFunctionalGroupsSequence) == 500


def test_tags_are_technical_and_errors_contain_no_names(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ds = make(np.zeros((16, 16), dtype=np.uint8), KVP="110", PatientBirthDate="19500101", StudyDescription="DOE chest")
    tags = dicom.technical_tags(dicom.open_dicom(save(ds, tmp_path / "a.dcm")))
    assert tags["KVP"].startswith("110") and tags["Rows"] == "16" and tags["TransferSyntaxUID"] == EXPLICIT
    assert not any("DOE" in value or "1950" in value for value in tags.values())
    ds.WindowCenter, ds.WindowWidth = "40", "400"
    data = save(ds, tmp_path / "a.dcm").read_bytes().replace(b"400 ", b"DOE ")
    (tmp_path / "a.dcm").write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # pydicom quotes values in its warnings
        caplog.clear()
        _, steps, doubts = dicom.grey(dicom.open_dicom(tmp_path / "a.dcm"), tmp_path / "a.dcm")
    assert not caplog.records and logging.getLogger("pydicom").level != logging.CRITICAL
    assert doubts == ["an unusable window is ignored"] and "DOE" not in " ".join(steps)


@pytest.mark.parametrize(
    ("uid", "modality", "kind"),
    [
        (DX, "DX", "radiograph"), ("1.2.840.10008.5.1.4.1.1.1", "CR", "radiograph"),
        ("1.2.840.10008.5.1.4.1.1.12.1.1", "XA", "radiograph"), ("1.2.840.10008.5.1.4.1.1.2.1", "CT", "CT slice"),
        ("1.2.840.10008.5.1.4.1.1.128", "PT", "PET slice"), ("1.2.840.10008.5.1.4.1.1.7", "OT", ""),
        ("1.2.840.10008.5.1.4.1.1.7", "CT", "CT slice"),
        ("1.2.840.10008.5.1.4.1.1.77.1.5.1", "OP", "fundus photograph"),
        ("1.2.840.10008.5.1.4.1.1.77.1.5.4", "OPT", "OCT image"), ("1.2.3.4", "MR", "MR slice"), ("", "", ""),
    ],
)  # fmt: skip
def test_kinds(uid: str, modality: str, kind: str) -> None:
    ds = Dataset()
    ds.SOPClassUID, ds.Modality = uid, modality
    assert dicom.kind_of(ds) == kind


# ---------------------------------------------------------------------------------------------------- stored values


RAMP = np.arange(20 * 30, dtype=np.uint16).reshape(20, 30)


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ({"Rows": 65535, "Columns": 65535}, "pixels, more than 64,000,000"),
        ({"Rows": 0}, "Rows is 0"),
        ({"NumberOfFrames": "2000000000"}, "2000000000 frames of 30 x 20 need"),
        ({"NumberOfFrames": "2"}, "2 frames of 30 x 20 need 2,400 bytes, 1,200 are stored"),
        ({"NumberOfFrames": "-1"}, "NumberOfFrames is -1"),
        ({"SamplesPerPixel": 7}, "7 samples of 16 bits"),
        ({"BitsAllocated": 12}, "1 samples of 12 bits"),
        ({"BitsStored": 17}, "17 bits up to bit 15 stored in 16"),
        ({"PixelRepresentation": 2}, "PixelRepresentation"),
    ],
)
def test_lies_of_the_header_are_refused_before_decoding(
    tmp_path: Path, entries: dict[str, Any], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(make(RAMP, **entries), tmp_path / "a.dcm")
    monkeypatch.setattr("m3bind.modalities.formats.dicom_pixels._decode_frame", lambda *_: pytest.fail("decoded"))
    with pytest.raises(ReadError, match=reason):
        dicom.pixel_frames(dicom.open_dicom(path), path, 0)


def test_frames_by_number(tmp_path: Path) -> None:
    stored = np.random.default_rng(0).integers(0, 4096, (3, 20, 30)).astype(np.uint16)
    path = save(make(stored, bits=12), tmp_path / "a.dcm")
    ds = dicom.open_dicom(path)
    np.testing.assert_array_equal(dicom.pixel_frames(ds, path), stored)
    for k in range(3):
        np.testing.assert_array_equal(dicom.pixel_frames(ds, path, k), stored[k])
    with pytest.raises(ReadError, match="frame 3 of 3"):
        dicom.pixel_frames(ds, path, 3)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(("bits", "high"), [(12, 11), (10, 9), (12, 15), (8, 11)])
def test_bits_outside_the_stored_ones_are_masked(tmp_path: Path, signed: bool, bits: int, high: int) -> None:
    rng = np.random.default_rng(bits)
    low = -(2 ** (bits - 1)) if signed else 0
    true = rng.integers(low, low + 2**bits, (20, 30))
    place = high + 1 - bits
    raw = ((true & (2**bits - 1)) << place) | (rng.integers(0, 2**16, true.shape) & ~((2**bits - 1) << place) & 0xFFFF)
    ds = make(raw.astype(np.uint16), bits=bits, PixelRepresentation=int(signed), HighBit=high)
    path = save(ds, tmp_path / "a.dcm")
    np.testing.assert_array_equal(dicom.pixel_frames(dicom.open_dicom(path), path, 0), true)


def compressed(name: str) -> Dataset:
    return pydicom.dcmread(get_testdata_file(name))


@pytest.mark.parametrize("name", ["MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm", "MR_small_RLE.dcm"])
def test_compressed_frames_that_do_not_fit(tmp_path: Path, name: str) -> None:
    ds = compressed(name)
    ds.NumberOfFrames = "5"
    path = save(ds, tmp_path / "a.dcm")
    with pytest.raises(ReadError, match="5 frames declared, 1 stored"):
        dicom.pixel_frames(dicom.open_dicom(path), path, 0)
    if "RLE" not in name:  # run lengths do not know their size
        ds = compressed(name)
        ds.Rows = 63
        path = save(ds, tmp_path / "a.dcm")
        with pytest.raises(ReadError, match=r"header: 64 x 63, compressed frame: 64 x 64"):
            dicom.pixel_frames(dicom.open_dicom(path), path, 0)
    ds = compressed(name)
    stream = get_frame(ds.PixelData, 0, number_of_frames=1)
    ds.PixelData = encapsulate([stream[: len(stream) // 2]])
    path = save(ds, tmp_path / "a.dcm")
    start = time.monotonic()
    try:
        cut = dicom.pixel_frames(dicom.open_dicom(path), path, 0)
    except ReadError as error:
        assert "decoded" in error.reason or "size" in error.reason or "cut short" in error.reason
    else:
        assert cut.shape == (64, 64)  # some decoders fill in what is missing
    assert time.monotonic() - start < 3


def test_a_picture_that_no_compression_explains(tmp_path: Path) -> None:
    ds = compressed("MR_small_RLE.dcm")
    ds.Rows = ds.Columns = 8000
    path = save(ds, tmp_path / "a.dcm")
    with pytest.raises(ReadError, match=r"declares 128,000,000 bytes of content in .* stored"):
        dicom.pixel_frames(dicom.open_dicom(path), path, 0)


@pytest.mark.parametrize("uid", ["1.2.840.10008.1.2.4.100", "1.2.840.10008.1.2.4.94", "1.2.826.0.1.3680043.2.1"])
def test_unread_transfer_syntaxes_are_named_unless_private(tmp_path: Path, uid: str) -> None:
    ds = make(RAMP)
    ds.file_meta.TransferSyntaxUID = UID(uid)
    with pytest.raises(ReadError, match=uid if "10008" in uid else "that is private"):
        dicom.pixel_frames(ds, tmp_path / "a.dcm", 0)


# ------------------------------------------------------------------------------------------------------------- grey


def lut(entries: np.ndarray, first: int, bits: int) -> Sequence:
    item = Dataset()
    item.add_new("LUTDescriptor", "SS" if first < 0 else "US", [len(entries), first, bits])
    item.add_new("LUTData", "OW", entries.astype("<u2").tobytes())
    return Sequence([item])


def unit(values: Any) -> np.ndarray:
    values = np.asarray(values, dtype=float)
    return (values - values.min()) / (values.max() - values.min())


def test_without_a_window_the_stored_range_is_stretched(tmp_path: Path) -> None:
    array, steps, doubts = grey(make(RAMP + 100), tmp_path)
    np.testing.assert_allclose(array, unit(RAMP), atol=1e-6)
    assert steps == ["no window: stretched from its minimum 100 to its maximum 699"] and doubts == []


@pytest.mark.parametrize("function", [None, "LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize(("slope", "intercept"), [(None, None), ("1", "-1024"), ("0.5", "7.5")])
@pytest.mark.parametrize("window", [(300, 200), (0, 1), (-900, 300), ([310, 1], [50, 2])])
def test_windows_are_pydicoms(
    tmp_path: Path, function: str | None, photometric: str, slope: str | None, intercept: str, window: tuple[Any, Any]
) -> None:
    ds = make(RAMP, bits=12, PhotometricInterpretation=photometric, WindowCenter=window[0], WindowWidth=window[1])
    if function:
        ds.VOILUTFunction = function
    if slope:
        ds.RescaleSlope, ds.RescaleIntercept = slope, intercept
    array, steps, doubts = grey(ds, tmp_path)
    with np.errstate(all="ignore"):
        np.testing.assert_allclose(array, reference(ds, 0), atol=2e-6)
    assert sum("window" in step for step in steps) == 1 and doubts == []
    assert sum("(once)" in step for step in steps) == (slope is not None) + (photometric == "MONOCHROME1")


def test_a_negative_slope_turns_values_around(tmp_path: Path) -> None:
    ds = make(RAMP, RescaleSlope="-1", RescaleIntercept="600", WindowCenter="300.5", WindowWidth="601")
    array, _, _ = grey(ds, tmp_path)
    np.testing.assert_allclose(array, (600 - RAMP) / 600, atol=1e-6)


@pytest.mark.parametrize("first", [0, 50, -20])
def test_voi_lut_is_pydicoms_and_wins_over_the_window(tmp_path: Path, first: int) -> None:
    entries = np.sort(np.random.default_rng(3).integers(0, 4096, 400))
    entries[-1] = 4095
    ds = make((RAMP.astype(np.int16) - 30), PixelRepresentation=1, WindowCenter="1", WindowWidth="1")
    ds.VOILUTSequence = lut(entries, first, 12)
    array, steps, _ = grey(ds, tmp_path)
    theirs = apply_voi_lut(ds.pixel_array, ds)
    np.testing.assert_allclose(array, theirs / 4095, atol=1e-6)
    assert steps == ["VOI LUT of 400 entries of 12 bits applied"]


def test_modality_lut_is_pydicoms_and_applied_once(tmp_path: Path) -> None:
    entries = (np.arange(700) ** 2 // 8).clip(0, 65535)
    ds = make(RAMP, RescaleSlope="2", RescaleIntercept="5")
    ds.ModalityLUTSequence = lut(entries, 0, 16)
    ds.ModalityLUTSequence[0].ModalityLUTType = "US"
    array, steps, _ = grey(ds, tmp_path)
    np.testing.assert_allclose(array, unit(apply_modality_lut(ds.pixel_array, ds)), atol=1e-6)
    assert steps[0] == "modality LUT of 700 entries of 16 bits applied (once)" and len(steps) == 2


def test_damaged_luts_are_refused(tmp_path: Path) -> None:
    ds = make(RAMP)
    ds.VOILUTSequence = lut(np.arange(100), 0, 12)
    ds.VOILUTSequence[0].LUTDescriptor = [4096, 0, 12]
    with pytest.raises(ReadError, match="look-up table of 4096 entries of 12 bits has 100"):
        grey(ds, tmp_path)
    del ds.VOILUTSequence[0].LUTData
    with pytest.raises(ReadError, match="look-up tables or windows cannot be used"):
        grey(ds, tmp_path)


@pytest.mark.parametrize(
    ("photometric", "shape", "inverted", "contradicts"),
    [
        ("MONOCHROME2", None, False, False), ("MONOCHROME2", "IDENTITY", False, False),
        ("MONOCHROME1", None, True, False), ("MONOCHROME1", "INVERSE", True, False),
        ("MONOCHROME2", "INVERSE", True, True), ("MONOCHROME1", "IDENTITY", True, True),
    ],
)  # fmt: skip
def test_turned_exactly_once(
    tmp_path: Path, photometric: str, shape: str | None, inverted: bool, contradicts: bool
) -> None:
    ds = make(RAMP, PhotometricInterpretation=photometric)
    if shape:
        ds.PresentationLUTShape = shape
    array, steps, doubts = grey(ds, tmp_path)
    np.testing.assert_allclose(array, 1 - unit(RAMP) if inverted else unit(RAMP), atol=1e-6)
    assert any("inverted" in step for step in steps) == inverted
    assert any("contradict" in doubt for doubt in doubts) == contradicts


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("limit", [None, 61000])
def test_padding_is_black_and_counts_for_nothing(tmp_path: Path, photometric: str, limit: int | None) -> None:
    stored = RAMP.copy()
    stored[:, :5] = 60000
    stored[:, 5] = 60500 if limit else 60000
    ds = make(stored, PhotometricInterpretation=photometric, PixelPaddingValue=60000)
    if limit:
        ds.PixelPaddingRangeLimit = limit
    array, steps, _ = grey(ds, tmp_path)
    assert (array[:, :6] == 0).all()
    rest = unit(RAMP[:, 6:])
    np.testing.assert_allclose(array[:, 6:], 1 - rest if photometric == "MONOCHROME1" else rest, atol=1e-6)
    assert "padding of 20.0% of the pixels set to black" in steps


def test_overlays_are_not_drawn(tmp_path: Path) -> None:
    plain, _, _ = grey(make(RAMP, bits=12), tmp_path)
    ds = make(RAMP | 0x8000, bits=12)  # an overlay in the unused bits
    ds.add_new(0x60000100, "US", 16)
    ds.add_new(0x60000102, "US", 15)
    ds.add_new(0x60000010, "US", 20)
    array, steps, _ = grey(ds, tmp_path)
    np.testing.assert_array_equal(array, plain)
    assert "overlay planes not drawn: 1" in steps


def test_many_frames_give_the_middle_one(tmp_path: Path) -> None:
    stored = np.stack([RAMP, RAMP[::-1], RAMP.T.reshape(20, 30)])
    array, steps, doubts = grey(make(stored), tmp_path)
    np.testing.assert_allclose(array, unit(RAMP[::-1]), atol=1e-6)
    assert "frame 2 of 3 taken" in steps and doubts == ["3 frames, of which only the middle one is used"]


def test_functional_groups_of_enhanced_files(tmp_path: Path) -> None:
    ds = make(np.stack([RAMP, RAMP + 1, RAMP + 2]))
    shared, per = Dataset(), [Dataset() for _ in range(3)]
    shared.PixelValueTransformationSequence = Sequence([Dataset()])
    shared.PixelValueTransformationSequence[0].RescaleSlope = "2"
    shared.PixelValueTransformationSequence[0].RescaleIntercept = "-10"
    for k, item in enumerate(per):
        item.FrameVOILUTSequence = Sequence([Dataset()])
        item.FrameVOILUTSequence[0].WindowCenter, item.FrameVOILUTSequence[0].WindowWidth = str(100 * k + 300), "101"
    ds.SharedFunctionalGroupsSequence, ds.PerFrameFunctionalGroupsSequence = Sequence([shared]), Sequence(per)
    array, steps, _ = grey(ds, tmp_path)
    values = (RAMP + 1) * 2.0 - 10
    np.testing.assert_allclose(array, np.clip((values - 399.5) / 100 + 0.5, 0, 1), atol=1e-6)
    assert "window 400/101 applied" in steps and "rescaled by slope 2 and intercept -10 (once)" in steps


@pytest.mark.parametrize(("key", "value"), [("WindowWidth", "0"), ("WindowWidth", "-5"), ("WindowWidth", "0.5")])
def test_useless_windows_are_left_out_and_named(tmp_path: Path, key: str, value: str) -> None:
    array, _, doubts = grey(make(RAMP, WindowCenter="100", **{key: value}), tmp_path)
    np.testing.assert_allclose(array, unit(RAMP), atol=1e-6)
    assert doubts == ["an unusable window is ignored"]


def test_floats_and_blank_frames(tmp_path: Path) -> None:
    ds = make(RAMP)
    del ds.PixelData
    ds.BitsAllocated, ds.FloatPixelData = 32, (RAMP / 7).astype("<f4").tobytes()
    array, _, _ = grey(ds, tmp_path)
    np.testing.assert_allclose(array, unit(RAMP), atol=1e-5)
    broken = (RAMP / 7).astype("<f4")
    broken[3, 3] = np.nan
    ds.FloatPixelData = broken.tobytes()
    with pytest.raises(ReadError, match="not finite"):
        grey(ds, tmp_path)
    assert (grey(make(np.full((20, 30), 7, np.uint8)), tmp_path)[0] == 0).all()


# ----------------------------------------------------------------------------------------------------------- colour


def test_planar_configurations_are_the_same_picture(tmp_path: Path) -> None:
    rgb = np.random.default_rng(1).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    for planar, stored in ((0, rgb), (1, np.ascontiguousarray(rgb.transpose(2, 0, 1)))):
        ds = make(rgb, PlanarConfiguration=planar)
        ds.PixelData = stored.tobytes()
        path = save(ds, tmp_path / "a.dcm")
        array, steps, _ = dicom.colour(dicom.open_dicom(path), path)
        np.testing.assert_allclose(array, rgb / 255, atol=1e-6)
        assert steps == []


def test_ybr_becomes_rgb(tmp_path: Path) -> None:
    rgb = np.random.default_rng(2).integers(0, 256, (20, 30, 3)).astype(float)
    m = np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])
    ybr = np.rint(rgb @ m.T + [0, 128, 128]).clip(0, 255).astype(np.uint8)
    path = save(make(ybr, PhotometricInterpretation="YBR_FULL"), tmp_path / "a.dcm")
    array, steps, _ = dicom.colour(dicom.open_dicom(path), path)
    np.testing.assert_allclose(array, rgb / 255, atol=2 / 255)
    assert steps == ["YBR converted to RGB"]


@pytest.mark.parametrize("photometric", ["HSV", "CMYK", "YBR_PARTIAL_420", "DOE^JANE"])
def test_other_colour_models_are_refused_without_quoting_them(tmp_path: Path, photometric: str) -> None:
    ds = make(np.zeros((20, 30, 3), np.uint8), PhotometricInterpretation=photometric)
    with pytest.raises(ReadError, match=r"colour model|cannot be decoded") as caught:
        path = save(ds, tmp_path / "a.dcm")
        dicom.colour(dicom.open_dicom(path), path)
    assert "DOE" not in str(caught.value)


def test_grey_and_colour_refuse_each_other(tmp_path: Path) -> None:
    path = save(make(RAMP), tmp_path / "a.dcm")
    with pytest.raises(ReadError, match="grey pixels, not colour"):
        dicom.colour(dicom.open_dicom(path), path)
    path = save(make(np.zeros((20, 30, 3), np.uint8)), tmp_path / "a.dcm")
    with pytest.raises(ReadError, match="pixels in colour, not grey"):
        dicom.grey(dicom.open_dicom(path), path)


def palette(ds: Dataset, data: dict[str, bytes], entries: int, bits: int, prefix: str = "") -> Dataset:
    ds.PhotometricInterpretation = "PALETTE COLOR"
    for name, values in data.items():
        ds.add_new(f"{name}PaletteColorLookupTableDescriptor", "US", [entries, 0, bits])
        ds.add_new(f"{prefix}{name}PaletteColorLookupTableData", "OW", values)
    return ds


def test_palettes(tmp_path: Path) -> None:
    index = np.random.default_rng(4).integers(0, 256, (20, 30), dtype=np.uint8)
    tables = np.random.default_rng(5).integers(0, 65536, (3, 256)).astype("<u2")
    data = dict(zip(("Red", "Green", "Blue"), (table.tobytes() for table in tables)))
    path = save(palette(make(index), data, 256, 16), tmp_path / "a.dcm")
    array, steps, _ = dicom.colour(dicom.open_dicom(path), path)
    np.testing.assert_allclose(array, tables.T[index] / 65535, atol=1e-6)
    assert steps == ["palette applied"]
    path = save(palette(make(index), {}, 256, 16), tmp_path / "a.dcm")
    with pytest.raises(ReadError, match="palette cannot be used"):
        dicom.colour(dicom.open_dicom(path), path)


def test_a_palette_in_segments_may_not_explode(tmp_path: Path) -> None:
    index = np.zeros((20, 30), np.uint8)
    fine = struct.pack("<3H", 0, 1, 0) + struct.pack("<3H", 1, 255, 65535)
    path = save(
        palette(make(index), dict.fromkeys(("Red", "Green", "Blue"), fine), 256, 16, "Segmented"), tmp_path / "a"
    )
    assert (dicom.colour(dicom.open_dicom(path), path)[0] == 0).all()
    bomb = struct.pack("<3H", 0, 1, 0) + struct.pack("<3H", 1, 65535, 65535) * 10_000
    path = save(
        palette(make(index), dict.fromkeys(("Red", "Green", "Blue"), bomb), 256, 16, "Segmented"), tmp_path / "a"
    )
    start = time.monotonic()
    with pytest.raises(ReadError, match="its palette expands to 655,350,001 entries"):
        dicom.colour(dicom.open_dicom(path), path)
    assert time.monotonic() - start < 2


def test_nothing_is_written_into_the_dataset(tmp_path: Path) -> None:
    ds = make(RAMP, WindowCenter="100", WindowWidth="50")
    path = save(ds, tmp_path / "a.dcm")
    opened = dicom.open_dicom(path)
    before = opened.to_json()
    first: Callable[..., Any] = lambda: dicom.grey(opened, path)[0]  # noqa: E731
    np.testing.assert_array_equal(first(), first())
    assert opened.to_json() == before


# --- invalid statements in headers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("keyword", ["Rows", "PhotometricInterpretation", "BitsStored", "WindowWidth", "Modality"])
@pytest.mark.parametrize("code", [b"QQ", b"ZZ", b"AB"])
def test_a_value_representation_that_is_none_is_the_standards(tmp_path: Path, keyword: str, code: bytes) -> None:
    plain = save(make(np.arange(4096).reshape(64, 64).astype(np.uint16), WindowCenter=2000, WindowWidth=1000,
                      Modality="DX"), tmp_path / "a.dcm")  # fmt: skip
    tag = tag_for_keyword(keyword)
    assert tag is not None
    head = struct.pack("<HH", tag >> 16, tag & 0xFFFF)
    data = plain.read_bytes()
    at = data.index(head) + 4
    other = tmp_path / "b.dcm"
    other.write_bytes(data[:at] + code + data[at + 2 :])
    one, two = (dicom.grey(dicom.open_dicom(path), path) for path in (plain, other))
    np.testing.assert_array_equal(one[0], two[0])
    assert one[1:] == two[1:]
    assert dicom.technical_tags(dicom.open_dicom(other))["Modality"] == "DX"


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"PixelAspectRatio": [2, 1]}, "2 high to 1 wide"),
        ({"PixelSpacing": [0.2, 0.1]}, "0.2 high to 0.1 wide"),
        ({"ImagerPixelSpacing": [0.1, 0.143]}, "0.1 high to 0.143 wide"),
        ({"PixelAspectRatio": [1, 1]}, ""),
        ({"PixelSpacing": [0.143, 0.1431]}, ""),
        ({"PixelSpacing": [0.1, 0.1], "ImagerPixelSpacing": [0.143, 0.143]}, ""),
        ({"PixelSpacing": [0, 0]}, ""),
    ],
)
@pytest.mark.parametrize("photometric", ["MONOCHROME2", "RGB"])
def test_pixels_that_are_not_square_are_reported(
    tmp_path: Path, entries: dict[str, Any], said: str, photometric: str
) -> None:
    stored = np.arange(64 * 64 * 3).reshape(64, 64, 3).astype(np.uint8)
    ds = make(stored if photometric == "RGB" else stored[..., 0], PhotometricInterpretation=photometric, **entries)
    path = save(ds, tmp_path / "a.dcm")
    show = dicom.colour if photometric == "RGB" else dicom.grey
    found = [doubt for doubt in show(dicom.open_dicom(path), path)[2] if "not square" in doubt]
    assert len(found) == bool(said) and all(said in doubt for doubt in found)


@pytest.mark.parametrize(("extra", "said"), [(0, False), (2, False), (100, False), (64 * 64 * 2, True)])
def test_more_pixels_than_declared(tmp_path: Path, extra: int, said: bool) -> None:
    ds = make(np.arange(4096).reshape(64, 64).astype(np.uint16))
    ds.PixelData += bytes(extra)
    array, _, found = grey(ds, tmp_path)
    assert bool(found) == said and ("2 times as many pixels" in "".join(found)) == said
    np.testing.assert_allclose(array, np.arange(4096).reshape(64, 64) / 4095, atol=1e-6)
