"""Zip archives: unpacked within limits, never outside the folder, and with no leftovers."""

import io
import os
import stat
import struct
import tempfile
import time
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import pytest

from m3bind.errors import ReadError
from m3bind.modalities import get
from m3bind.modalities.formats import archive as _archive
from m3bind.modalities.formats.limits import Limits


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary folder of this test alone, so that what is left behind can be seen."""
    folder = tmp_path / "unpacked"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def pack(path: Path, members: dict[str, bytes], **options: int) -> Path:
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def refused(path: Path, match: str, limits: Limits | None = None) -> None:
    with pytest.raises(ReadError, match=match), _archive.extracted(path, limits):
        raise AssertionError("it was unpacked")


def test_files_are_unpacked_and_the_folder_is_removed(tmp_path: Path, own_folder: Path) -> None:
    members = {"Doe^John/a.dcm": b"one", "x/y/b.nii.gz": b"two", "folder/": b"", "c": b"three", "d.zip": b"PK"}
    with _archive.extracted(pack(tmp_path / "a.zip", members)) as (folder, nested):
        assert nested == 1
        assert sorted((p.name, p.read_bytes()) for p in folder.iterdir()) == [
            ("000000.dcm", b"one"),
            ("000001.nii.gz", b"two"),
            ("000002", b"three"),
        ]
    assert not list(own_folder.iterdir())
    with pytest.raises(KeyError), _archive.extracted(tmp_path / "a.zip"):
        raise KeyError
    assert not list(own_folder.iterdir())


@pytest.mark.parametrize("name", ["/etc/a", "../a", "x/../../a", "..\\a", "C:\\a", "c:/a", "\\a"])
def test_names_that_lead_outside_are_refused(tmp_path: Path, own_folder: Path, name: str) -> None:
    refused(pack(tmp_path / "a.zip", {"good.dcm": b"x", name: b"x"}), "leads out of the archive")
    assert not list(own_folder.iterdir())


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK])
def test_links_and_devices_are_refused(tmp_path: Path, kind: int) -> None:
    info = zipfile.ZipInfo("a.dcm")
    info.external_attr = (kind | 0o644) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(info, "/etc/passwd")
    refused(tmp_path / "a.zip", "link or a device")


def test_encrypted_members_are_refused(tmp_path: Path) -> None:
    data = bytearray(pack(tmp_path / "a.zip", {"a": b"secret"}).read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "a.zip").write_bytes(bytes(data))
    refused(tmp_path / "a.zip", "encrypted")


def test_other_compression_is_refused(tmp_path: Path) -> None:
    path = pack(tmp_path / "a.zip", {"a": b"0" * 1000}, compression=zipfile.ZIP_BZIP2)
    refused(path, "compression method 12")


def test_too_many_files_or_bytes_are_refused(tmp_path: Path, own_folder: Path) -> None:
    path = pack(tmp_path / "a.zip", {str(k): b"12345678" for k in range(10)})
    refused(path, "10 files, more than 9", Limits(files=9))
    stored = path.stat().st_size
    with _archive.extracted(path, Limits(bytes=stored)):
        pass
    refused(path, "more than", Limits(bytes=stored - 1))
    many = pack(tmp_path / "b.zip", {"a": bytes(100_000)}, compression=zipfile.ZIP_DEFLATED)
    refused(many, "100,000 bytes unpacked, more than 99,999", Limits(bytes=99_999))
    refused(many, "declares 100,000 bytes", Limits(ratio=10))
    assert not list(own_folder.iterdir())


def test_an_archive_that_unpacks_to_far_more_than_files_do_is_refused_from_a_size_on(
    tmp_path: Path, own_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = pack(tmp_path / "a.zip", {"a": bytes(3_000_000)}, compression=zipfile.ZIP_DEFLATED)
    with _archive.extracted(many):
        pass
    monkeypatch.setattr(_archive, "_ALWAYS", 2_000_000)
    refused(many, "3,000,000 bytes unpacked, more than 200 times its size")
    with _archive.extracted(many, Limits(packing=1_050)):
        pass
    assert not list(own_folder.iterdir())


def test_overlapping_members_are_stopped_by_what_was_unpacked(tmp_path: Path, own_folder: Path) -> None:
    """Many entries of the directory point at the same compressed bytes: each may be sound, together they are a bomb."""
    single = pack(tmp_path / "one.zip", {"a": bytes(1_000_000)}, compression=zipfile.ZIP_DEFLATED).read_bytes()
    start = single.index(b"PK\x01\x02")
    end = single.index(b"PK\x05\x06")
    directory = single[start:end] * 50
    tail = bytearray(single[end:])
    struct.pack_into("<HHLL", tail, 8, 50, 50, len(directory), start)
    (tmp_path / "bomb.zip").write_bytes(single[:start] + directory + bytes(tail))
    with zipfile.ZipFile(tmp_path / "bomb.zip") as archive:
        assert len(archive.infolist()) == 50
    refused(tmp_path / "bomb.zip", "bytes of content|not a readable zip|more bytes")
    assert not list(own_folder.iterdir())


def test_bytes_are_counted_while_unpacking_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the directory declares is not believed: with that check away, the count while unpacking still stops it."""
    monkeypatch.setattr(_archive, "_check_declared", lambda *_: None)
    path = pack(tmp_path / "a.zip", {"a": bytes(3_000_000)}, compression=zipfile.ZIP_DEFLATED)
    refused(path, "unpacks to more bytes", Limits(bytes=2_000_000))
    refused(path, "unpacks to more bytes", Limits(ratio=100))


