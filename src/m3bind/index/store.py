"""The list of an index's parts, switched atomically: one writer, any number of readers.

    CURRENT         the list of parts with their checksums, under a SHA-256; replaced by renaming, which commits
    CURRENT.copy    the same, written just before: used by a repair if CURRENT is damaged
    parts/000007/   see `segment`

* `IndexStore`: the list, the writer's lock, commits, and removal of unused parts.

Each change writes a new part, flushes it, and then replaces CURRENT; so a change is either complete on disk or absent,
and there is no log that could be torn. The writer's lock is the kernel's (on the folder itself): it ends with the
process that held it. A part is removed once it is off the list and no reader has it open.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, with_config

from m3bind.core.files import atomic_path
from m3bind.core.stored import StoredFileError, checked, parse_json, read_bytes
from m3bind.errors import ConfigError, DiskError, SpaceError
from m3bind.index.segment import GONE, IndexDamageError, Segment, SegmentEntry

FORMAT, VERSION = "m3bind-index", 1
CURRENT, COPY, PARTS = "CURRENT", "CURRENT.copy", "parts"
MAX_DIM, MAX_PARTS, MAX_BYTES = 1 << 16, 10_000, 16 << 20  # numbers of a row, parts, bytes of CURRENT


@with_config({"extra": "forbid"})
@dataclass(frozen=True)
class IndexState:
    """The content of CURRENT."""

    dim: Annotated[int, Field(gt=0, le=MAX_DIM)]
    fingerprint: str
    gap_corrected: bool
    state: Annotated[int, Field(ge=0)] = 0  # number of changes
    next: Annotated[int, Field(ge=1)] = 1  # number of the next part
    notes: dict[str, Any] = field(default_factory=dict)
    parts: Annotated[list[SegmentEntry], Field(max_length=MAX_PARTS)] = field(default_factory=list)


class IndexStore:
    """The folder of an index. A writer's store holds the lock until `close`."""

    def __init__(self, folder: Path, lock: int | None, state: IndexState) -> None:
        self.folder, self._lock, self.state = folder, lock, state

    @classmethod
    def create(cls, folder: Path, dim: int, fingerprint: str, gap_corrected: bool) -> Self:
        """An empty index, open for writing.

        Raises:
            ConfigError: the folder exists and is not empty.
            DiskError: the file system refused.
        """
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConfigError(f"{folder} exists already; open it to add to it, or choose another folder")
        state = IndexState(dim, fingerprint, gap_corrected)
        with atomic_path(folder, directory=True) as temporary:
            (temporary / PARTS).mkdir()
            for name in (COPY, CURRENT):
                (temporary / name).write_bytes(_encoded(state))
        return cls(folder, locked(folder), state)

    @classmethod
    def open(cls, folder: Path, writable: bool) -> tuple[Self, list[Segment]]:
        """The index and its parts, every byte verified.

        Raises:
            SpaceError: no index, or damaged: names the file and the command that repairs it.
            ConfigError: another process is writing.
        """
        if not folder.is_dir():
            raise SpaceError(f"{folder}: no index; build one with: m3bind index ENCODED --out {folder}")
        if writable and (folder / PARTS).is_symlink():  # files behind a link may belong to others
            raise ConfigError(f"{folder / PARTS} is a link; to keep an index elsewhere, link its whole folder")
        lock = locked(folder) if writable else None
        try:
            state, parts = opened(folder, read_state)
        except BaseException as error:
            if lock is not None:
                os.close(lock)
            if isinstance(error, IndexDamageError):
                raise SpaceError(f"{error.path}: {error.reason}; repair with: {repair_command(folder)}") from error
            if isinstance(error, OSError):
                raise SpaceError(f"{error.filename or folder}: cannot be opened ({error.strerror})") from error
            raise
        store = cls(folder, lock, state)
        if writable:
            store.sweep()
        return store, parts

    def need_lock(self) -> None:
        """Refuse to change an index that is open for reading.

        Raises:
            ConfigError: it is.
        """
        if self._lock is None:
            raise ConfigError(f"{self.folder} is open for reading; open it with writable=True")

    def _still_there(self) -> None:
        """Refuse to write if the folder is no longer the one that was opened.

        Raises:
            DiskError: it was removed, moved or replaced.
        """
        with contextlib.suppress(OSError):
            if self._lock is not None and os.path.samestat(os.fstat(self._lock), os.stat(self.folder)):
                return
        raise DiskError(f"{self.folder}: removed, moved or replaced while it was open; put it back, or start again")

    def part_folder(self) -> Path:
        """The folder of the next part.

        Raises:
            DiskError: the index was removed, moved or replaced.
        """
        self._still_there()
        return self.folder / PARTS / f"{self.state.next:06d}"

    def commit(self, **changes: Any) -> None:
        """Switch to a state with these changes; durable, and seen by new readers, when this returns.

        Raises:
            DiskError: the file system refused, or the folder was removed; the old state remains.
        """
        self._still_there()
        state = replace(self.state, state=self.state.state + 1, next=self.state.next + 1, **changes)
        for name in (COPY, CURRENT):
            with atomic_path(self.folder / name) as temporary:
                temporary.write_bytes(_encoded(state))
        self.state = state

    def sweep(self) -> None:
        """Remove parts that are not listed and not open, left by a commit or by a killed writer."""
        listed = {entry["name"] for entry in self.state.parts}
        for path in (self.folder / PARTS).iterdir():
            if path.name not in listed:
                _remove(path)
        for path in self.folder.glob(f".{CURRENT}*.tmp"):
            path.unlink(missing_ok=True)

    def close(self) -> None:
        """Release the lock."""
        if self._lock is not None:
            os.close(self._lock)
        self._lock = None


