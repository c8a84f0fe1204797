"""What a spool cannot use: the files in a folder, and a list that says why.

* `Quarantine`: takes units and single files; one line in the list for each.
"""

import contextlib
import csv
import os
import shutil
import threading
from pathlib import Path
from typing import TextIO

from m3bind.core.files import open_lock
from m3bind.errors import ConfigError, DiskError
from m3bind.privacy import redact_path

LIST = "aside.csv"
FILES = "files"  # in the folder: single files that are damaged or not ours
NOTES = 16 << 20  # bytes of the list after which refusals, which were promised nothing, are no longer listed


class Quarantine:
    """`SPOOL/aside/` and `SPOOL/aside.csv`. Threads may call it at the same time."""

    def __init__(self, spool: Path) -> None:
        """See that the list can be written.

        Raises:
            ConfigError: it is a folder, a link, a pipe or a device, or may not be written.
        """
        self.folder, self._list = spool / "aside", spool / LIST
        self.count = 0  # units and files taken by this process
        self._guard = threading.Lock()
        try:
            self._open().close()
        except OSError as error:
            raise ConfigError(
                f"{self._list}: the list of what cannot be used cannot be written ({error.strerror}); "
                "move away what stands there"
            ) from None

    def _open(self) -> TextIO:
        """The list, to be added to: a plain file of ours, no link and no pipe."""
        return os.fdopen(open_lock(self._list, 0o644), "a", newline="", encoding="utf-8")

    def note(self, unit: str, modality: str, reason: str) -> None:
        """One line of the list, durable when this returns; lines without a unit do not let it grow without end.

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
        """Take the files of a unit, beside those of it that are here already.

        Raises:
            DiskError: the list cannot be written; the files stay where they are.
        """
        self.note(folder.name, modality, reason)
        target = self.folder / folder.name
        target.mkdir(exist_ok=True, mode=0o700)
        for file in folder.iterdir():
            os.replace(file, target / file.name)
        shutil.rmtree(folder)  # renaming over another name of the same file left that
        self.count += 1

    def take_file(self, path: Path, unit: str, reason: str) -> None:
        """Take one file or folder that is damaged or does not belong where it lies. Nothing is raised."""
        self.count += 1
        number, target = 0, self.folder / FILES / path.name
        while target.exists() or target.is_symlink():
            number, target = number + 1, self.folder / FILES / f"{number}_{path.name}"
        with contextlib.suppress(DiskError):
            self.note(unit, "", f"{redact_path(path.name)}: {reason}")
        with contextlib.suppress(OSError):  # a folder without rights stays, and is left alone
            target.parent.mkdir(exist_ok=True, mode=0o700)
            os.replace(path, target)
