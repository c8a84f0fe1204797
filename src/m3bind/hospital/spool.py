"""Accepted objects on disk until they are in the index: a private folder, of mode 0700.

    SPOOL/incoming/               objects being received, with names; removed when accepted, and at the start
    SPOOL/units/UNIT/OBJECT.dcm   accepted, de-identified; UNIT is an item of the future index
    SPOOL/work/UNIT/              taken by the encoder; moved back to units/ at the start
    SPOOL/held/UNIT/              see `late_objects`: files of encoded items, for late objects
    SPOOL/aside/UNIT/             see `quarantine`: unusable files, with a line in SPOOL/aside.csv
    SPOOL/ledger.db               see `spool_database`: the record of finished work

* `Spool`: stores objects durably and determines which units are complete. For one process at a time.

`put` returns when the object is flushed to disk under its final name, so acknowledged objects survive anything that
the disk survives. A series is complete when `complete` is called for it, or when nothing was added for some seconds
and no sender that added to it is still connected. All decisions use a monotonic clock.
"""

import contextlib
import fcntl
import os
import shutil
import threading
import time
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Self

from m3bind.core.files import atomic_path, flush, open_lock, sha256_file
from m3bind.errors import ConfigError, DiskError, in_words
from m3bind.hospital.deidentify import Cleaned, Refused
from m3bind.hospital.late_objects import LateObjects, size_of
from m3bind.hospital.quarantine import Quarantine
from m3bind.hospital.spool_database import Mark, SpoolDatabase

SUFFIX = ".dcm"
RESERVE = 256 << 20  # bytes of the disk that are left free
PATIENCE = 600.0  # seconds without a new object after which a series is complete though its sender is still connected
REPLACED = "an object was received again with other content; the newer one is used"
BROKEN = "its association was aborted"
STOPPED = "m3bind was stopped while it was received"
CONNECTED = f"its sender was still connected {PATIENCE:g} s after the last object"


