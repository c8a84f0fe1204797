"""Archives of a study: a zip or tar (also .tar.gz) is unpacked into a temporary folder that is always removed.

* `extracted`: the context manager; its folder contains plain files with numbers as names, never those of the archive,
  or, for records of several files that name each other, with their base names in numbered folders.
* `temporary_folder`, `check_member`, `check_name`, `unpack_member`: the same for a single member, e.g. of weights.

Rejected: absolute names, `..`, links, devices, encrypted members, more files or bytes than `LIMITS` allow. Bytes are
counted while they are unpacked, because an archive may declare fewer. Nested archives are not unpacked; files of file
managers (`__MACOSX`, `._*`, `.DS_Store`, `Thumbs.db`, `desktop.ini`) are skipped.
"""

import contextlib
import errno
import gzip
import os
import re
import shutil
import stat
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO, NamedTuple, cast

from m3bind.errors import DiskError, ReadError, in_words
from m3bind.modalities.formats import limits as _limits

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")
_EXTENSION = re.compile(r"(\.nii\.gz|\.nii|\.npz|\.hdr|\.img|\.dcm|\.dicom|\.dic)$")  # that readers need
_NESTED = re.compile(r"(\.(zip|tar|tgz|bz2|xz|7z|rar)|(?<!\.nii)\.gz)$")  # archives inside an archive
_LITTER = (".ds_store", "thumbs.db", "desktop.ini", ".localized", "ehthumbs.db")
_CHUNK = 1 << 20
_ALWAYS = 512 << 20  # bytes that any archive may unpack to
_END, _ENTRY = 66_000, 1024  # bytes at the end that locate a zip's directory; maximum bytes of a file's entry in it
_PREFIX, _NOT_A_FILE = "m3bind-unpacked-", "a member is a link or a device, not a file"
_STALE = 3600.0  # seconds after which the folder of a killed process is removed


class _Member(NamedTuple):
    """One file of an archive."""

    name: str
    size: int  # as declared
    open: Callable[[], IO[bytes] | None]


@contextlib.contextmanager
def extracted(path: Path, limits: _limits.Limits | None = None, names: bool = False) -> Iterator[tuple[Path, int]]:
    """A temporary folder with the files of the archive at `path`, and how many nested archives were not unpacked.

    With `names` the files retain their base names, in one numbered folder per folder of the archive.

    Raises:
        ReadError: not an archive, damaged, encrypted, over a limit, or with a member that could leave the folder.
    """
    with temporary_folder() as folder:
        yield folder, _extract(path, folder, limits or _limits.LIMITS, names)


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """An empty folder that is always removed, by a later process if this process is killed.

    Raises:
        DiskError: it cannot be created.
    """
    _remove_stale()
    try:
        folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-"))
    except OSError as error:
        raise DiskError(f"cannot create a temporary folder ({error.strerror}); free space, or set TMPDIR") from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def unpack_member(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path) -> None:
    """Unpack one member of the zip at `path` to `target`, within `LIMITS`.

    Raises:
        ReadError: more bytes than allowed, declared or actual, or more than are free on the disk.
    """
    _check_declared(path, info.file_size, target.parent, _limits.LIMITS)
    with archive.open(info) as source, open(target, "xb") as out:
        _copy(path, source, out, _limits.LIMITS.bytes)