def opened(folder: Path, read: Callable[[Path], IndexState]) -> tuple[IndexState, list[Segment]]:
    """The state and its verified parts; starts over if a writer switched meanwhile.

    Raises:
        IndexDamageError: bytes differ from what was written.
        SpaceError: no index, or of a newer version.
    """
    while True:
        state = read(folder)
        parts: list[Segment] = []
        try:
            before = 0  # rows of earlier parts
            for entry in state.parts:
                part = Segment(folder / PARTS / entry["name"], entry, state.dim)
                parts.append(part)
                if len(part.gone) and not 0 <= int(part.gone.min()) <= int(part.gone.max()) < before:
                    raise IndexDamageError(part.folder / GONE, "lists rows that no earlier part has")
                before += part.rows
            return state, parts
        except BaseException as error:
            for part in parts:
                part.close()
            if not isinstance(error, FileNotFoundError | BlockingIOError):
                raise
            if read(folder).state == state.state:  # a writer switches before it removes files
                path = Path(error.filename or folder / PARTS / state.parts[len(parts)]["name"])
                raise IndexDamageError(path, "is missing") from error


def read_state(folder: Path) -> IndexState:
    """The state in CURRENT; both it and its copy are verified.

    Raises:
        IndexDamageError: one of them is damaged or missing.
        SpaceError: not an index, or of a newer version.
    """
    if not (folder / CURRENT).exists() and not (folder / COPY).exists():
        raise SpaceError(f"{folder}: not an index, it holds no {CURRENT}")
    decode_state(folder / COPY)
    return decode_state(folder / CURRENT)


def decode_state(path: Path) -> IndexState:
    """The state in one file.

    Raises:
        IndexDamageError: it is damaged or missing.
        SpaceError: of a newer version.
    """
    try:
        data = read_bytes(path, MAX_BYTES)
    except FileNotFoundError:
        raise IndexDamageError(path, "is missing") from None
    except StoredFileError as error:
        raise IndexDamageError(path, error.reason) from None
    digest, _, body = data.partition(b"\n")
    if digest != hashlib.sha256(body).hexdigest().encode():
        raise IndexDamageError(path, "its content does not fit its hash")
    try:
        content = checked(dict[str, Any], parse_json(body, path), path)
        version = content.pop("version", None)
        if content.pop("format", None) != FORMAT or not isinstance(version, int):
            raise IndexDamageError(path, f"not the list of an index ({FORMAT})")
        if version > VERSION:
            raise SpaceError(f"{path}: written by a newer m3bind; update m3bind")
        return checked(IndexState, content, path)
    except StoredFileError as error:
        raise IndexDamageError(path, error.reason) from None


def repair_command(folder: Path) -> str:
    """The command that repairs an index."""
    return f"m3bind index --out {folder} --repair"


def _encoded(state: IndexState) -> bytes:
    content: Mapping[str, Any] = {"format": FORMAT, "version": VERSION, **asdict(state)}
    body = json.dumps(content, ensure_ascii=False).encode() + b"\n"
    return hashlib.sha256(body).hexdigest().encode() + b"\n" + body


def locked(folder: Path) -> int:
    """Acquire the writer's lock; returns its descriptor.

    Raises:
        ConfigError: another process holds it.
        DiskError: the file system has no locks.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise ConfigError(f"{folder}: another process is writing to this index; wait for it, or read only") from None
    except OSError as error:
        os.close(descriptor)
        raise DiskError(
            f"{folder}: this file system does not support locks ({error.strerror}); keep the index elsewhere"
        ) from error
    return descriptor


def _remove(path: Path) -> None:
    """Remove a part unless it is open. A reader that opens it too late starts over with a newer list."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
        finally:
            os.close(descriptor)
