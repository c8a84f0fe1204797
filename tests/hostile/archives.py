"""Hostile archives: zip, tar and gzip files with outside paths, unlimited growth, or false headers.

* `items`: each of them under `check`, and also under `encode` if `encode` is given.
"""

import gzip
import io
import lzma
import os
import random
import stat
import struct
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pydicom.data import get_testdata_file

from hostile.audit import Action

Make = Callable[[Path], object]
GOOD = Path(str(get_testdata_file("CT_small.dcm"))).read_bytes()
ZEROS = bytes(1 << 20)
BIG = 1 << 40


# --- zip --------------------------------------------------------------------------------------------------------------


def zipped(*names: str, mode: int = 0, flags: int = 0, data: bytes = GOOD) -> Make:
    """A zip whose members have some names, kinds of file and flags."""

    def make(path: Path) -> None:
        with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("good.dcm", GOOD)
            for name in names:
                info = zipfile.ZipInfo("x")
                info.filename, info.external_attr = name, mode << 16
                info.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(info, data)
        if flags:
            _flag(path, flags)

    return make


def _flag(path: Path, flags: int) -> None:
    """Set flags of the last member, in both of its headers."""
    data = bytearray(path.read_bytes())
    for mark, at in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        where = data.rfind(mark)
        (old,) = struct.unpack_from("<H", data, where + at)
        struct.pack_into("<H", data, where + at, old | flags)
    path.write_bytes(bytes(data))


def patched(make: Make, *changes: tuple[bytes, int, bytes]) -> Make:
    """Bytes at some distance of the last occurrence of a mark replaced."""

    def change(path: Path) -> None:
        make(path)
        data = bytearray(path.read_bytes())
        for mark, at, value in changes:
            where = data.rfind(mark) + at
            data[where : where + len(value)] = value
        path.write_bytes(bytes(data))

    return change


def renamed(name: bytes) -> Make:
    """A member whose name is any bytes of the length of "x.dcm"."""

    def make(path: Path) -> None:
        zipped("abcde.dcm")(path)
        path.write_bytes(path.read_bytes().replace(b"abcde.dcm", name.ljust(9, b"m")[:9]))

    return make


def zeros(count: int) -> bytes:
    """Deflated zeros, 16 MB times `count`, of which only the first are deflated here."""
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -15)
    one = squeeze.compress(ZEROS * 16) + squeeze.flush(zlib.Z_FULL_FLUSH)
    return one * count + zlib.compressobj(9, zlib.DEFLATED, -15).flush()


def bomb(path: Path) -> None:
    """Four gigabytes of zeros in a few megabytes."""
    packed = zeros(256)
    raw_zip(path, [("a.dcm", packed, 4 << 30, len(packed))])


def raw_zip(path: Path, members: list[tuple[str, bytes, int, int]], repeat: int = 1, shared: bool = False) -> None:
    """A zip of (name, deflated bytes, declared size, declared packed size), all of it `repeat` times.

    `shared`: every entry after the first is the first one's bytes.
    """
    out, directory = bytearray(), bytearray()
    for name, packed, size, length in members:
        label, low = name.encode(), min(size, 0xFFFFFFFE)
        for _ in range(1 if shared else repeat):
            at = len(out)
            out += struct.pack("<4s5H3I2H", b"PK\3\4", 20, 0, 8, 0, 33, 0, length, low, len(label), 0) + label + packed
            entry = (b"PK\1\2", 20, 20, 0, 8, 0, 33, 0, length, low, len(label), 0, 0, 0, 0, 0, at)
            directory += struct.pack("<4s6H3I5H2I", *entry) + label
    if shared:
        directory *= repeat
    count = len(members) * repeat & 0xFFFF
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, count, count, len(directory), len(out), 0)
    path.write_bytes(bytes(out + directory) + end)


def deflated(data: bytes) -> bytes:
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -15)
    return squeeze.compress(data) + squeeze.flush()


