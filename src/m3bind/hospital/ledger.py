"""What a spool remembers beyond its files, in one SQLite file.

* `Ledger`: which objects made an item and what they held, which series were pulled, and how far waiting units are.
* `Pulled`: what is remembered of a series that `pull` received to its end.

Each call is durable when it returns. A damaged file is named, never guessed at.
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

    objects: int  # that came, those that were refused among them
    refused: int
    units: tuple[str, ...]  # what they are part of


class Ledger:
    """Threads may call it at the same time."""

    def __init__(self, path: Path) -> None:
        """Open or make the file.

        Raises:
            ConfigError: it is damaged, or something else.
        """
        self._path, self._guard = path, threading.Lock()
        try:
            self._file = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            self._file.execute("PRAGMA synchronous=FULL")
            found = self._file.execute("PRAGMA quick_check").fetchone()[0]
            if found != "ok":
                raise sqlite3.DatabaseError("its pages contradict each other")
            for table in _TABLES:
                self._file.execute(table)
            if "digest" not in [row[1] for row in self._file.execute("PRAGMA table_info(done)")]:  # of version 1
                self._file.execute("ALTER TABLE done ADD COLUMN digest TEXT DEFAULT ''")
        except sqlite3.Error as error:
            raise ConfigError(
                f"{path}: the ledger of the spool cannot be used ({error}). Move it away and start again: what waits "
                "is encoded all the same; only which objects were done before is then no longer known."
            ) from None

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """The connection, for one caller at a time, in one transaction.

        Raises:
            DiskError: the file cannot be read or written any more.
        """
        with self._guard:
            try:
                with self._file:
                    self._file.execute("BEGIN")
                    yield self._file
            except sqlite3.Error as error:
                raise DiskError(f"{self._path}: the ledger of the spool cannot be used ({error})") from None

    def done(self, unit: str) -> dict[str, str]:
        """The objects that made an item, each with the digest of its file ("" where none was taken)."""
        with self._open() as file:
            return dict(file.execute("SELECT object, digest FROM done WHERE unit = ?", (unit,)).fetchall())

    def finish(self, unit: str, objects: Mapping[str, str]) -> None:
        """Remember which objects made the item."""
        with self._open() as file:
            file.execute("DELETE FROM done WHERE unit = ?", (unit,))
            rows = [(unit, name, digest) for name, digest in objects.items()]
            file.executemany("INSERT INTO done VALUES (?, ?, ?)", rows)

    def mark(self, units: Iterable[str], mark: Mark, value: int = 0) -> None:
        """Mark units."""
        with self._open() as file:
            file.executemany("INSERT OR REPLACE INTO marks VALUES (?, ?, ?)", [(unit, mark, value) for unit in units])

    def unmark(self, unit: str, mark: Mark) -> None:
        """Take a mark away."""
        with self._open() as file:
            file.execute("DELETE FROM marks WHERE unit = ? AND mark = ?", (unit, mark))

    def forget(self, unit: str) -> None:
        """Take all marks of a unit away."""
        with self._open() as file:
            file.execute("DELETE FROM marks WHERE unit = ?", (unit,))

    def marked(self, mark: Mark) -> dict[str, int]:
        """Units with a mark, and its value."""
        with self._open() as file:
            return dict(file.execute("SELECT unit, value FROM marks WHERE mark = ?", (mark,)).fetchall())

    def pulled(self, series: str) -> Pulled | None:
        """What is remembered of a series; None: it was never received to its end."""
        with self._open() as file:
            found = file.execute("SELECT objects, refused, units FROM pulled WHERE series = ?", (series,)).fetchone()
        return Pulled(found[0], found[1], tuple(json.loads(found[2]))) if found else None

    def set_pulled(self, series: str, found: Pulled) -> None:
        """Remember a series that was received to its end."""
        row = series, found.objects, found.refused, json.dumps(sorted(found.units))
        with self._open() as file:
            file.execute("INSERT OR REPLACE INTO pulled VALUES (?, ?, ?, ?)", row)

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()
