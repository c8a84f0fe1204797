"""Malicious files: each causes one typed error, within ten seconds and the memory budget; the program survives.

Every maker returns (modality, path). `BUDGET` is the memory a reader may use beyond its libraries.
"""

import contextlib
import io
import os
import struct
import threading
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from m3bind import modalities
from m3bind.errors import ReadError
from m3bind.modalities.formats import isolation
from m3bind.modalities.formats.limits import VARIABLE, from_environment

BUDGET = 1_000_000_000
Made = tuple[str, Path]


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, data: bytes) -> bytes:
    head = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + png_chunk(b"IDAT", data) + png_chunk(b"IEND", b"")


def deflated(head: bytes, size: int) -> bytes:
    """`head` and `size` zero bytes as a raw deflate stream, made of one repeated block."""
    first, block = zlib.compressobj(9, zlib.DEFLATED, -15), zlib.compressobj(9, zlib.DEFLATED, -15)
    start = first.compress(head) + first.flush(zlib.Z_FULL_FLUSH)
    million = block.compress(bytes(1 << 20)) + block.flush(zlib.Z_FULL_FLUSH)
    return start + million * (size >> 20) + zlib.compressobj(9, zlib.DEFLATED, -15).flush()


def zeros(size: int) -> bytes:
    """`size` zero bytes as a zlib stream; their Adler-32 is known."""
    return b"\x78\xda" + deflated(b"", size) + struct.pack(">HH", size % 65521, 1)


def png_of_huge_size(folder: Path) -> Made:
    (folder / "a.png").write_bytes(png(2_000_000_000, 2_000_000_000, zlib.compress(b"\0")))
    return "xray", folder / "a.png"


def png_bomb(folder: Path) -> Made:
    (folder / "a.png").write_bytes(png(30_000, 30_000, zeros(900 << 20)))
    return "xray", folder / "a.png"


def png_text_bomb(folder: Path) -> Made:
    good = io.BytesIO()
    Image.new("L", (32, 32)).save(good, "png")
    chunk = png_chunk(b"zTXt", b"Comment\0\0" + zeros(1 << 30))
    data = good.getvalue()
    (folder / "a.png").write_bytes(data[:33] + chunk + data[33:])
    return "xray", folder / "a.png"


def jpeg_of_huge_size(folder: Path) -> Made:
    out = io.BytesIO()
    Image.new("RGB", (64, 64), (200, 90, 40)).save(out, "jpeg")
    data = bytearray(out.getvalue())
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", 65_500, 65_500)
    (folder / "a.jpg").write_bytes(data)
    return "retina", folder / "a.jpg"


def tiff(entries: list[tuple[int, int, int, int]], next_ifd: int, tail: bytes = b"") -> bytes:
    body = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<I", 8) + body + struct.pack("<I", next_ifd) + tail


def tiff_of_huge_size(folder: Path) -> Made:
    entries = [(256, 4, 1, 4_000_000_000), (257, 4, 1, 4_000_000_000), (258, 3, 1, 8), (259, 3, 1, 1),
               (262, 3, 1, 1), (273, 4, 1, 200), (277, 3, 1, 1), (278, 4, 1, 99_000), (279, 4, 1, 10)]  # fmt: skip
    (folder / "a.tif").write_bytes(tiff(entries, 0, bytes(100)))
    return "xray", folder / "a.tif"


def tiff_bomb(folder: Path) -> Made:
    data = zeros(800 << 20)
    entries = [(256, 4, 1, 28_000), (257, 4, 1, 28_000), (258, 3, 1, 8), (259, 3, 1, 8), (262, 3, 1, 1),
               (273, 4, 1, 122), (277, 3, 1, 1), (278, 4, 1, 28_000), (279, 4, 1, len(data))]  # fmt: skip
    (folder / "a.tif").write_bytes(tiff(entries, 0, data))
    return "xray", folder / "a.tif"