def overlapping(path: Path) -> None:
    """Two thousand entries that are one and the same megabyte, and another that quotes it."""
    packed = deflated(ZEROS)
    raw_zip(path, [("a.dcm", packed, len(ZEROS), len(packed))], repeat=2000, shared=True)


def nested(path: Path) -> None:
    """A zip of zips of zips of zeros."""
    data, name = deflated(bytes(1 << 24)), "0.dcm"
    for level in range(4):
        raw_zip(path, [(name, data, 1 << 24, len(data))], repeat=16)
        data, name = deflated(path.read_bytes()), f"{level}.zip"
    path.with_name("inner").unlink(missing_ok=True)


def many(path: Path) -> None:
    """A million entries of nothing."""
    raw_zip(path, [("a.dcm", b"\3\0", 0, 2)], repeat=1_000_000, shared=True)


def zip64(size: int) -> Make:
    """A member whose true size stands in a zip64 field, and is a lie."""

    def make(path: Path) -> None:
        name, packed = b"a.dcm", deflated(GOOD)
        extra = struct.pack("<2H2Q", 1, 16, size, size)
        local = (b"PK\3\4", 45, 0, 8, 0, 33, 0, 0xFFFFFFFF, 0xFFFFFFFF, len(name), len(extra))
        data = struct.pack("<4s5H3I2H", *local) + name + extra + packed
        entry = (b"PK\1\2", 45, 45, 0, 8, 0, 33, 0, 0xFFFFFFFF, 0xFFFFFFFF, len(name), len(extra), 0, 0, 0, 0, 0)
        entries = struct.pack("<4s6H3I5H2I", *entry) + name + extra
        tail = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 1, 1, len(entries), len(data), 0)
        path.write_bytes(data + entries + tail)

    return make


def two_ends(path: Path) -> None:
    """The comment of a zip is another end of it."""
    zipped()(path)
    data = path.read_bytes()
    end = data.rfind(b"PK\5\6")
    inner = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 60_000, 60_000, 0xFFFFFF, 0, 0)
    path.write_bytes(data[: end + 20] + struct.pack("<H", len(inner)) + inner)


def other_method(method: int) -> Make:
    def make(path: Path) -> None:
        with zipfile.ZipFile(path, "w", method) as archive:
            archive.writestr("a.dcm", ZEROS * 64)

    return make


ZIPS: dict[str, Make] = {
    "name with ..": zipped("../../../evil.dcm"),
    "absolute name": zipped("/tmp/evil.dcm"),
    "name of a drive": zipped("C:\\evil.dcm"),
    "backslashes and ..": zipped("a\\..\\..\\evil.dcm"),
    "a link": zipped("link.dcm", mode=stat.S_IFLNK | 0o777, data=b"/etc/passwd"),
    "a device": zipped("zero.dcm", mode=stat.S_IFCHR | 0o666),
    "a pipe": zipped("pipe.dcm", mode=stat.S_IFIFO | 0o666),
    "encrypted": zipped("secret.dcm", flags=1),
    "name with NUL": renamed(b"a\0../b.dcm"),
    "name with a newline": zipped("a\nb\x1b[31m.dcm"),
    "name not UTF-8": renamed(b"\xff\xfe\xe9.dcm"),
    "name not UTF-8 that says it is": patched(renamed(b"\xff\xfe\xe9.dcm"), (b"PK\1\2", 8, b"\0\x08")),
    "name of 60,000 letters": zipped("a" * 60_000 + ".dcm"),
    "name of dots": zipped("."),
    "names of deep folders": zipped("/".join(["d"] * 20_000) + "/a.dcm"),
    "two of one name": zipped("good.dcm", "good.dcm"),
    "a bomb": bomb,
    "entries that overlap": overlapping,
    "zips in zips": nested,
    "a million entries": many,
    "sizes of exabytes": zip64(1 << 62),
    "sizes below zero": zip64((1 << 64) - 1),
    "declares less than it holds": patched(zipped("a.dcm", data=ZEROS * 4), (b"PK\1\2", 24, b"\x0a\0\0\0")),
    "declares a descriptor": patched(zipped("a.dcm", flags=8), (b"PK\1\2", 24, b"\xff\xff\xff\x7f")),
    "a directory beyond the end": patched(zipped(), (b"PK\5\6", 16, b"\xf0\xff\xff\x7f")),
    "a directory of four gigabytes": patched(zipped(), (b"PK\5\6", 12, b"\xff\xff\xff\xff")),
    "two ends": two_ends,
    "another method": other_method(zipfile.ZIP_LZMA),
    "bzip2": other_method(zipfile.ZIP_BZIP2),
    "a method that is none": patched(zipped("a.dcm"), (b"PK\1\2", 10, b"\x63\0")),
    "another local name": patched(zipped("abc.dcm"), (b"PK\3\4", 30, b"../")),
    "nothing": lambda path: raw_zip(path, []),
    "only an end": lambda path: path.write_bytes(b"PK\5\6"),
    "noise": lambda path: path.write_bytes(b"PK\3\4" + random.Random(0).randbytes(5000)),
}  # fmt: skip


