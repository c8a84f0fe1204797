"""Archives of a study: a zip is unpacked into a temporary folder that is always removed.

* `extracted`: the context manager; its folder holds plain files named by number, never by what the archive calls them.
* `temporary_folder`, `check_member`, `unpack_member`: the same for a single member, as weights are packed.

Refused: absolute names, `..`, links, devices, encrypted members, more files or bytes than `LIMITS` allow. Bytes are
counted while they are unpacked, because an archive may declare fewer. Archives inside the archive are left packed;
what file managers leave in archives (`__MACOSX`, `._*`, `.DS_Store`, `Thumbs.db`, `desktop.ini`) is left out.
"""

import contextlib
import os
import re
import shutil
import stat
import tempfile
import time
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from m3bind.errors import DiskError, ReadError, in_words
from m3bind.modalities import _limits

SUFFIX = ".zip"
_KEPT = re.compile(r"(\.nii\.gz|\.nii|\.npz|\.dcm|\.dicom|\.dic)$")  # endings a reader needs to see
_NESTED = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar")
_LITTER = (".ds_store", "thumbs.db", "desktop.ini", ".localized", "ehthumbs.db")
_CHUNK = 1 << 20
_PREFIX = "m3bind-unpacked-"
_STALE = 3600.0  # seconds after which the folder of a process that was killed is removed


@contextlib.contextmanager
def extracted(path: Path, limits: _limits.Limits | None = None) -> Iterator[tuple[Path, int]]:
    """A temporary folder with the files of the zip at `path`, and how many archives inside it were left packed.

    Raises:
        ReadError: not a zip, damaged, encrypted, over a limit, or with a member that could leave the folder.
    """
    with temporary_folder() as folder:
        yield folder, _extract(path, folder, limits or _limits.LIMITS)


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """An empty folder that is always removed, by a later process if this one is killed.

    Raises:
        DiskError: there is no place where one can be made.
    """
    _remove_stale()
    try:
        folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-"))
    except OSError as error:
        raise DiskError(f"no temporary folder can be made ({error.strerror}); free space, or set TMPDIR") from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def unpack_member(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path) -> None:
    """Unpack one member of the zip at `path` to `target`, within `LIMITS`.

    Raises:
        ReadError: more bytes than allowed, declared or real, or more than are free on the disk.
    """
    _check_declared(path, info.file_size, target.parent, _limits.LIMITS)
    with archive.open(info) as source, open(target, "xb") as out:
        _copy(path, source, out, _limits.LIMITS.bytes)


def _extract(path: Path, folder: Path, limits: _limits.Limits) -> int:
    """Unpack into `folder`; the number of nested archives left out."""
    _limits.check_bytes(path, limits)
    try:
        with zipfile.ZipFile(path) as archive:
            members = [info for info in archive.infolist() if not info.is_dir()]
            _limits.check_count(path, len(members), "files", limits)
            members = [info for info in members if not _is_litter(info.filename)] or members
            for info in members:
                check_member(path, info)
            wanted = [i for i in members if not _is_nested(i.filename)]
            _check_declared(path, sum(i.file_size for i in wanted), folder, limits)
            left = min(limits.bytes, int(limits.ratio * path.stat().st_size))
            for number, info in enumerate(wanted):
                found = _KEPT.search(info.filename.lower())
                target = folder / f"{number:06d}{found.group() if found else ''}"
                with archive.open(info) as source, open(target, "xb") as out:
                    left = _copy(path, source, out, left)
            return len(members) - len(wanted)
    except (ReadError, MemoryError):
        raise
    except OSError as error:
        raise ReadError(path, f"unpacking failed ({error.strerror or in_words(error)})", "free some disk") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError, IndexError, OverflowError) as error:
        raise ReadError(path, f"not a readable zip ({in_words(error)})", "fetch or pack it again") from error
    except Exception as error:  # struct.error and others for damaged directories
        raise ReadError(path, f"not a readable zip ({in_words(error)})", "fetch or pack it again") from error


def check_member(path: Path, info: zipfile.ZipInfo) -> None:
    """Refuse a member that could leave the folder, is no plain file, or cannot be unpacked.

    Raises:
        ReadError: it is one.
    """
    name = info.filename.replace("\\", "/")
    if name.startswith("/") or re.match(r"[A-Za-z]:", name) or ".." in name.split("/"):
        raise ReadError(path, "a member's name leads out of the archive", "made to harm")
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG):
        raise ReadError(path, "a member is a link or a device, not a file", "pack plain files only")
    if info.flag_bits & 0x1:
        raise ReadError(path, "encrypted", "unpack it with its password first")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ReadError(path, f"compression method {info.compress_type}", "pack it as an ordinary (deflate) zip")


def _check_declared(path: Path, total: int, folder: Path, limits: _limits.Limits) -> None:
    if total > limits.bytes:
        raise ReadError(path, f"{total:,} bytes unpacked, more than {limits.bytes:,}", "pack one study per archive")
    _limits.check_ratio(path, total, path.stat().st_size, limits)
    free = shutil.disk_usage(folder).free
    if total > free:
        raise ReadError(path, f"{total:,} bytes unpacked, {free:,} free", "free some disk or set TMPDIR elsewhere")


def _copy(path: Path, source: object, out: object, left: int) -> int:
    """Copy one member; the number of bytes the archive may still unpack."""
    while chunk := source.read(_CHUNK):  # type: ignore[attr-defined]
        left -= len(chunk)
        if left < 0:
            raise ReadError(path, "unpacks to more bytes than it may", "damaged, or made to harm")
        out.write(chunk)  # type: ignore[attr-defined]
    return left


def _is_litter(name: str) -> bool:
    """Whether a member is what a file manager put there beside the user's files."""
    parts = name.replace("\\", "/").split("/")
    return "__MACOSX" in parts or parts[-1].startswith("._") or parts[-1].lower() in _LITTER


def _is_nested(name: str) -> bool:
    name = name.lower()
    return name.endswith(_NESTED) and not name.endswith(".nii.gz")


def _remove_stale() -> None:
    """Folders left by a process that was killed while it read (a reader that ran out of time)."""
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