def tiff_in_a_circle(folder: Path) -> Made:
    (folder / "a.svs").write_bytes(tiff([(256, 4, 1, 100), (257, 4, 1, 100)], 8))
    return "pathology", folder / "a.svs"


def nifti_header(shape: tuple[int, ...], kind: int = 4) -> bytes:
    head = bytearray(352)
    struct.pack_into("<i", head, 0, 348)
    struct.pack_into(f"<{len(shape) + 1}h", head, 40, len(shape), *shape)
    struct.pack_into("<hh", head, 70, kind, 16)
    struct.pack_into("<8f", head, 76, *([1.0] * 8))
    struct.pack_into("<f", head, 108, 352.0)
    head[344:348] = b"n+1\0"
    return bytes(head)


def gz(path: Path, head: bytes, size: int) -> None:
    check = zlib.crc32(head)
    for _ in range(size >> 20):
        check = zlib.crc32(bytes(1 << 20), check)
    tail = struct.pack("<II", check, (len(head) + size) & 0xFFFFFFFF)
    path.write_bytes(b"\x1f\x8b\x08\0\0\0\0\0\x02\xff" + deflated(head, size) + tail)


def nifti_of_huge_size(folder: Path) -> Made:
    gz(folder / "a.nii.gz", nifti_header((32_000, 32_000, 32_000)), 1 << 20)
    return "ct", folder / "a.nii.gz"


def nifti_bomb(folder: Path) -> Made:
    gz(folder / "a.nii.gz", nifti_header((800, 800, 830)), 1 << 30)  # within the voxels allowed, all zero
    return "ct", folder / "a.nii.gz"


def nifti_of_negative_size(folder: Path) -> Made:
    gz(folder / "a.nii.gz", nifti_header((-5, 10, 10)), 1 << 20)
    return "ct", folder / "a.nii.gz"


