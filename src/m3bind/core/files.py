"""Writing and reading files so that a killed process never leaves half a file.

* `atomic_path`: write to a temporary name beside the target, flush, rename.
* `write_text`, `write_json`: small files (`stored` reads them). * `replace_between`: a part of a document.
* `only_one`, `open_lock`, `alone`: one process at a time in a folder. * `flush`: fsync.
* `open_plain`, `check_plain`: regular files only. * `sha256_file`, `sha256_text`: content hashes.
* `user_caches`: the folder for what all runs of a user share.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from m3bind.errors import BusyError, ConfigError, DiskError

LOCK = ".lock"  # in a folder that only one process may write to
_SURROGATE = re.compile("[\ud800-\udfff]")


@contextlib.contextmanager
def atomic_path(target: Path | str, *, directory: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside `target`; on success flush it to disk and rename it over `target`.

    On any exception the temporary file (or folder, with `directory=True`) is removed and `target` is unchanged.

    Raises:
        DiskError: the file system refused the write (full, read-only, no permission).
    """
    target = Path(target)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if directory:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
        yield temporary
        if directory:
            for file in temporary.rglob("*"):
                flush(file)
            if target.exists():
                old = target.with_name(f".{target.name}.{os.getpid()}.old")
                os.rename(target, old)
                try:
                    os.rename(temporary, target)
                except OSError:
                    os.rename(old, target)
                    raise
                shutil.rmtree(old, ignore_errors=True)
            else:
                os.rename(temporary, target)
        else:
            flush(temporary)
            os.replace(temporary, target)
        flush(target.parent)
    except OSError as error:
        raise DiskError(
            f"cannot write {target}: {error.strerror or error}; free space or choose another --out. "
            "The previous content is unchanged."
        ) from error
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):  # missing, or what is in the place of its folder is a file
                temporary.unlink()


@contextlib.contextmanager
def only_one(folder: Path, what: str) -> Iterator[None]:
    """Lock `folder` against other processes until the block ends or this process dies.

    Raises:
        BusyError: another process holds the lock; the message names it and `what` the folder is ("run").
        DiskError: the folder cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = open_lock(folder / LOCK, 0o644)
    except OSError as error:
        raise DiskError(f"cannot write {folder}: {error.strerror}; choose another --out") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 200).decode("utf-8", "replace").strip() or "another process"
            raise BusyError(
                f"{folder}: {holder} is at work on this {what}; wait until it has finished, or use another --name"
            ) from None
        except OSError:  # a file system without locks
            pass
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {platform.node()}".encode(), 0)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Wait until no other process is in such a block of an existing folder; no wait on a file system without locks."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def open_lock(path: Path, mode: int) -> int:
    """The descriptor of a lock file, created if missing; the folder may come from a third party.

    Raises:
        OSError: no permission, or a link (its target would be overwritten), a pipe or a device.
    """
    if path.is_symlink():
        raise OSError(errno.ELOOP, f"{path.name} is a link; remove it")
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, mode)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, f"{path.name} is not a plain file; remove it")
    return descriptor


def flush(path: Path) -> None:
    """Write a file, or a folder's list of entries, through to the disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(target: Path | str, text: str) -> None:
    """Write `text` to `target` atomically."""
    with atomic_path(target) as temporary:
        temporary.write_text(text, encoding="utf-8")


def replace_between(path: Path, start: str, end: str, text: str) -> None:
    """Replace the lines between two marker lines of a text file by `text`.

    Raises:
        ConfigError: the file or its marker lines are missing.
    """
    old = path.read_text(encoding="utf-8") if path.is_file() else ""
    before, first, rest = old.partition(start)
    _, last, after = rest.partition(end)
    if not first or not last:
        raise ConfigError(f"{path}: needs the two lines {start} and {end}, between which the table is written.")
    write_text(path, f"{before}{start}\n{text}\n{end}{after}")


def write_json(target: Path | str, value: Any) -> None:
    """Write `value` as indented JSON to `target` atomically; file names that are not UTF-8 survive a round trip."""
    text = json.dumps(value, indent=1, ensure_ascii=False)
    write_text(target, _SURROGATE.sub(lambda hit: f"\\u{ord(hit[0]):04x}", text) + "\n")


def open_plain(path: Path | str) -> BinaryIO:
    """Open a regular file for reading; opening a pipe could block for ever, and a device has no end.

    Raises:
        OSError: missing, no permission, or not a regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a plain file", os.fspath(path))
    return os.fdopen(descriptor, "rb")


def check_plain(path: Path | str) -> None:
    """Raise OSError, as `open_plain`, if a library could not open the file without blocking."""
    open_plain(path).close()


def sha256_file(path: Path | str) -> str:
    """Hex SHA-256 of a file's bytes.

    Raises:
        OSError: see `open_plain`.
    """
    digest = hashlib.sha256()
    with open_plain(path) as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sha256_text(*parts: str) -> str:
    """Hex SHA-256 of several strings; boundaries between parts matter."""
    return sha256_texts(parts)


def sha256_texts(parts: Iterable[str]) -> str:
    """`sha256_text` of any number of strings."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


def user_caches() -> Path:
    """`m3bind` in $XDG_CACHE_HOME or ~/.cache; may not exist yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "m3bind"