# --- tar --------------------------------------------------------------------------------------------------------------


def tarred(*members: tuple[str, bytes, str, int], mode: Any = "w") -> Make:
    """A tar of (name, kind, where a link leads, declared size)."""

    def make(path: Path) -> None:
        with tarfile.open(path, mode, format=tarfile.GNU_FORMAT) as archive:
            _add(archive, "good.dcm", GOOD)
            for name, kind, to, size in members:
                info = tarfile.TarInfo(name)
                info.type, info.linkname, info.size = kind, to, size
                archive.addfile(info, io.BytesIO(GOOD[:size]) if 0 < size <= len(GOOD) else None)

    return make


def _add(archive: tarfile.TarFile, name: str, data: bytes, **headers: str) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.pax_headers = len(data), headers
    archive.addfile(info, io.BytesIO(data))


def pax(**headers: str) -> Make:
    """A member with headers of its own."""

    def make(path: Path) -> None:
        with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
            _add(archive, "a.dcm", GOOD, **{name.replace("_", "."): value for name, value in headers.items()})

    return make


def header(**fields: bytes) -> bytes:
    """A header of 512 bytes with its sum."""
    places = {"name": 0, "size": 124, "type": 156, "link": 157, "magic": 257, "sparse": 386, "real": 483}
    block = bytearray(512)
    block[100:108], block[136:148], block[148:156] = b"0000644\0", b"00000000000\0", b" " * 8
    for name, value in ({"magic": b"ustar  \0"} | fields).items():
        block[places[name] : places[name] + len(value)] = value
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def blocks(*parts: bytes) -> Make:
    return lambda path: path.write_bytes(b"".join(parts) + bytes(1024))


def many_in_tar(path: Path) -> None:
    """A million empty files, in a few kilobytes."""
    one = header(name=b"a.dcm", size=b"00000000000\0", type=b"0") * 1000
    path.write_bytes(gzip.compress(one) * 1000)


def packed_zeros(packed: Callable[[bytes], bytes]) -> Make:
    """A tar that says a gigabyte of zeros, packed in pieces."""

    def make(path: Path) -> None:
        path.write_bytes(packed(header(name=b"a.dcm", size=b"10000000000\0", type=b"0")) + packed(ZEROS * 16) * 20)

    return make