def _extract(path: Path, folder: Path, limits: _limits.Limits, names: bool) -> int:
    """Unpack into `folder`; returns the number of nested archives, which are skipped."""
    _limits.check_bytes(path, limits)
    kind = _kind(path)
    try:
        if kind == "zip":
            _check_directory(path, limits)
        with _MEMBERS[kind](path, limits) as every:
            members = [member for member in every if not _is_litter(member.name)] or every
            chosen = [member for member in members if not _NESTED.search(member.name.lower())]
            _check_declared(path, sum(member.size for member in chosen), folder, limits)
            left = min(limits.bytes, int(limits.ratio * path.stat().st_size), _max_unpacked(path, limits))
            targets = _by_name(path, folder, chosen) if names else _by_number(folder, chosen)
            for member, target in zip(chosen, targets):
                source = member.open()
                if source is None:
                    raise ReadError(path, _NOT_A_FILE, "pack plain files only")
                with source, open(target, "xb") as out:
                    left = _copy(path, source, out, left)
            return len(members) - len(chosen)
    except (ReadError, MemoryError):
        raise
    except Exception as error:  # zlib, struct.error and many others for damaged directories
        if isinstance(error, OSError) and not isinstance(error, gzip.BadGzipFile) and error.errno != errno.EINVAL:
            reason = f"unpacking failed ({error.strerror or in_words(error)})"
            raise ReadError(path, reason, "free some disk") from error
        cut = isinstance(error, tarfile.TarError | EOFError) or getattr(error, "errno", None) == errno.EINVAL
        fault = ": damaged or cut short" if cut else f" ({in_words(error)})"  # EINVAL: an offset before its start
        raise ReadError(path, f"not a readable {kind}{fault}", "fetch or pack it again") from error


def _kind(path: Path) -> str:
    """ "zip", "tar" or "gzip file" by the first bytes, which extensions often contradict."""
    name = path.name.lower()
    if name.endswith(".zip") and zipfile.is_zipfile(path):
        return "zip"
    with open(path, "rb") as handle:
        head = handle.read(512)
    if head.startswith(b"\x1f\x8b"):
        return "gzip file" if name.endswith(".gz") and not name.endswith(SUFFIXES) else "tar"
    if head[257:262] == b"ustar":
        return "tar"
    return "zip" if head.startswith(b"PK") or name.endswith(".zip") else "tar"


@contextlib.contextmanager
def _zip_members(path: Path, limits: _limits.Limits) -> Iterator[list[_Member]]:
    with zipfile.ZipFile(path) as archive:
        infos = [info for info in archive.infolist() if not info.is_dir()]
        _limits.check_count(path, len(infos), "files", limits)
        for info in infos:
            if not _is_litter(info.filename):
                check_member(path, info)
        yield [_Member(info.filename, info.file_size, partial(archive.open, info)) for info in infos]


@contextlib.contextmanager
def _tar_members(path: Path, limits: _limits.Limits) -> Iterator[list[_Member]]:
    members: list[_Member] = []
    total = 0
    with tarfile.open(path, "r:*") as archive:
        for info in archive:
            if info.isdir():
                continue
            if not _is_litter(info.name):
                check_name(path, info.name)
                if not info.isreg():
                    raise ReadError(path, _NOT_A_FILE, "pack plain files only")
            members.append(_Member(info.name, info.size, partial(archive.extractfile, info)))
            total += info.size
            _check_packing(path, total, limits)  # before its bytes are skipped
            _limits.check_count(path, len(members), "files", limits)
        _limits.check_count(path, len(members), "files", limits)
        yield members


@contextlib.contextmanager
def _gzip_member(path: Path, limits: _limits.Limits) -> Iterator[list[_Member]]:
    yield [_Member(path.name[: -len(".gz")], 0, cast(Callable[[], IO[bytes]], partial(gzip.open, path)))]


_MEMBERS = {"zip": _zip_members, "tar": _tar_members, "gzip file": _gzip_member}


def _by_number(folder: Path, members: list[_Member]) -> list[Path]:
    endings = (_EXTENSION.search(member.name.lower()) for member in members)
    return [folder / f"{number:06d}{match.group() if match else ''}" for number, match in enumerate(endings)]


def _by_name(path: Path, folder: Path, members: list[_Member]) -> list[Path]:
    """The target of each member: its base name in a new folder that represents its folder in the archive."""
    folders: dict[str, Path] = {}
    targets = []
    for member in members:
        place, _, name = re.sub(r"(^|/)(\./)+", r"\1", member.name.replace("\\", "/")).rpartition("/")
        folders.setdefault(place, folder / f"{len(folders):06d}").mkdir(exist_ok=True)
        targets.append(folders[place] / name)
    if len(set(targets)) < len(targets):
        raise ReadError(path, "two members of the same name", "pack it again")
    return targets


