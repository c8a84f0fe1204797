"""Accepted objects on disk until they are in the index: a private folder, of mode 0700.

    SPOOL/incoming/               what is being received, with its names; removed when it is taken in, and at the start
    SPOOL/units/UNIT/OBJECT.dcm   accepted, de-identified; UNIT is an item of the index to be
    SPOOL/work/UNIT/              taken by the encoder; goes back to units/ at the start
    SPOOL/aside/UNIT/             what could not be used, with a line in SPOOL/aside.csv
    SPOOL/ledger.db               which objects made an item, which units are complete, which series were pulled

* `Spool`: keeps objects durably, says which units are complete, remembers what was done. One process uses it at a time.
* `Pulled`: what is remembered of a series that `pull` received to its end.

`put` returns when the object is flushed to disk under its last name, so what was acknowledged survives anything that
the disk survives. A series is complete when nothing was added for some seconds, or when somebody says so; what was said
is in the ledger until the unit has left the spool, so that a killed process does not lose it.
"""

import contextlib
import csv
import fcntl
import json
import os
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from m3bind.errors import ConfigError, DiskError, in_words
from m3bind.files import atomic_path, flush
from m3bind.hospital.deidentify import Cleaned, Refused

SUFFIX = ".dcm"
NOTES = 16 << 20  # bytes of aside.csv
RESERVE = 256 << 20  # bytes of the disk that are left free


@dataclass(frozen=True)
class Pulled:
    """A series that was received to its end."""

    objects: int  # that came, those that were refused among them
    refused: int
    units: tuple[str, ...]  # what they are part of


