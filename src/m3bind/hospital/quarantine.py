"""Unusable files of a spool: the files in a folder, and a list with the reasons.

* `Quarantine`: takes units and single files, with one line in the list for each.
"""

import contextlib
import csv
import os
import threading
from pathlib import Path
from typing import TextIO

from m3bind.core.files import open_lock
from m3bind.errors import ConfigError, DiskError
from m3bind.hospital.late_objects import move_files
from m3bind.privacy import redact_path

LIST = "aside.csv"
FILES = "files"  # in the folder: single files that are damaged or external
NOTES = 16 << 20  # bytes of the list after which refused objects are no longer listed


class Quarantine:
    """`SPOOL/aside/` and `SPOOL/aside.csv`. Thread-safe."""

    def __init__(self, spool: Path) -> None:
        """Check that the list can be written.

        Raises:
            ConfigError: it is a folder, a link, a pipe or a device, or not writable.
        """
        self.folder, self._list = spool / "aside", spool / LIST
        self.count = 0  # units and files quarantined by this process
        self._guard = threading.Lock()
        try:
            self._open().close()
        except OSError as error:
            raise ConfigError(
                f"{self._list}: the list of quarantined files cannot be written ({error.strerror}); move it away"
            ) from None

    def _open(self) -> TextIO:
        """The list, opened for appending: a plain file of ours, not a link or a pipe."""
        return os.fdopen(open_lock(self._list, 0o644), "a", newline="", encoding="utf-8")

    def note(self, unit: str, modality: str, reason: str) -> None:
        """Add a line to the list, durable when this returns; lines without a unit are dropped in a list over `NOTES`.

        Raises:
            DiskError: it cannot be written.
        """
        try:
            with self._guard, self._open() as handle:
                writer = csv.writer(handle, lineterminator="\n")
                if handle.tell() > NOTES and not unit:
                    return
                if not handle.tell():
                    writer.writerow(["unit", "modality", "reason"])
                writer.writerow([unit, modality, reason])
                handle.flush()
                os.fsync(handle.fileno())
        except OSError as error:
            raise DiskError(f"{self._list}: cannot be written ({error.strerror}); free space") from error

    def take(self, folder: Path, modality: str, reason: str) -> None:
        """Quarantine the files of a unit, beside those that are already here.

        Raises:
            DiskError: the list cannot be written; the files stay where they are.
        """
        self.note(folder.name, modality, reason)
        move_files(folder, self.folder / folder.name)
        self.count += 1

    def take_file(self, path: Path, unit: str, reason: str) -> None:
        """Quarantine one file or folder that is damaged or in the wrong place. Nothing is raised."""
        self.count += 1
        number, target = 0, self.folder / FILES / path.name
        while target.exists() or target.is_symlink():
            number, target = number + 1, self.folder / FILES / f"{number}_{path.name}"
        with contextlib.suppress(DiskError):
            self.note(unit, "", f"{redact_path(path.name)}: {reason}")
        with contextlib.suppress(OSError):  # a folder without permissions stays
            target.parent.mkdir(exist_ok=True, mode=0o700)
            os.replace(path, target)