def npz_of_huge_size(folder: Path) -> Made:
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        head, {"descr": "<i2", "fortran_order": False, "shape": (60_000, 60_000, 60_000)}
    )
    with zipfile.ZipFile(folder / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("ct.npy", head.getvalue() + bytes(1000))
    return "ct", folder / "a.npz"


def npz_with_a_pickle(folder: Path) -> Made:
    class Harm:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {folder / 'harmed'}",)

    np.savez(folder / "a.npz", ct=np.array([Harm()], dtype=object))
    return "ct", folder / "a.npz"


def _dicom(folder: Path, **changes: object) -> Path:
    import pydicom
    from pydicom.data import get_testdata_file

    dataset = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    for keyword, value in changes.items():
        setattr(dataset, keyword, value)
    dataset.save_as(folder / "a.dcm")
    return folder / "a.dcm"


def deflated_dicom_bomb(folder: Path) -> Made:
    data = _dicom(folder).read_bytes()
    at = data.index(b"1.2.840.10008.1.2.1\0")
    syntax = b"1.2.840.10008.1.2.1.99"
    length = struct.unpack("<I", data[140:144])[0]  # of the meta group
    meta = bytearray(data[: 144 + length])
    meta[at - 2 : at + 20] = struct.pack("<H", len(syntax)) + syntax
    meta[140:144] = struct.pack("<I", len(meta) - 144)
    element = struct.pack("<HH2sHI", 0x7FE0, 0x10, b"OW", 0, 3 << 30)
    (folder / "a.dcm").write_bytes(bytes(meta) + deflated(element, 3 << 30))
    return "ct", folder / "a.dcm"


def dicom_nested_deeply(folder: Path) -> Made:
    path = _dicom(folder)
    item = struct.pack("<HH2sHI", 0x0040, 0xA730, b"SQ", 0, 0xFFFFFFFF) + struct.pack(
        "<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF
    )
    ends = struct.pack("<HHI", 0xFFFE, 0xE00D, 0) + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    data = path.read_bytes()
    at = data.rindex(struct.pack("<HH", 0x7FE0, 0x10))
    path.write_bytes(data[:at] + item * 5000 + ends * 5000 + data[at:])
    return "ct", path


def dicom_of_many_frames(folder: Path) -> Made:
    return "ct", _dicom(folder, NumberOfFrames="2000000000")


def dicom_of_huge_size(folder: Path) -> Made:
    return "ct", _dicom(folder, Rows=65_535, Columns=65_535)


def _encapsulated(folder: Path, syntax: str, stream: bytes, **changes: object) -> Path:
    import pydicom
    from pydicom.data import get_testdata_file
    from pydicom.encaps import encapsulate

    dataset = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.UID(syntax)
    dataset.PixelData = encapsulate([stream])
    dataset["PixelData"].VR = "OB"
    for keyword, value in changes.items():
        setattr(dataset, keyword, value)
    dataset.save_as(folder / "a.dcm")
    return folder / "a.dcm"


def jpeg2000_of_huge_size(folder: Path) -> Made:
    size = struct.pack(">HHIIIIIIIIH", 0xFF51, 41, 0, *([0x7FFFFFFF] * 2), 0, 0, 0x7FFFFFFF, 0x7FFFFFFF, 0, 0)[:-2]
    stream = b"\xff\x4f" + size + struct.pack(">HBBB", 1, 15, 1, 1) + bytes(200)
    return "ct", _encapsulated(folder, "1.2.840.10008.1.2.4.90", stream)


def jpeg2000_of_noise(folder: Path) -> Made:
    import pydicom
    from pydicom.data import get_testdata_file
    from pydicom.encaps import generate_frames

    dataset = pydicom.dcmread(get_testdata_file("MR_small_jp2klossless.dcm"))
    stream = bytearray(next(generate_frames(dataset.PixelData, number_of_frames=1)))
    noise = np.random.default_rng(0).integers(0, 256, len(stream) - 60, dtype=np.uint8)
    stream[60:] = noise.tobytes()
    return "ct", _encapsulated(folder, "1.2.840.10008.1.2.4.90", bytes(stream), Rows=64, Columns=64)


def rle_of_lies(folder: Path) -> Made:
    stream = struct.pack("<16I", 15, *([0xFFFFFFF0] * 15)) + bytes(64)
    return "ct", _encapsulated(folder, "1.2.840.10008.1.2.5", stream)


def zip_slip(folder: Path) -> Made:
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        archive.writestr("../../slipped.dcm", b"x" * 200)
    return "ct", folder / "a.zip"


def zip_with_a_link(folder: Path) -> Made:
    link = zipfile.ZipInfo("a.dcm")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    return "ct", folder / "a.zip"


def zip_bomb(folder: Path) -> Made:
    with (
        zipfile.ZipFile(folder / "a.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("a.dcm", "w", force_zip64=True) as handle,
    ):
        for _ in range(1100):
            handle.write(bytes(1 << 20))
    return "ct", folder / "a.zip"


def zip_of_many_files(folder: Path) -> Made:
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        for number in range(20_000):
            archive.writestr(f"{number}.dcm", b"")
    return "ct", folder / "a.zip"


def link_to_a_device(folder: Path) -> Made:
    (folder / "a.png").symlink_to("/dev/zero")
    return "xray", folder / "a.png"


def pipe_without_a_writer(folder: Path) -> Made:
    os.mkfifo(folder / "a.dcm")
    return "ct", folder / "a.dcm"


def link_to_itself(folder: Path) -> Made:
    (folder / "a.png").symlink_to(folder / "a.png")
    return "xray", folder / "a.png"


LIMB_AND_CHEST = ("I", "II", "III", "V1", "V2", "V3")


def wfdb_of_endless_length(folder: Path) -> Made:
    lines = ["a 12 500 4000000000"] + [f"a.dat 16 1000/mV 16 0 0 0 0 {lead}" for lead in LIMB_AND_CHEST] * 2
    (folder / "a.hea").write_text("\n".join(lines) + "\n")
    (folder / "a.dat").write_bytes(bytes(240))
    return "ecg", folder / "a.hea"


def wfdb_that_climbs(folder: Path) -> Made:
    (folder / "inside").mkdir()
    (folder / "secret.dat").write_bytes(bytes(24_000))
    leads = ["I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6"]
    lines = ["a 12 500 1000"] + [f"../secret.dat 16 1000/mV 16 0 0 0 0 {lead}" for lead in leads]
    (folder / "inside" / "a.hea").write_text("\n".join(lines) + "\n")
    return "ecg", folder / "inside" / "a.hea"


def edf_of_many_records(folder: Path) -> Made:
    import edfio

    edfio.Edf([edfio.EdfSignal(np.zeros(100), 100, label="I", physical_range=(-1, 1))]).write(folder / "a.edf")
    data = bytearray((folder / "a.edf").read_bytes())
    data[236:244] = b"99999999"
    (folder / "a.edf").write_bytes(data)
    return "ecg", folder / "a.edf"


HOSTILE: list[Callable[[Path], Made]] = [
    png_of_huge_size, png_bomb, png_text_bomb, jpeg_of_huge_size, tiff_of_huge_size, tiff_bomb, tiff_in_a_circle,
    nifti_of_huge_size, nifti_bomb, nifti_of_negative_size, npz_of_huge_size, npz_with_a_pickle, deflated_dicom_bomb,
    dicom_nested_deeply, dicom_of_many_frames, dicom_of_huge_size, jpeg2000_of_huge_size, jpeg2000_of_noise,
    rle_of_lies, zip_slip, zip_with_a_link, zip_bomb, zip_of_many_files, link_to_a_device, pipe_without_a_writer,
    link_to_itself, wfdb_of_endless_length, wfdb_that_climbs, edf_of_many_records,
]  # fmt: skip
HARMLESS = {"png_text_bomb", "nifti_bomb", "edf_of_many_records", "jpeg2000_of_noise"}  # may be read instead, in budget


@pytest.fixture(scope="module")
def readers() -> Iterator[None]:
    """Workers with a small memory budget."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, f"memory={BUDGET} seconds=10")
        patch.setattr(isolation, "LIMITS", from_environment(f"memory={BUDGET} seconds=10"))
        patch.setattr(isolation, "_pool", None)
        yield
        if isolation._pool is not None:
            isolation._pool.close()


@contextlib.contextmanager
def watched() -> Iterator[list[int]]:
    """The largest resident memory of this process and of each child meanwhile."""
    me, peak, done = psutil.Process(), [0], threading.Event()

    def sample() -> None:
        while not done.wait(0.01):
            for process in [me, *me.children(recursive=True)]:
                with contextlib.suppress(psutil.Error):
                    peak[0] = max(peak[0], process.memory_info().rss)

    watcher = threading.Thread(target=sample)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()


@pytest.mark.parametrize("make", HOSTILE, ids=lambda make: make.__name__)
def test_hostile_files_cost_one_error(
    make: Callable[[Path], Made], tmp_path: Path, readers: None, make_picture
) -> None:
    (tmp_path / "in").mkdir()
    modality, path = make(tmp_path / "in")
    good = make_picture(tmp_path / "good.png", "xray")
    modalities.read("xray", good)
    before = psutil.Process().memory_info().rss
    start = time.monotonic()
    with watched() as peak:
        try:
            sample = modalities.read(modality, path)
        except ReadError as error:
            assert error.reason and "not readable" not in error.reason
        else:
            assert make.__name__ in HARMLESS, f"read as {sample.array.shape} {sample.warnings}"
    assert time.monotonic() - start < 12
    assert peak[0] < max(before, 300_000_000) + BUDGET + 200_000_000
    assert not (tmp_path / "slipped.dcm").exists() and not (tmp_path / "in" / "harmed").exists()
    assert modalities.read("xray", good).array.ndim == 2