class Spool:
    """See above. `quiet`: seconds after which a series is complete; `most`: bytes that may wait."""

    def __init__(self, folder: Path, quiet: float = 10.0, most: int = 50 << 30) -> None:
        """Open or make the folder.

        Raises:
            ConfigError: another process uses it.
            DiskError: it cannot be made.
        """
        self.folder, self.quiet, self.most = folder, quiet, most
        self.incoming, self.units, self.work, self.aside = (
            folder / name for name in ("incoming", "units", "work", "aside")
        )
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            folder.chmod(0o700)
            self._lock_file = os.open(folder / "lock", os.O_CREAT | os.O_RDWR, 0o600)
            self._claim()
            shutil.rmtree(self.incoming, ignore_errors=True)
            for place in (self.incoming, self.units, self.work, self.aside):
                place.mkdir(exist_ok=True, mode=0o700)
        except OSError as error:
            raise DiskError(f"{folder}: no spool can be kept there ({error.strerror}); name another --spool") from error
        self._guard = threading.Lock()
        self._ledger = sqlite3.connect(folder / "ledger.db", check_same_thread=False, isolation_level=None)
        self._ledger.execute("PRAGMA synchronous=FULL")
        self._ledger.execute("CREATE TABLE IF NOT EXISTS done (unit TEXT, object TEXT, PRIMARY KEY (unit, object))")
        self._ledger.execute("CREATE TABLE IF NOT EXISTS complete (unit TEXT PRIMARY KEY, expected INTEGER)")
        self._ledger.execute(
            "CREATE TABLE IF NOT EXISTS pulled (series TEXT PRIMARY KEY, objects INTEGER, refused INTEGER, units TEXT)"
        )
        self._told: set[str] = set()  # units somebody called complete
        self._gone: set[str] = set()  # units whose sender has gone
        self._recover()

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
        for unit in sorted(self.work.iterdir()):
            self._back(unit)
        for left in self.units.glob("*/.*.tmp"):
            left.unlink()
        for unit in self.units.iterdir():
            if not any(unit.iterdir()):
                unit.rmdir()
        self._bytes = sum(map(_size, self.units.iterdir()))
        self._touched = {unit.name: time.time() for unit in self.units.iterdir()}
        self._told = {unit for unit in self._touched if self._is_told(unit)}

    def _is_told(self, unit: str) -> bool:
        """Whether a unit is one object, or was called complete, by this process or by one before."""
        told = self._ledger.execute("SELECT 1 FROM complete WHERE unit = ?", (unit,)).fetchone()
        return told is not None or (self.units / unit / f"{unit}{SUFFIX}").exists()

    def _back(self, taken: Path) -> None:
        """A taken unit among the waiting ones again, with what came meanwhile."""
        target = self.units / taken.name
        target.mkdir(exist_ok=True, mode=0o700)
        for file in taken.iterdir():
            os.replace(file, target / file.name)
        taken.rmdir()

    # -- receiving -----------------------------------------------------------------------------------------------------

    def room(self, size: int) -> None:
        """Refuse what does not fit.

        Raises:
            Refused: more than may wait, or too little disk is free.
        """
        if self._bytes + size > self.most:
            raise Refused("full", "the spool is full; try again later")
        if shutil.disk_usage(self.folder).free < size + RESERVE:
            raise Refused("full", "the disk is full")

    def put(self, cleaned: Cleaned) -> None:
        """Keep an object; it is on the disk when this returns. The same object again takes the place of the first.

        Raises:
            Refused: the disk does not take it.
        """
        place = self.units / cleaned.unit
        path = place / f"{cleaned.instance}{SUFFIX}"
        with self._guard:
            self._touched[cleaned.unit] = time.time()
            self._gone.discard(cleaned.unit)
            try:
                new = not place.exists()
                place.mkdir(exist_ok=True, mode=0o700)
                before = path.stat().st_size if path.exists() else 0
                with atomic_path(path) as temporary:
                    cleaned.dataset.save_as(temporary, enforce_file_format=True)
                if new:
                    flush(self.units)
                self._bytes += path.stat().st_size - before
            except (OSError, DiskError):
                raise Refused("full", "the disk does not take it") from None
            except Exception as error:  # pydicom raises anything for values it cannot write
                raise Refused("unreadable", f"its content cannot be written ({in_words(error)})") from None
            if cleaned.whole:
                self._told.add(cleaned.unit)

    def complete(self, units: Iterable[str], expected: int = 0) -> None:
        """Say that nothing more will come for these; `expected`: objects each should have, 0 if unknown. Durable."""
        with self._guard:
            found = self._touched.keys() & set(units)
            self._ledger.execute("BEGIN")
            self._ledger.executemany(
                "INSERT OR REPLACE INTO complete VALUES (?, ?)", [(unit, expected) for unit in found]
            )
            self._ledger.execute("COMMIT")
            self._told.update(found)

    def released(self, units: Iterable[str]) -> None:
        """Say that their sender has gone; `settle` then takes them as complete."""
        with self._guard:
            self._gone.update(self._touched.keys() & set(units))

    def settle(self) -> None:
        """Nobody sends any more: what was not broken off is complete."""
        with self._guard:
            self._told |= self._gone

    # -- handing out ---------------------------------------------------------------------------------------------------

    def ready(self, at_once: bool = False) -> list[str]:
        """Units that are complete, the oldest first; all with `at_once`."""
        now = time.time()
        with self._guard:
            found = sorted((since, unit) for unit, since in self._touched.items())
            return [unit for since, unit in found if at_once or unit in self._told or now - since >= self.quiet]

    def waiting(self) -> int:
        """Number of units that wait."""
        return len(self._touched)

    def take(self, unit: str) -> list[Path]:
        """Take a unit out of the waiting ones; its files, in a folder of their own."""
        with self._guard:
            self._touched.pop(unit, None)
            self._told.discard(unit)
            self._gone.discard(unit)
            target = self.work / unit
            os.replace(self.units / unit, target)
            self._bytes -= _size(target)
        return sorted(target.glob(f"*{SUFFIX}"))

    def give_back(self, unit: str) -> None:
        """Let a taken unit wait again, as when the index could not be written; nothing where it is not taken."""
        with self._guard:
            if not (self.work / unit).exists():
                return
            self._bytes += _size(self.work / unit)
            self._back(self.work / unit)
            self._touched.setdefault(unit, time.time())
            if self._is_told(unit):
                self._told.add(unit)

    def finish(self, unit: str, objects: Sequence[str]) -> None:
        """Remember which objects made the item, and remove its files."""
        with self._guard:
            self._ledger.execute("BEGIN")
            self._ledger.execute("DELETE FROM done WHERE unit = ?", (unit,))
            self._ledger.executemany("INSERT INTO done VALUES (?, ?)", [(unit, name) for name in objects])
            self._ledger.execute("COMMIT")
        self.drop(unit)

    def drop(self, unit: str) -> None:
        """Remove the files of a taken unit."""
        shutil.rmtree(self.work / unit)
        self._forget(unit)

    def _forget(self, unit: str) -> None:
        """A unit that left the spool is no longer one that is complete."""
        with self._guard:
            self._ledger.execute("DELETE FROM complete WHERE unit = ?", (unit,))

    def set_aside(self, unit: str, modality: str, reason: str) -> None:
        """Keep the files of a taken unit apart, with the reason."""
        shutil.rmtree(self.aside / unit, ignore_errors=True)
        self.note(unit, modality, reason)
        os.replace(self.work / unit, self.aside / unit)
        self._forget(unit)

    def note(self, unit: str, modality: str, reason: str) -> None:
        """One line of aside.csv, which does not grow without end."""
        path = self.folder / "aside.csv"
        with self._guard, open(path, "a", newline="", encoding="utf-8") as handle:
            if handle.tell() > NOTES:
                return
            if not handle.tell():
                csv.writer(handle, lineterminator="\n").writerow(["unit", "modality", "reason"])
            csv.writer(handle, lineterminator="\n").writerow([unit, modality, reason])

    # -- the ledger ----------------------------------------------------------------------------------------------------

    def done(self, unit: str) -> set[str]:
        """The objects that made an item."""
        with self._guard:
            rows = self._ledger.execute("SELECT object FROM done WHERE unit = ?", (unit,)).fetchall()
        return {name for (name,) in rows}

    def expected(self, unit: str) -> int:
        """How many objects a unit should have, as `complete` was told; 0: not known."""
        with self._guard:
            row = self._ledger.execute("SELECT expected FROM complete WHERE unit = ?", (unit,)).fetchone()
        return int(row[0]) if row else 0

    def waits(self, unit: str) -> bool:
        """Whether a complete unit waits."""
        with self._guard:
            return unit in self._touched and unit in self._told

    def is_listed(self, unit: str) -> bool:
        """Whether a unit was put aside."""
        return (self.aside / unit).exists()

    def pulled(self, series: str) -> Pulled | None:
        """What is remembered of a series; None: it was never received to its end."""
        with self._guard:
            row = self._ledger.execute("SELECT objects, refused, units FROM pulled WHERE series = ?", (series,))
            found = row.fetchone()
        return Pulled(found[0], found[1], tuple(json.loads(found[2]))) if found else None

    def set_pulled(self, series: str, found: Pulled) -> None:
        """Remember a series that was received to its end."""
        row = series, found.objects, found.refused, json.dumps(sorted(found.units))
        with self._guard:
            self._ledger.execute("INSERT OR REPLACE INTO pulled VALUES (?, ?, ?, ?)", row)

    def close(self) -> None:
        """Let go of the folder."""
        self._ledger.close()
        with contextlib.suppress(OSError):
            os.close(self._lock_file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def _size(unit: Path) -> int:
    return sum(path.stat().st_size for path in unit.glob(f"*{SUFFIX}"))
