"""Files of encoded items of several objects, held for late objects: the item is then encoded again from all of them.

* `LateObjects`: a folder per unit, for a day and within a number of bytes; the oldest are removed first.
* `move_files`: a unit's files into another folder. * `size_of`: their bytes.
"""

import os
import shutil
import threading
import time
from collections.abc import Iterable
from pathlib import Path

HOURS = 24.0


class LateObjects:
    """`SPOOL/held/`. Thread-safe."""

    def __init__(self, folder: Path, units: Iterable[Path]) -> None:
        """`units`: the folders that are already there."""
        self.folder = folder
        self._guard = threading.Lock()
        now, today = time.monotonic(), time.time()
        self._known: dict[str, tuple[float, int]] = {}  # unit -> start, bytes
        for since, unit in sorted((unit.stat().st_mtime, unit) for unit in units):
            self._known[unit.name] = now - min(max(today - since, 0.0), HOURS * 3600), size_of(unit)
        self.nbytes = sum(size for _, size in self._known.values())

    def take(self, folder: Path) -> None:
        """Take the files of a unit; files of the same name are replaced."""
        target = self.folder / folder.name
        move_files(folder, target)
        os.utime(target)
        with self._guard:
            self._count(folder.name, None)
            self._count(folder.name, (time.monotonic(), size_of(target)))

    def expire(self, max_bytes: int) -> None:
        """Remove units that were held for long enough, and the oldest while there are more than `max_bytes`."""
        limit = time.monotonic() - HOURS * 3600
        while self._known and (self.nbytes > max_bytes or min(self._known.values())[0] < limit):
            self.drop_oldest()

    def drop_oldest(self) -> bool:
        """Remove the oldest unit; False if the folder is empty."""
        with self._guard:
            if not self._known:
                return False
            unit = min(self._known, key=self._known.__getitem__)
            self._count(unit, None)
        shutil.rmtree(self.folder / unit, ignore_errors=True)
        return True

    def _count(self, unit: str, entry: tuple[float, int] | None) -> None:
        """Add a unit, or remove it."""
        if entry is not None:
            self._known[unit] = entry
            self.nbytes += entry[1]
        elif unit in self._known:
            self.nbytes -= self._known.pop(unit)[1]


def move_files(folder: Path, target: Path) -> None:
    """Move the files of a unit into `target`, over files of the same name, and remove the unit's folder."""
    target.mkdir(exist_ok=True, mode=0o700)
    for file in folder.iterdir():
        os.replace(file, target / file.name)
    shutil.rmtree(folder)  # a hard link to the same file is left over by the renaming


def size_of(unit: Path) -> int:
    """Bytes of the files of a unit."""
    return sum(path.lstat().st_size for path in unit.iterdir())