SPARSE = b"000000000000000000000001"
PLAIN, OCTAL_GB, GNU_LONG = b"0", b"10000000000\0", b"L"
TARS: dict[str, Make] = {
    "name with ..": tarred(("../../evil.dcm", tarfile.REGTYPE, "", 100)),
    "absolute name": tarred(("/tmp/evil.dcm", tarfile.REGTYPE, "", 100)),
    "a link and a file through it": tarred(("d", tarfile.SYMTYPE, "/tmp", 0), ("d/e.dcm", tarfile.REGTYPE, "", 100)),
    "a link to a secret": tarred(("a.dcm", tarfile.SYMTYPE, "/etc/passwd", 0)),
    "a hard link to a secret": tarred(("a.dcm", tarfile.LNKTYPE, "/etc/passwd", 0)),
    "a hard link to itself": tarred(("a.dcm", tarfile.LNKTYPE, "a.dcm", 0)),
    "a device": tarred(("zero.dcm", tarfile.CHRTYPE, "", 0)),
    "a disk": tarred(("disk.dcm", tarfile.BLKTYPE, "", 0)),
    "a pipe": tarred(("pipe.dcm", tarfile.FIFOTYPE, "", 0)),
    "two of one name": tarred(("good.dcm", tarfile.REGTYPE, "", 100)),
    "name with a newline": tarred(("a\nb.dcm", tarfile.REGTYPE, "", 100)),
    "name not UTF-8": tarred(("a\udcff.dcm", tarfile.REGTYPE, "", 100)),
    "name of 60,000 letters": tarred(("a" * 60_000, tarfile.REGTYPE, "", 100)),
    "a size that is a lie": pax(size=str(BIG)),
    "a size below zero": pax(size="-5"),
    "a size of letters": pax(size="many"),
    "a path elsewhere": pax(path="/etc/cron.d/evil"),
    "a name with NUL": pax(path="a\0/../b.dcm"),
    "a time of another world": pax(mtime="1e400"),
    "sparse of a terabyte": pax(GNU_sparse_major="1", GNU_sparse_minor="0", GNU_sparse_realsize=str(BIG)),
    "sparse with a map of letters": pax(GNU_sparse_map="0,x,5", GNU_sparse_size="100"),
    "sparse by an old header": blocks(
        header(name=b"a.dcm", size=b"00000001000\0", type=b"S", sparse=SPARSE, real=b"77777777777\0"), bytes(512)
    ),
    "sparse headers without end": blocks(
        header(name=b"a.dcm", size=b"00000001000\0", type=b"S", sparse=SPARSE + b"\1" * 72, real=b"00000001000\0"),
        (SPARSE * 21).ljust(504, b"1")[:504] + b"\1" * 8,
    ),
    "a size in base 256": blocks(header(name=b"a.dcm", size=b"\x80" + b"\x7f" * 11, type=PLAIN), GOOD),
    "a size in base 256 below zero": blocks(header(name=b"a.dcm", size=b"\xff" * 12, type=PLAIN), GOOD),
    "a name of a gigabyte": blocks(header(name=b"././@LongLink", size=OCTAL_GB, type=GNU_LONG), GOOD),
    "names of names": blocks(*[header(name=b"././@LongLink", size=b"00000000001\0", type=GNU_LONG), bytes(512)] * 3000),
    "headers of a gigabyte": blocks(header(name=b"x", size=OCTAL_GB, type=b"x"), GOOD),
    "headers of wrong lengths": blocks(header(name=b"x", size=b"00000001000\0", type=b"x"), b"99999 path=".ljust(512)),
    "a sum that is wrong": blocks(header(name=b"a.dcm", size=b"00000000100\0", type=PLAIN).replace(b"dcm", b"exe")),
    "noise": lambda path: path.write_bytes(random.Random(0).randbytes(9000)),
    "nothing": lambda path: path.write_bytes(b""),
    "a bomb of xz": packed_zeros(lambda data: lzma.compress(data, preset=1)),
}  # fmt: skip


def _cut(make: Make, part: float) -> Make:
    def change(path: Path) -> None:
        make(path)
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * part)])

    return change


# --- gzip -------------------------------------------------------------------------------------------------------------


