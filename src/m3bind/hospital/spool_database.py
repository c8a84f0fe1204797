"""The state of a spool beyond its files, in one SQLite file.

* `SpoolDatabase`: the objects of each item with their digests, the pulled series, and the marks of waiting units.
* `Pulled`: the record of a series that `pull` received to its end.

Each call is durable when it returns. A damaged file is an error, never repaired silently.
"""

import contextlib
import json
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from m3bind.errors import ConfigError, DiskError

Mark = Literal["complete", "released"]  # the value of "complete": objects that the archive counts, 0 if unknown
_TABLES = (
    "CREATE TABLE IF NOT EXISTS done (unit TEXT, object TEXT, digest TEXT DEFAULT '', PRIMARY KEY (unit, object))",
    "CREATE TABLE IF NOT EXISTS pulled (series TEXT PRIMARY KEY, objects INTEGER, refused INTEGER, units TEXT)",
    "CREATE TABLE IF NOT EXISTS marks (unit TEXT, mark TEXT, value INTEGER, PRIMARY KEY (unit, mark))",
)


@dataclass(frozen=True)
class Pulled:
    """A series that was received to its end."""

    objects: int  # received, including the refused ones
    refused: int
    units: tuple[str, ...]  # they belong to


class SpoolDatabase:
    """Thread-safe."""

    def __init__(self, path: Path) -> None:
        """Open or create the file.

        Raises:
            ConfigError: it is damaged, or not a ledger.
        """
        self._path, self._guard = path, threading.Lock()
        try:
            self._file = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            self._file.execute("PRAGMA synchronous=FULL")
            if self._file.execute("PRAGMA quick_check").fetchone()[0] != "ok":
                raise sqlite3.DatabaseError("its pages contradict each other")
            for table in _TABLES:
                self._file.execute(table)
            if "digest" not in [row[1] for row in self._file.execute("PRAGMA table_info(done)")]:  # of version 1
                self._file.execute("ALTER TABLE done ADD COLUMN digest TEXT DEFAULT ''")
        except sqlite3.Error as error:
            raise ConfigError(
                f"{path}: the ledger of the spool cannot be used ({error}). Move it away and start again: waiting "
                "objects are encoded all the same; only the record of the objects that were done before is lost."
            ) from None

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """The connection, for one caller at a time, in one transaction. DiskError: it cannot be used any longer."""
        with self._guard:
            try:
                with self._file:
                    self._file.execute("BEGIN")
                    yield self._file
            except sqlite3.Error as error:
                raise DiskError(f"{self._path}: the ledger of the spool cannot be used ({error})") from None

    def done(self, unit: str) -> dict[str, str]:
        """The objects of an encoded item, each with the digest of its file ("" if none was recorded)."""
        with self._open() as file:
            return dict(file.execute("SELECT object, digest FROM done WHERE unit = ?", (unit,)).fetchall())

    def finish(self, unit: str, objects: Mapping[str, str]) -> None:
        """Record the objects of an encoded item."""
        with self._open() as file:
            file.execute("DELETE FROM done WHERE unit = ?", (unit,))
            rows = [(unit, name, digest) for name, digest in objects.items()]
            file.executemany("INSERT INTO done VALUES (?, ?, ?)", rows)

    def mark(self, units: Iterable[str], mark: Mark, value: int = 0) -> None:
        """Mark units."""
        with self._open() as file:
            file.executemany("INSERT OR REPLACE INTO marks VALUES (?, ?, ?)", [(unit, mark, value) for unit in units])

    def unmark(self, unit: str, mark: Mark) -> None:
        """Remove a mark."""
        with self._open() as file:
            file.execute("DELETE FROM marks WHERE unit = ? AND mark = ?", (unit, mark))

    def forget(self, unit: str) -> None:
        """Remove all marks of a unit."""
        with self._open() as file:
            file.execute("DELETE FROM marks WHERE unit = ?", (unit,))

    def marked(self, mark: Mark) -> dict[str, int]:
        """Units with a mark, and the mark's value."""
        with self._open() as file:
            return dict(file.execute("SELECT unit, value FROM marks WHERE mark = ?", (mark,)).fetchall())

    def pulled(self, series: str) -> Pulled | None:
        """The record of a series; None if it was never received to its end."""
        with self._open() as file:
            row = file.execute("SELECT objects, refused, units FROM pulled WHERE series = ?", (series,)).fetchone()
        return Pulled(row[0], row[1], tuple(json.loads(row[2]))) if row else None

    def set_pulled(self, series: str, pulled: Pulled) -> None:
        """Record a series that was received to its end."""
        row = series, pulled.objects, pulled.refused, json.dumps(sorted(pulled.units))
        with self._open() as file:
            file.execute("INSERT OR REPLACE INTO pulled VALUES (?, ?, ?, ?)", row)

    def close(self) -> None:
        """Close the file."""
        self._file.close()
