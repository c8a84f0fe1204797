"""Files that made an item of several objects, held for late ones: the item is then made again, of all of them.

* `Held`: a folder a unit, for a day and within a number of bytes; the oldest go first.
"""

import os
import shutil
import threading
import time
from collections.abc import Iterable
from pathlib import Path

HOURS = 24.0


class Held:
    """`SPOOL/held/`. Threads may call it at the same time."""

    def __init__(self, folder: Path, units: Iterable[Path]) -> None:
        """`units`: the folders that are there already."""
        self.folder = folder
        self._guard = threading.Lock()
        now, today = time.monotonic(), time.time()
        found = sorted((unit.stat().st_mtime, unit) for unit in units)
        self._known = {  # unit -> since when, bytes
            unit.name: (now - min(max(today - since, 0.0), HOURS * 3600), size_of(unit)) for since, unit in found
        }
        self.nbytes = sum(size for _, size in self._known.values())

    def take(self, folder: Path) -> None:
        """Take the files of a unit; those that are here already are replaced where the names are the same."""
        target = self.folder / folder.name
        target.mkdir(exist_ok=True, mode=0o700)
        for file in folder.iterdir():
            os.replace(file, target / file.name)
        shutil.rmtree(folder)  # renaming over another name of the same file left that
        os.utime(target)
        with self._guard:
            self._count(folder.name, None)
            self._count(folder.name, (time.monotonic(), size_of(target)))

    def expire(self, most: int) -> None:
        """Let go of what was held for long enough, and of the oldest while there are more than `most` bytes."""
        limit = time.monotonic() - HOURS * 3600
        while self._known and (self.nbytes > most or min(self._known.values())[0] < limit):
            self.drop_oldest()

    def drop_oldest(self) -> bool:
        """Let go of what is held longest; False where nothing is."""
        with self._guard:
            if not self._known:
                return False
            unit = min(self._known, key=self._known.__getitem__)
            self._count(unit, None)
        shutil.rmtree(self.folder / unit, ignore_errors=True)
        return True

    def _count(self, unit: str, entry: tuple[float, int] | None) -> None:
        """Add a unit, or take it away."""
        if entry is not None:
            self._known[unit] = entry
            self.nbytes += entry[1]
        elif unit in self._known:
            self.nbytes -= self._known.pop(unit)[1]


def size_of(unit: Path) -> int:
    """Bytes of the files of a unit."""
    return sum(path.lstat().st_size for path in unit.iterdir())