def gzipped(data: bytes, times: int = 1, name: str = "") -> Make:
    """The same data a number of times, each a member of its own."""

    def make(path: Path) -> None:
        out = io.BytesIO()
        with gzip.GzipFile(name, "wb", 6, out, 0) as member:
            member.write(data)
        path.write_bytes(out.getvalue() * times)

    return make


NIFTI = struct.pack("<i", 348) + bytes(36) + struct.pack("<8h", 3, 20000, 20000, 20000, 1, 1, 1, 1) + bytes(14)
NIFTI += struct.pack("<2h", 16, 32) + bytes(32) + struct.pack("<f", 352) + bytes(232) + b"n+1\0" + bytes(4)
GZIPS: dict[str, Make] = {
    "volume.nii.gz": gzipped(NIFTI + ZEROS, 1),
    "zeros.nii.gz": gzipped(ZEROS * 16, 90),
    "elsewhere.nii.gz": gzipped(NIFTI, 1, "../../evil.nii"),
    "members.nii.gz": lambda path: path.write_bytes(gzip.compress(b"x") * 30_000),
    "cut.nii.gz": _cut(gzipped(random.Random(0).randbytes(9000)), 0.5),
    "flags.nii.gz": lambda path: path.write_bytes(b"\x1f\x8b\x08\xff" + b"a" * 4000),
    "bomb.tar.gz": packed_zeros(gzip.compress),
    "entries.tar.gz": many_in_tar,
    "cut.tgz": _cut(gzipped(GOOD * 4), 0.6),
    "signals.csv.gz": gzipped(b"1,2,3\n" * (2 << 20), 20),
    "rows.csv.gz": gzipped(b"\n" * (16 << 20), 75),
    "name.7z": lambda path: path.write_bytes(b"7z\xbc\xaf\x27\x1c" + bytes(500)),
    "name.rar": lambda path: path.write_bytes(b"Rar!\x1a\7\0" + bytes(500)),
}


# --- all --------------------------------------------------------------------------------------------------------------


def made(folder: Path) -> Iterator[tuple[str, Path]]:
    """Every archive, in a folder of its own."""
    kinds = {"zip": ZIPS | {"cut": _cut(zipped("b.dcm"), 0.5)}, "tar": TARS | {"cut": _cut(tarred(), 0.5)}}
    for ending, makers in kinds.items():
        for number, (name, make) in enumerate(makers.items()):
            path = folder / f"{ending}{number}" / f"a.{ending}"
            path.parent.mkdir(parents=True)
            make(path)
            yield f"{ending}: {name}", path
    for name, make in GZIPS.items():
        path = folder / f"of {name}" / name
        path.parent.mkdir(parents=True)
        make(path)
        yield f"gzip: {name}", path
    folder = folder / "plain"
    folder.mkdir()
    os.mkfifo(folder / "pipe.zip")
    (folder / "zero.zip").symlink_to("/dev/zero")
    (folder / "loop.zip").symlink_to(folder / "loop.zip")
    with open(folder / "sparse.zip", "wb") as file:
        file.truncate(BIG)
    (folder / "folder.zip").mkdir()
    for path in sorted(folder.iterdir()):
        yield f"no archive: {path.name}", path


def items(folder: Path, space: Path | None = None) -> Iterator[Action]:
    """`check` of every archive; of a `space` of the tests' tiny model `encode` as well."""
    for name, path in made(folder):
        private = [Path("/etc/passwd")]
        yield Action(f"{name}: check", command=["check", str(path)], private=private)
        if space is not None:
            out = path.parent / "encoded"
            words = ["encode", str(path), "--space", str(space), "--out", str(out), "--modality", "ct"]
            writes = [out, out.with_name("encoded.parts"), out.with_name(".encoded")]
            yield Action(f"{name}: encode", call="hostile.folders:command", args=words, private=private, writes=writes)