class Spool:
    """See above. `quiet`: seconds after which a series is complete; `max_bytes`: of all waiting units."""

    def __init__(self, folder: Path, quiet: float = 10.0, max_bytes: int = 50 << 30) -> None:
        """Open or create the folder, and quarantine external files.

        Raises:
            ConfigError: another process uses it, or its ledger or its list is invalid.
            DiskError: it cannot be created.
        """
        self.folder, self.quiet, self.max_bytes = folder, quiet, max_bytes
        self.incoming, self.units, self.work, self.aside = (
            folder / name for name in ("incoming", "units", "work", "aside")
        )
        self._guard = threading.Lock()
        self._touched: dict[str, float] = {}  # waiting units, with the time of the last addition
        self._whole: set[str] = set()  # waiting units of one object
        self._complete: set[str] = set()  # waiting units that were declared complete
        self._released: set[str] = set()  # waiting units whose sender has released its association
        self._broken: dict[str, str] = {}  # units whose sending was broken off, with the reason
        self._sending: dict[Hashable, set[str]] = defaultdict(set)  # waiting series of a connected sender
        self._make()
        try:
            self.quarantine = Quarantine(folder)
            self.database = SpoolDatabase(folder / "ledger.db")
            self.held = LateObjects(folder / "held", self._folders(folder / "held"))
            self._recover()
        except BaseException:
            os.close(self._lock_file)
            raise

    # -- starting ------------------------------------------------------------------------------------------------------

    def _make(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.folder.chmod(0o700)
            self._lock_file = open_lock(self.folder / "lock", 0o600)
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(self.incoming, ignore_errors=True)
            for place in (self.incoming, self.units, self.work, self.folder / "held", self.aside):
                place.mkdir(exist_ok=True, mode=0o700)
        except BlockingIOError:
            os.close(self._lock_file)
            raise ConfigError(
                f"{self.folder}: another listen or pull uses this spool; wait for it, or give each its own --spool"
            ) from None
        except OSError as error:
            where = error.filename or self.folder
            raise DiskError(f"{where}: cannot hold a spool ({error.strerror}); name another --spool") from error

    def _recover(self) -> None:
        """Move back the units that a killed encoder had taken, and count all that wait."""
        for unit in self._folders(self.work):
            self._back(unit)
        for unit in self._folders(self.units):
            self._tidy(unit)
        list(self._folders(self.aside))
        waiting = list(self._folders(self.units))
        self._bytes = sum(map(size_of, waiting))
        self._touched = {unit.name: time.monotonic() for unit in sorted(waiting, key=lambda unit: unit.stat().st_mtime)}
        self._whole = {unit.name for unit in waiting if _is_whole(unit)}
        self._complete = self._touched.keys() & self.database.marked("complete").keys()
        self._released = self._touched.keys() & self.database.marked("released").keys()
        self._broken = dict.fromkeys(self._touched.keys() - self._whole - self._complete - self._released, STOPPED)

    def _folders(self, place: Path) -> Iterator[Path]:
        """The folders of units in a place; anything else is quarantined."""
        for path in sorted(place.iterdir()):
            if path.is_symlink() or not path.is_dir():
                self.quarantine.take_file(path, "", "not a folder of objects")
                continue
            try:
                path.chmod(0o700)
                os.listdir(path)
            except OSError as error:
                self.quarantine.take_file(path, "", f"a folder that cannot be opened ({error.strerror})")
                continue
            yield path

    def _tidy(self, unit: Path) -> None:
        """Remove partly written files of a unit and quarantine external ones; remove the unit if it is then empty."""
        for path in sorted(unit.iterdir()):
            if path.name.startswith(".") and path.suffix == ".tmp" and path.is_file():
                path.unlink()
            elif path.suffix != SUFFIX:  # files with the suffix are checked when they are taken
                self.quarantine.take_file(path, unit.name, "not a DICOM file")
        if not any(unit.iterdir()):
            unit.rmdir()

    def _back(self, taken: Path) -> None:
        """Move a taken unit back to the waiting ones, without replacing files received meanwhile, which are newer."""
        target = self.units / taken.name
        if target.is_symlink() or (target.exists() and not target.is_dir()):
            self.quarantine.take_file(target, "", "not a folder of objects")
        target.mkdir(exist_ok=True, mode=0o700)
        for file in taken.iterdir():
            if not (target / file.name).exists():
                os.replace(file, target / file.name)
        shutil.rmtree(taken)

    # -- receiving -----------------------------------------------------------------------------------------------------

    def room(self, size: int) -> None:
        """Refuse an object that does not fit; files held for late objects are removed first.

        Raises:
            Refused: more than may wait, or too little disk is free.
        """
        if self._bytes + size > self.max_bytes:
            raise Refused("full", "the spool is full; try again later")
        while shutil.disk_usage(self.folder).free < size + RESERVE:
            if not self.held.drop_oldest():
                raise Refused("full", "the disk is full")

    def put(self, cleaned: Cleaned) -> None:
        """Store an object; it is on the disk when this returns. It replaces an earlier one with the same key.

        Raises:
            Refused: the disk refuses it.
            DiskError: the ledger or the list cannot be written.
        """
        place = self.units / cleaned.unit
        path = place / f"{cleaned.instance}{SUFFIX}"
        with self._guard:
            try:
                digest, before = (sha256_file(path), path.stat().st_size) if path.exists() else ("", 0)
                new = not place.exists()
                place.mkdir(exist_ok=True, mode=0o700)
                with atomic_path(path) as temporary:
                    cleaned.dataset.save_as(temporary, enforce_file_format=True)
                if new:
                    flush(self.units)
                self._bytes += path.stat().st_size - before
                changed = bool(digest) and digest != sha256_file(path)
            except (OSError, DiskError):
                raise Refused("full", "the disk refuses it") from None
            except Exception as error:  # pydicom raises anything for values it cannot write
                raise Refused("unreadable", f"its content cannot be written ({in_words(error)})") from None
            finally:
                with contextlib.suppress(OSError):
                    place.rmdir()  # only if nothing could be written
                if place.exists():
                    self._touched[cleaned.unit] = time.monotonic()
                    if cleaned.whole:
                        self._whole.add(cleaned.unit)
            if cleaned.unit in self._released:
                self._released.discard(cleaned.unit)
                self.database.unmark(cleaned.unit, "released")
        if changed:
            self.quarantine.note(cleaned.unit, cleaned.modality, REPLACED)

    def sending(self, sender: Hashable, unit: str) -> None:
        """Record that a connected sender added to a unit: a series stays open until the sender has `left`."""
        with self._guard:
            if unit in self._touched and unit not in self._whole:
                self._sending[sender].add(unit)

    def left(self, sender: Hashable, broken: bool) -> set[str]:
        """Record that a sender released its association or `broken` off; its series, empty if it had left already."""
        with self._guard:
            units = self._sending.pop(sender, set()) & self._touched.keys()
            if broken:
                self._broken.update(dict.fromkeys(units, BROKEN))
                self._touched.update(dict.fromkeys(units, time.monotonic()))  # it may connect again
            elif units:
                self._released |= self._marked(units, "released")
        return units

    def complete(self, units: Iterable[str], expected: int = 0) -> None:
        """Declare units complete; `expected`: objects each should have, 0 if unknown. Durable."""
        with self._guard:
            self._complete |= self._marked(units, "complete", expected)

    def _marked(self, units: Iterable[str], mark: Mark, value: int = 0) -> set[str]:
        """Mark the waiting ones of some units, which are then no longer broken off; returns them."""
        waiting = self._touched.keys() & set(units)
        for unit in waiting:
            self._broken.pop(unit, None)
        if series := waiting - self._whole:
            self.database.mark(series, mark, value)
        return waiting

    def settle(self) -> None:
        """After all senders have left: declare complete what was not broken off."""
        with self._guard:
            self._complete |= self._released

    # -- handing out ---------------------------------------------------------------------------------------------------

    def ready(self, at_once: bool = False) -> list[str]:
        """Complete units, the oldest first; all with `at_once`."""
        self.held.expire(self.max_bytes - self._bytes)
        now = time.monotonic()
        with self._guard:
            busy = set().union(*self._sending.values())
            units = sorted((since, unit) for unit, since in self._touched.items())
            return [unit for since, unit in units if at_once or self._is_ready(unit, now - since, unit in busy)]

    def _is_ready(self, unit: str, silent: float, busy: bool) -> bool:
        if unit in self._whole:
            return True
        if busy:
            return silent >= max(self.quiet, PATIENCE)
        return unit in self._complete or silent >= self.quiet

    def doubts(self, unit: str) -> list[str]:
        """Why a waiting unit may be incomplete, from how it was sent."""
        with self._guard:
            busy = any(unit in units for units in self._sending.values())
            return [*filter(None, [self._broken.get(unit, "")]), *([CONNECTED] if busy else [])]

    def waiting(self) -> int:
        """Number of waiting units."""
        return len(self._touched)

    def take(self, unit: str) -> list[Path]:
        """Take a unit out of the waiting ones; its files, in a folder of their own. Empty if they have vanished."""
        with self._guard:
            self._touched.pop(unit, None)
            for units in (self._whole, self._complete, self._released, *self._sending.values()):
                units.discard(unit)
            target = self.work / unit
            try:
                os.replace(self.units / unit, target)
            except FileNotFoundError:
                return []
            self._bytes -= size_of(target)
        return sorted(target.glob(f"*{SUFFIX}"))

    def give_back(self, unit: str) -> None:
        """Let a taken unit wait again, e.g. if the index could not be written; no effect on other units."""
        with self._guard:
            if not (self.work / unit).exists():
                return
            self._back(self.work / unit)
            self._bytes = sum(map(size_of, self.units.iterdir()))
            self._touched.setdefault(unit, time.monotonic())
            if _is_whole(self.units / unit):
                self._whole.add(unit)
            elif unit in self.database.marked("complete"):
                self._complete.add(unit)
            elif unit in self.database.marked("released"):
                self._released.add(unit)

    # -- after encoding ------------------------------------------------------------------------------------------------

    def earlier(self, unit: str, held: bool) -> dict[str, Path]:
        """Further files of a taken unit, by object: those `late_objects`, and quarantined ones, which are newer."""
        places = ([self.held.folder / unit] if held else []) + [self.aside / unit]
        return {file.stem: file for place in places for file in sorted(place.glob(f"*{SUFFIX}"))}

    def finish(self, unit: str, objects: Mapping[str, str], hold: bool = False) -> None:
        """Record the objects of an encoded item with their digests; hold its files for a while, or remove them."""
        self.database.finish(unit, objects)
        self._forget(unit)
        shutil.rmtree(self.aside / unit, ignore_errors=True)
        if hold:
            self.held.take(self.work / unit)
        else:
            self.drop(unit)

    def _forget(self, unit: str) -> None:
        """Drop the sending state of a unit that has left the spool, unless more of it waits again."""
        with self._guard:
            if unit not in self._touched:
                self._broken.pop(unit, None)
                self.database.forget(unit)

    def drop(self, unit: str) -> None:
        """Remove the files of a taken unit."""
        shutil.rmtree(self.work / unit, ignore_errors=True)

    def reject(self, unit: str, modality: str, reason: str) -> None:
        """Quarantine the files of a taken unit, with the reason.

        Raises:
            DiskError: the list cannot be written; the files stay where they are.
        """
        self.quarantine.take(self.work / unit, modality, reason)
        self._forget(unit)

    # -- state ---------------------------------------------------------------------------------------------------------

    def expected(self, unit: str) -> int:
        """How many objects a unit should have, from `complete`; 0: not known."""
        return self.database.marked("complete").get(unit, 0)

    def waits(self, unit: str) -> bool:
        """Whether a complete unit waits."""
        with self._guard:
            return unit in self._touched and unit in self._complete | self._whole

    def close(self) -> None:
        """Close the ledger and release the lock."""
        self.database.close()
        with contextlib.suppress(OSError):
            os.close(self._lock_file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _is_whole(unit: Path) -> bool:
    """Whether a unit is a single object: its file has the name of the unit."""
    return [file.stem for file in unit.iterdir()] == [unit.name]