def _check_directory(path: Path, limits: _limits.Limits) -> None:
    """Raise ReadError if the directory of a zip is too long for `limits.files`, before it is read."""
    with open(path, "rb") as file:
        start = file.seek(-min(path.stat().st_size, _END), os.SEEK_END)
        data = file.read()
        at = data.rfind(b"PK\5\6")
        size = int.from_bytes(data[at + 12 : at + 16], "little") if at >= 0 else 0
        locator = data[max(at - 20, 0) : max(at, 0)]
        if size == 0xFFFFFFFF and locator.startswith(b"PK\6\7"):  # Zip64: the size is elsewhere
            where = int.from_bytes(locator[8:16], "little")
            file.seek(where if where < start + len(data) else 0)
            size = int.from_bytes(file.read(48)[40:48], "little")
    if size > limits.files * _ENTRY:
        reason = f"its list of files takes {size:,} bytes, more than {limits.files:,} files need"
        raise ReadError(path, reason, "pack one study per archive")


def check_member(path: Path, info: zipfile.ZipInfo) -> None:
    """Raise ReadError if a member could leave the folder, is not a plain file, or cannot be unpacked."""
    check_name(path, info.filename)
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG):
        raise ReadError(path, _NOT_A_FILE, "pack plain files only")
    if info.flag_bits & 0x1:
        raise ReadError(path, "encrypted", "unpack it with its password first")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ReadError(path, f"compression method {info.compress_type}", "pack it as an ordinary (deflate) zip")


def check_name(path: Path, name: str) -> None:
    """Raise ReadError if a member's name could leave the folder."""
    name = name.replace("\\", "/")
    if name.startswith("/") or re.match(r"[A-Za-z]:", name) or ".." in name.split("/"):
        raise ReadError(path, "a member's name leads out of the archive", "malicious")


def _max_unpacked(path: Path, limits: _limits.Limits) -> int:
    """Maximum unpacked bytes of medical files; archive bombs unpack to more."""
    return max(_ALWAYS, int(limits.packing * path.stat().st_size))


def _check_packing(path: Path, total: int, limits: _limits.Limits) -> None:
    _limits.check_ratio(path, total, path.stat().st_size, limits)
    if total > _max_unpacked(path, limits):
        reason = f"{total:,} bytes unpacked, more than {limits.packing:g} times its size"
        raise ReadError(path, reason, f"malicious; or raise packing in the environment variable {_limits.VARIABLE}")


def _check_declared(path: Path, total: int, folder: Path, limits: _limits.Limits) -> None:
    if total > limits.bytes:
        raise ReadError(path, f"{total:,} bytes unpacked, more than {limits.bytes:,}", "pack one study per archive")
    _check_packing(path, total, limits)
    free = shutil.disk_usage(folder).free
    if total > free:
        reason = f"{total:,} bytes unpacked, {free:,} free"
        raise ReadError(path, reason, "free some disk or set TMPDIR elsewhere", lasting=False)


def _copy(path: Path, source: IO[bytes], out: IO[bytes], left: int) -> int:
    """Copy one member; returns the number of bytes the archive may still unpack to."""
    while chunk := source.read(_CHUNK):
        left -= len(chunk)
        if left < 0:
            raise ReadError(path, "unpacks to more bytes than allowed", "damaged, or malicious")
        out.write(chunk)
    return left


def _is_litter(name: str) -> bool:
    """Whether a member was added by a file manager."""
    parts = name.replace("\\", "/").split("/")
    return "__MACOSX" in parts or parts[-1].startswith("._") or parts[-1].lower() in _LITTER


def _remove_stale() -> None:
    """Remove folders of processes that were killed while reading (readers that ran out of time)."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError, ValueError):
            process = int(folder.name[len(_PREFIX) :].split("-")[0])
            if time.time() - folder.lstat().st_mtime > _STALE and not _runs(process):
                shutil.rmtree(folder, ignore_errors=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
