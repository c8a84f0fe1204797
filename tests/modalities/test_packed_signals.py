"""ECG records in archives with all their files; compared with wfdb or the unpacked file."""

import gzip
import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tests.modalities.test_signals import aecg, beats, header, write_edf, write_record

from m3bind.errors import ReadError
from m3bind.modalities import get
from m3bind.modalities.formats.detect import recognise
from m3bind.modalities.formats.files import files_below

Pack = Callable[[Path, list[tuple[str, bytes]]], Path]


def as_zip(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with zipfile.ZipFile(path.with_name(f"{path.name}.zip"), "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return path.with_name(f"{path.name}.zip")


def as_tar(path: Path, members: list[tuple[str, bytes]], ending: str = ".tar") -> Path:
    with tarfile.open(path.with_name(path.name + ending), "w:gz" if ending != ".tar" else "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path.with_name(path.name + ending)


def as_tgz(path: Path, members: list[tuple[str, bytes]]) -> Path:
    return as_tar(path, members, ".tgz")


def as_tar_gz(path: Path, members: list[tuple[str, bytes]]) -> Path:
    return as_tar(path, members, ".tar.gz")


def record(folder: Path, name: str = "a", files: int = 1) -> list[tuple[str, bytes]]:
    """A record whose signals lie in `files` files, as members of an archive."""
    lines = header(3000, file=f"{name}.dat", first=f"{name} 12 500 {{}}")
    parts = np.array_split(np.arange(12), files)
    found = []
    for k, rows in enumerate(parts):
        file = f"{name}{k or ''}.dat"
        for row in rows:
            lines[1 + row] = lines[1 + row].replace(f"{name}.dat", file)
        found.append((file, np.rint(beats()[rows] * 1000).T.astype("<i2").tobytes()))
    return [(f"{name}.hea", "\n".join(lines).encode()), *found]


LITTER = [
    ("__MACOSX/._a.hea", b"\0\5\x16\7"), (".DS_Store", b"x"), ("Thumbs.db", b"x"), ("._a.dat", b"x"),
    ("a.atr", b"\0\0"), ("RECORDS", b"a\n"), ("report.pdf", b"%PDF-1.4"),
]  # fmt: skip
PLACES = {"top": "", "folder": "study/", "deep": "a b/\u00fc/c/", "dot": "./", "windows": "study\\"}


@pytest.mark.parametrize("pack", [as_zip, as_tar, as_tgz, as_tar_gz])
@pytest.mark.parametrize("files", [1, 3])
@pytest.mark.parametrize("place", PLACES)
def test_a_record_with_its_files(tmp_path: Path, pack: Pack, files: int, place: str) -> None:
    members = [(PLACES[place] + name, data) for name, data in record(tmp_path, files=files)]
    path = pack(tmp_path / "x", LITTER[:3] + members + LITTER[3:])
    sample = get("ecg").read(path)
    assert np.array_equal(sample.array, np.float32(np.rint(beats() * 1000) / 1000)) and sample.warnings == []
    assert recognise(path).modality == "ecg"


def test_other_records_in_archives(tmp_path: Path) -> None:
    edf = write_edf(tmp_path / "e.edf").read_bytes()
    xml = aecg(beats()).encode()
    for name, data in (("e.edf", edf), ("x.xml", xml)):
        (tmp_path / name).write_bytes(data)
        expected = get("ecg").read(tmp_path / name).array
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(data))
        for path in (as_zip(tmp_path / name, [(name, data), ("readme.txt", b"x")]), tmp_path / f"{name}.gz"):
            assert np.array_equal(get("ecg").read(path).array, expected)


def test_segments_are_one_record(tmp_path: Path) -> None:
    members = [("r.hea", b"r/2 12 500 6000\na 3000\nb 3000\n"), *record(tmp_path, "a"), *record(tmp_path, "b")]
    assert get("ecg").read(as_zip(tmp_path / "x", members)).array.shape == (12, 6000)


@pytest.mark.parametrize("pack", [as_zip, as_tar])
def test_several_records_are_named(tmp_path: Path, pack: Pack) -> None:
    one, other = record(tmp_path, "a"), record(tmp_path, "b")
    for members, said in (
        (one + other, r"2 ECG records in it \(a.hea, b.hea\)"),
        ([(f"{k}/{name}", data) for k in "12" for name, data in one], r"2 ECG records in it \(a.hea, a.hea\)"),
        ([*one, ("e.edf", write_edf(tmp_path / "e.edf").read_bytes())], r"2 ECG records in it \(a.hea, e.edf\)"),
        (one[:1], "a signal file named by the header is missing"),
        (record(tmp_path, files=3)[:3], r"a signal file \(3 of 3\) named by the header is missing"),
        (one[1:], "no WFDB header"),
        ([("in.zip", b"PK"), ("readme.txt", b"x")], "no ECG record in it; 1 archives inside it were not opened"),
        ([*one, one[1]], "two members of the same name|not a readable"),
        ([*one, ("../x.dat", b"x")], "leads out of the archive"),
    ):
        with pytest.raises(ReadError, match=said):
            get("ecg").read(pack(tmp_path / "x", members))
    with pytest.raises(ReadError, match=r"as ct: no CT slice.*as ecg: 2 ECG records"):
        recognise(as_zip(tmp_path / "x", one + other))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_in_a_tar_are_refused(tmp_path: Path, kind: bytes) -> None:
    info = tarfile.TarInfo("a.dat")
    info.type, info.linkname = kind, "/etc/passwd"
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.addfile(info)
    with pytest.raises(ReadError, match="link or a device"):
        get("ecg").read(tmp_path / "a.tar")


@pytest.mark.parametrize("pack", [as_tar, as_tgz])
def test_a_tar_cut_short(tmp_path: Path, pack: Pack) -> None:
    path = pack(tmp_path / "x", record(tmp_path))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ReadError, match="not a readable tar: damaged or cut short"):
        get("ecg").read(path)


def test_the_first_bytes_count_not_the_ending(tmp_path: Path) -> None:
    tgz, packed = as_tgz(tmp_path / "x", record(tmp_path)), as_zip(tmp_path / "x", record(tmp_path))
    for source, name in ((tgz, "t.zip"), (packed, "z.tar"), (packed, "z.tgz")):
        (tmp_path / name).write_bytes(source.read_bytes())
        assert get("ecg").read(tmp_path / name).array.shape == (12, 3000)


@pytest.mark.parametrize("ending", ["7z", "rar", "tar.bz2", "tar.xz"])
def test_other_archives_are_named(tmp_path: Path, ending: str) -> None:
    (tmp_path / f"a.{ending}").write_bytes(b"7z")
    with pytest.raises(ReadError, match=r"an archive of that kind, which is not read; pack it as \.zip"):
        get("ecg").read(tmp_path / f"a.{ending}")


def test_a_nifti_pair_in_an_archive_has_a_reason_of_its_own(tmp_path: Path) -> None:
    for members in ([("v.hdr", bytes(348)), ("v.img", bytes(100))], [("v.img", bytes(100))]):
        with pytest.raises(ReadError, match="a volume in two files"):
            get("ct").read(as_zip(tmp_path / "x", members))


def test_files_that_a_header_names_are_no_records_of_their_own(tmp_path: Path) -> None:
    for name, data in record(tmp_path, files=3) + record(tmp_path, "b"):
        (tmp_path / name).write_bytes(data)
    assert [path.name for path in files_below(tmp_path, ["ecg"])] == ["a.hea", "b.hea"]


@pytest.mark.parametrize("names", [("A.HEA", "A.DAT"), ("a.hea", "A.DAT"), ("A.hea", "a.Dat")])
def test_names_in_capitals_as_discs_have_them(tmp_path: Path, names: tuple[str, str]) -> None:
    path = write_record(tmp_path, header(3000), beats())
    path.with_name("a.hea").rename(tmp_path / names[0])
    path.with_name("a.dat").rename(tmp_path / names[1])
    assert [path.name for path in files_below(tmp_path, ["ecg"])] == [names[0]]
    assert np.allclose(get("ecg").read(tmp_path / names[0]).array, beats(), atol=1e-3)