def test_a_member_that_declares_fewer_bytes_than_it_holds(tmp_path: Path) -> None:
    data = bytearray(pack(tmp_path / "a.zip", {"a": bytes(500_000)}, compression=zipfile.ZIP_DEFLATED).read_bytes())
    for place in (data.index(b"PK\x03\x04") + 22, data.index(b"PK\x01\x02") + 24):
        struct.pack_into("<L", data, place, 10)
    (tmp_path / "a.zip").write_bytes(bytes(data))
    refused(tmp_path / "a.zip", "not a readable zip")


def test_damaged_archives_are_refused(tmp_path: Path, own_folder: Path) -> None:
    whole = pack(tmp_path / "a.zip", {"a": os.urandom(5000)}, compression=zipfile.ZIP_DEFLATED).read_bytes()
    for damaged in (b"PK", whole[:3000], whole[:100] + b"\xff" * 50 + whole[150:], whole[:-8], b"\x1f\x8b" + whole):
        (tmp_path / "cut.zip").write_bytes(damaged)
        if damaged.startswith(b"\x1f\x8b"):  # a zip may follow other bytes; its content must then be complete
            with _archive.extracted(tmp_path / "cut.zip") as (folder, _):
                assert (folder / "000000").stat().st_size == 5000
        else:
            refused(tmp_path / "cut.zip", "not a readable zip")
    buffer = io.BytesIO()
    zipfile.ZipFile(buffer, "w").close()
    (tmp_path / "none.zip").write_bytes(buffer.getvalue())
    refused(tmp_path / "none.zip", "declares 0 files")
    assert not list(own_folder.iterdir())


def test_folders_of_killed_readers_are_removed(tmp_path: Path, own_folder: Path) -> None:
    path = pack(tmp_path / "a.zip", {"a": b"x"})
    dead, living, fresh = (
        own_folder / f"{_archive._PREFIX}{who}" for who in ("999999999-a", f"{os.getpid()}-b", "999999999-c")
    )
    for folder in (dead, living, fresh):
        folder.mkdir()
    long_ago = time.time() - 2 * _archive._STALE
    os.utime(dead, (long_ago, long_ago))
    os.utime(living, (long_ago, long_ago))
    with _archive.extracted(path):
        pass
    assert not dead.exists() and living.exists() and fresh.exists()


LITTER = ("__MACOSX/._scan.nii.gz", "__MACOSX/study/._scan.nii.gz", "._scan.nii.gz", "study/._b.dcm", ".DS_Store",
          "study/.DS_Store", "Thumbs.db", "study/THUMBS.DB", "desktop.ini")  # fmt: skip


@pytest.mark.parametrize("place", ["", "study/", "a study/of/Doe^John/"])
def test_litter_of_file_managers_is_left_out(tmp_path: Path, place: str) -> None:
    values = np.random.default_rng(0).integers(-1000, 400, (12, 12, 8)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "scan.nii.gz")
    expected = get("ct").read(tmp_path / "scan.nii.gz").array
    members = dict.fromkeys(LITTER, b"\x00\x05\x16\x07junk") | {
        f"{place}scan.nii.gz": (tmp_path / "scan.nii.gz").read_bytes()
    }
    for order in (members, dict(reversed(members.items()))):
        sample = get("ct").read(pack(tmp_path / "a.zip", order))
        assert np.array_equal(sample.array, expected) and "unpacked 1 files" in sample.steps
    with _archive.extracted(pack(tmp_path / "b.zip", {"__MACOSX.dcm": b"x", "my._file": b"y", **members})) as (
        folder,
        _,
    ):
        assert len(list(folder.iterdir())) == 3  # names that only look like it


def test_a_zip_with_too_long_a_directory_is_refused_before_it_is_read(tmp_path, monkeypatch):
    from m3bind.modalities.formats import archive as _archive
    from m3bind.modalities.formats import limits as _limits

    with zipfile.ZipFile(tmp_path / "many.zip", "w") as archive:
        for number in range(3000):
            archive.writestr(f"{number:06d}" + "n" * 200, b"")
    limits = _limits.Limits(files=100)
    monkeypatch.setattr(zipfile, "ZipFile", None)  # nothing of the list is taken in
    with pytest.raises(ReadError, match="its list of files takes"):
        _archive._check_directory(tmp_path / "many.zip", limits)
