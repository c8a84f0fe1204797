"""From a received file into the spool.

    file -> size, room (spool) -> de-identified (deidentify) -> mapping, if enabled -> spool

* `Intake`: when it returns, the object is safe on disk; `encoder` continues from there.
"""

import contextlib
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from m3bind.errors import DiskError
from m3bind.hospital.deidentify import Cleaned, Deidentifier, Refused
from m3bind.hospital.mapping import Mapping
from m3bind.hospital.spool import Spool
from m3bind.hospital.tags import STORAGE


class Intake:
    """Accepts files. Thread-safe; one object at a time is in memory."""

    def __init__(
        self,
        spool: Spool,
        deidentifier: Deidentifier,
        modalities: Sequence[str],
        mapping: Mapping | None = None,
        max_bytes: int = 1 << 30,
    ) -> None:
        """`modalities`: those of the space. `max_bytes`: of one object."""
        self.spool, self.max_bytes, self.counts = spool, max_bytes, Counter[str]()
        self._deidentifier, self._modalities, self._mapping = deidentifier, tuple(modalities), mapping
        self._one = threading.Lock()

    @property
    def kinds(self) -> list[str]:
        """Accepted SOP classes: those whose modality is in the space."""
        return [uid for uid, modality in STORAGE.items() if not modality or modality in self._modalities]

    def take(self, path: Path, series: str = "") -> Cleaned:
        """Accept an object; returns its stored form, which is durable when this returns.

        `series`: key of the series it must belong to; "": any.

        Raises:
            Refused: too large, no room, of an unsupported kind, not readable, of another series, or against the rules.
            DiskError: the mapping, the ledger or the list cannot be written.
        """
        try:
            try:
                size = path.stat().st_size
            except OSError as error:
                raise Refused("full", f"the received file is not on the disk ({error.strerror})") from None
            if size > self.max_bytes:
                raise Refused("full", f"larger than {self.max_bytes:,} bytes")
            with self._one:
                self.spool.room(size)
                cleaned = self._deidentifier.clean_file(path)
                if cleaned.origin.sop_class not in self.kinds:
                    raise Refused("kind", "of a modality that this space does not hold")
                if series and cleaned.series != series:
                    raise Refused("policy", "of another series than the requested one")
                if self._mapping is not None:
                    self._mapping.add(cleaned)
                self.spool.put(cleaned)
        except Refused as refused:
            self.refuse(refused.reason)
            raise
        self.counts["received"] += 1
        return cleaned

    def key(self, kind: str, uid: str) -> str:
        """The key of a series, an object or a study."""
        return self._deidentifier.names.key(kind, uid)

    def refuse(self, reason: str) -> None:
        """Count and list a refused object."""
        self.counts["refused"] += 1
        with contextlib.suppress(DiskError):  # its sender was not told that it is stored
            self.spool.quarantine.note("", "", reason)
