"""Accepted objects on disk until they are in the index: a private folder, of mode 0700.

    SPOOL/incoming/               what is being received, with its names; removed when it is taken in, and at the start
    SPOOL/units/UNIT/OBJECT.dcm   accepted, de-identified; UNIT is an item of the index to be
    SPOOL/work/UNIT/              taken by the encoder; goes back to units/ at the start
    SPOOL/held/UNIT/              see `held`: what made an item, for late objects
    SPOOL/aside/UNIT/             see `quarantine`: what could not be used, with a line in SPOOL/aside.csv
    SPOOL/ledger.db               see `ledger`: what was done

* `Spool`: stores objects durably, says which units are complete, remembers what was done. For one process at a time.

`put` returns when the object is flushed to disk under its last name, so what was acknowledged survives anything that
the disk survives. A series is complete when somebody says so, or when nothing was added for some seconds and no sender
that added to it is still connected. Times that decide are those of a clock that nobody can set.
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
from types import TracebackType
from typing import Self

from m3bind.core.files import atomic_path, flush, open_lock, sha256_file
from m3bind.errors import ConfigError, DiskError, in_words
from m3bind.hospital.deidentify import Cleaned, Refused
from m3bind.hospital.held import Held, size_of
from m3bind.hospital.ledger import Ledger, Mark, Pulled
from m3bind.hospital.quarantine import Quarantine

SUFFIX = ".dcm"
RESERVE = 256 << 20  # bytes of the disk that are left free
PATIENCE = 600.0  # seconds without a new object after which a series is complete though its sender is still connected
REPLACED = "an object came again with other content; the newer one is used"
BROKEN = "its association was aborted"
STOPPED = "m3bind was stopped while it was received"
CONNECTED = f"its sender was still connected {PATIENCE:g} s after the last object"


class Spool:
    """See above. `quiet`: seconds after which a series is complete; `most`: bytes that may wait."""

    def __init__(self, folder: Path, quiet: float = 10.0, most: int = 50 << 30) -> None:
        """Open or make the folder, and quarantine what does not belong there.

        Raises:
            ConfigError: another process uses it, or its ledger or its list is not what it should be.
            DiskError: it cannot be made.
        """
        self.folder, self.quiet, self.most = folder, quiet, most
        self.incoming, self.units, self.work, self.aside = (
            folder / name for name in ("incoming", "units", "work", "aside")
        )
        self._guard = threading.Lock()
        self._touched: dict[str, float] = {}  # waiting units, and when something was last added
        self._whole: set[str] = set()  # waiting units that are one object
        self._told: set[str] = set()  # waiting units that somebody called complete
        self._gone: set[str] = set()  # waiting units whose sender has gone in order
        self._broken: dict[str, str] = {}  # units whose sending was broken off, and how
        self._sending: dict[Hashable, set[str]] = defaultdict(set)  # waiting series of a connected sender
        self._make()
        try:
            self.quarantine = Quarantine(folder)
            self.ledger = Ledger(folder / "ledger.db")
            self.held = Held(folder / "held", self._folders(folder / "held"))
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
            self._claim()
            shutil.rmtree(self.incoming, ignore_errors=True)
            for place in (self.incoming, self.units, self.work, self.folder / "held", self.aside):
                place.mkdir(exist_ok=True, mode=0o700)
        except OSError as error:
            where = error.filename or self.folder
            raise DiskError(f"{where}: no spool can be kept there ({error.strerror}); name another --spool") from error

    def _claim(self) -> None:
        try:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock_file)
            raise ConfigError(
                f"{self.folder}: another listen or pull uses this spool; wait for it, or give each its own --spool"
            ) from None

    def _recover(self) -> None:
        """Put back what a killed encoder had taken, and count what is there."""
        for unit in self._folders(self.work):
            self._back(unit)
        for unit in self._folders(self.units):
            self._tidy(unit)
        list(self._folders(self.aside))
        waiting = list(self._folders(self.units))
        self._bytes = sum(map(size_of, waiting))
        self._touched = {unit.name: time.monotonic() for unit in sorted(waiting, key=lambda unit: unit.stat().st_mtime)}
        self._whole = {unit.name for unit in waiting if _is_whole(unit)}
        self._told = self._touched.keys() & self.ledger.marked("complete").keys()
        self._gone = self._touched.keys() & self.ledger.marked("released").keys()
        self._broken = dict.fromkeys(self._touched.keys() - self._whole - self._told - self._gone, STOPPED)

    def _folders(self, place: Path) -> Iterator[Path]:
        """The folders of units in a place; what is something else is quarantined."""
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
        """Remove half written files of a unit, quarantine what is no file of ours; remove it where nothing is left."""
        for path in sorted(unit.iterdir()):
            if path.name.startswith(".") and path.suffix == ".tmp" and path.is_file():
                path.unlink()
            elif path.suffix != SUFFIX:  # what has the ending is looked at when it is taken
                self.quarantine.take_file(path, unit.name, "not a DICOM file")
        if not any(unit.iterdir()):
            unit.rmdir()

    def _back(self, taken: Path) -> None:
        """A taken unit among the waiting ones again, with what came meanwhile, which is newer."""
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
        """Refuse what does not fit; what is only held for late objects makes way.

        Raises:
            Refused: more than may wait, or too little disk is free.
        """
        if self._bytes + size > self.most:
            raise Refused("full", "the spool is full; try again later")
        while shutil.disk_usage(self.folder).free < size + RESERVE:
            if not self.held.drop_oldest():
                raise Refused("full", "the disk is full")

    def put(self, cleaned: Cleaned) -> None:
        """Store an object; it is on the disk when this returns. The same object again takes the place of the first.

        Raises:
            Refused: the disk does not take it.
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
                raise Refused("full", "the disk does not take it") from None
            except Exception as error:  # pydicom raises anything for values it cannot write
                raise Refused("unreadable", f"its content cannot be written ({in_words(error)})") from None
            finally:
                self._came(cleaned)
            if cleaned.unit in self._gone:
                self._gone.discard(cleaned.unit)
                self.ledger.unmark(cleaned.unit, "released")
        if changed:
            self.note(cleaned.unit, cleaned.modality, REPLACED)

    def _came(self, cleaned: Cleaned) -> None:
        """Count a unit among the waiting ones, unless nothing of it could be written."""
        with contextlib.suppress(OSError):
            (self.units / cleaned.unit).rmdir()  # of an empty folder only
        if (self.units / cleaned.unit).exists():
            self._touched[cleaned.unit] = time.monotonic()
            if cleaned.whole:
                self._whole.add(cleaned.unit)

    def sending(self, sender: Hashable, unit: str) -> None:
        """Say that a connected sender added to a unit: a series stays open until the sender has `left`."""
        with self._guard:
            if unit in self._touched and unit not in self._whole:
                self._sending[sender].add(unit)

    def left(self, sender: Hashable, broken: bool) -> set[str]:
        """Say that a sender has gone, in order or `broken` off; the series it sent, none where it was gone already."""
        with self._guard:
            units = self._sending.pop(sender, set()) & self._touched.keys()
            if broken:
                self._broken.update(dict.fromkeys(units, BROKEN))
                self._touched.update(dict.fromkeys(units, time.monotonic()))  # it may connect again
        if units and not broken:
            self.released(units)
        return units

    def complete(self, units: Iterable[str], expected: int = 0) -> None:
        """Say that nothing more will come for these; `expected`: objects each should have, 0 if unknown. Durable."""
        with self._guard:
            self._told |= self._in_order(units, "complete", expected)

    def released(self, units: Iterable[str]) -> None:
        """Say that their sender has gone in order; `settle` then takes them as complete."""
        with self._guard:
            self._gone |= self._in_order(units, "released")

    def _in_order(self, units: Iterable[str], mark: Mark, value: int = 0) -> set[str]:
        """Those of some units that wait; what was broken off before has come in order now."""
        waiting = self._touched.keys() & set(units)
        for unit in waiting:
            self._broken.pop(unit, None)
        if series := waiting - self._whole:
            self.ledger.mark(series, mark, value)
        return waiting

    def settle(self) -> None:
        """Nobody sends any more: what was not broken off is complete."""
        with self._guard:
            self._told |= self._gone

    # -- handing out ---------------------------------------------------------------------------------------------------

    def ready(self, at_once: bool = False) -> list[str]:
        """Units that are complete, the oldest first; all with `at_once`."""
        self.held.expire(self.most - self._bytes)
        now = time.monotonic()
        with self._guard:
            busy = set().union(*self._sending.values())
            found = sorted((since, unit) for unit, since in self._touched.items())
            return [unit for since, unit in found if at_once or self._is_ready(unit, now - since, unit in busy)]

    def _is_ready(self, unit: str, silent: float, busy: bool) -> bool:
        if unit in self._whole:
            return True
        if busy:
            return silent >= max(self.quiet, PATIENCE)
        return unit in self._told or silent >= self.quiet

    def doubts(self, unit: str) -> list[str]:
        """Why a waiting unit may be incomplete, from how it was sent."""
        with self._guard:
            busy = any(unit in units for units in self._sending.values())
            return [*filter(None, [self._broken.get(unit, "")]), *([CONNECTED] if busy else [])]

    def waiting(self) -> int:
        """Number of units that wait."""
        return len(self._touched)

    def take(self, unit: str) -> list[Path]:
        """Take a unit out of the waiting ones; its files, in a folder of their own. None where they have vanished."""
        with self._guard:
            self._touched.pop(unit, None)
            for known in (self._whole, self._told, self._gone, *self._sending.values()):
                known.discard(unit)
            target = self.work / unit
            try:
                os.replace(self.units / unit, target)
            except FileNotFoundError:
                return []
            self._bytes -= size_of(target)
        return sorted(target.glob(f"*{SUFFIX}"))

    def give_back(self, unit: str) -> None:
        """Let a taken unit wait again, as when the index could not be written; nothing where it is not taken."""
        with self._guard:
            if not (self.work / unit).exists():
                return
            self._back(self.work / unit)
            self._bytes = sum(map(size_of, self.units.iterdir()))
            self._touched.setdefault(unit, time.monotonic())
            if _is_whole(self.units / unit):
                self._whole.add(unit)
            elif unit in self.ledger.marked("complete"):
                self._told.add(unit)
            elif unit in self.ledger.marked("released"):
                self._gone.add(unit)

    # -- after encoding ------------------------------------------------------------------------------------------------

    def earlier(self, unit: str, held: bool) -> dict[str, Path]:
        """Files of a taken unit beside those that were taken, by object: `held`, and quarantined, which are newer."""
        places = ([self.held.folder / unit] if held else []) + [self.aside / unit]
        return {file.stem: file for place in places for file in sorted(place.glob(f"*{SUFFIX}"))}

    def finish(self, unit: str, objects: Mapping[str, str], hold: bool = False) -> None:
        """Remember which objects, with which digests, made the item; hold its files for a while, or remove them."""
        self.ledger.finish(unit, objects)
        self._forget(unit)
        shutil.rmtree(self.aside / unit, ignore_errors=True)
        if hold:
            self.held.take(self.work / unit)
        else:
            self.drop(unit)

    def _forget(self, unit: str) -> None:
        """Forget how a unit was sent that has left the spool, unless more of it waits again."""
        with self._guard:
            if unit not in self._touched:
                self._broken.pop(unit, None)
                self.ledger.forget(unit)

    def drop(self, unit: str) -> None:
        """Remove the files of a taken unit."""
        shutil.rmtree(self.work / unit, ignore_errors=True)

    def set_aside(self, unit: str, modality: str, reason: str) -> None:
        """Quarantine the files of a taken unit, with the reason.

        Raises:
            DiskError: the list cannot be written; the files stay where they are.
        """
        self.quarantine.take(self.work / unit, modality, reason)
        self._forget(unit)

    def note(self, unit: str, modality: str, reason: str) -> None:
        """One line of aside.csv; see `Quarantine.note`."""
        self.quarantine.note(unit, modality, reason)

    # -- what was done -------------------------------------------------------------------------------------------------

    def done(self, unit: str) -> dict[str, str]:
        """The objects that made an item, each with the digest of its file."""
        return self.ledger.done(unit)

    def expected(self, unit: str) -> int:
        """How many objects a unit should have, as `complete` was told; 0: not known."""
        return self.ledger.marked("complete").get(unit, 0)

    def waits(self, unit: str) -> bool:
        """Whether a complete unit waits."""
        with self._guard:
            return unit in self._touched and unit in self._told | self._whole

    def is_listed(self, unit: str) -> bool:
        """Whether a unit was quarantined."""
        return (self.aside / unit).exists()

    def pulled(self, series: str) -> Pulled | None:
        """What is remembered of a series; None: it was never received to its end."""
        return self.ledger.pulled(series)

    def set_pulled(self, series: str, found: Pulled) -> None:
        """Remember a series that was received to its end."""
        self.ledger.set_pulled(series, found)

    def close(self) -> None:
        """Let go of the folder."""
        self.ledger.close()
        with contextlib.suppress(OSError):
            os.close(self._lock_file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def _is_whole(unit: Path) -> bool:
    """Whether a unit is one object by itself: its file has the name of the unit."""
    return [file.stem for file in unit.iterdir()] == [unit.name]
