"""Optional: the original objects of each item, in a private file. It identifies patients; protect it like the salt.

* `Mapping`: item -> the identifiers of its objects (`Origin`), in one SQLite file of mode 0600.
"""

import json
import os
import sqlite3
import stat
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Self

from m3bind.errors import ConfigError, DiskError
from m3bind.hospital.deidentify import Cleaned, Origin


class Mapping:
    """See above."""

    def __init__(self, path: Path, make: bool = True) -> None:
        """Open the file; with `make`, create it if missing.

        Raises:
            ConfigError: it is missing, others may read it, or it is not a mapping.
            DiskError: it cannot be created.
        """
        if not make and not path.exists():
            raise ConfigError(f"{path}: no mapping there; results need one, written by listen or pull with --mapping")
        if path.is_symlink():  # another user could choose the place that is written
            raise ConfigError(f"{path}: a link; name the file itself")
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | make * os.O_CREAT, 0o600)
            mode = os.fstat(descriptor).st_mode
            os.close(descriptor)
        except OSError as error:
            raise DiskError(f"{path}: cannot hold a mapping ({error.strerror})") from error
        if not stat.S_ISREG(mode):
            raise ConfigError(f"{path}: not a plain file; name another")
        if stat.S_IMODE(mode) & 0o077:
            raise ConfigError(f"{path}: others may read who the patients are; chmod 600 it")
        self._guard, self._path = threading.Lock(), path
        try:
            self._file = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            self._file.execute("PRAGMA synchronous=FULL")
            self._file.execute(
                "CREATE TABLE IF NOT EXISTS origins (item TEXT, object TEXT, origin TEXT, PRIMARY KEY (item, object))"
            )
        except sqlite3.DatabaseError as error:
            raise ConfigError(f"{path}: not a mapping ({error}); name another file") from error

    def add(self, cleaned: Cleaned) -> None:
        """Record the object of an item; durable when this returns.

        Raises:
            DiskError: the file cannot be written.
        """
        row = cleaned.unit, cleaned.instance, json.dumps(asdict(cleaned.origin))
        try:
            with self._guard:
                self._file.execute("INSERT OR REPLACE INTO origins VALUES (?, ?, ?)", row)
        except sqlite3.Error as error:
            raise DiskError(f"{self._path}: the mapping cannot be written ({error})") from None

    def origins(self, item: str) -> list[Origin]:
        """The original objects of an item.

        Raises:
            ConfigError: the item is not in this mapping, or the mapping is damaged.
        """
        try:
            with self._guard:
                found = self._file.execute("SELECT origin FROM origins WHERE item = ? ORDER BY object", (item,))
                origins = [Origin(**json.loads(text)) for (text,) in found]
        except (sqlite3.Error, ValueError, TypeError):
            raise ConfigError(f"{self._path}: damaged, or not a mapping; take it from a backup") from None
        if not origins:
            raise ConfigError("this mapping does not know the item; it was encoded without --mapping, or with another")
        return origins

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
