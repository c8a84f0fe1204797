"""The way of an object from a file that somebody sent into the spool.

    file -> size, room (spool) -> without names (deidentify) -> mapping, where asked for -> spool

* `Intake`: where it returns, the object is safe on disk; `encoder` goes on from there.
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
    """Takes files in. Threads may call it at the same time; one object at a time is in memory."""

    def __init__(
        self,
        spool: Spool,
        deidentifier: Deidentifier,
        modalities: Sequence[str],
        mapping: Mapping | None = None,
        most: int = 1 << 30,
    ) -> None:
        """`modalities`: those of the space. `most`: bytes of one object."""
        self.spool, self.most, self.counts = spool, most, Counter[str]()
        self._deidentifier, self._modalities, self._mapping = deidentifier, tuple(modalities), mapping
        self._one = threading.Lock()

    @property
    def kinds(self) -> list[str]:
        """SOP classes of objects that can be taken: those of which the space holds the modality."""
        return [uid for uid, modality in STORAGE.items() if not modality or modality in self._modalities]

    def accept(self, path: Path) -> str:
        """`take`, for who asks only for the unit the object belongs to."""
        return self.take(path).unit

    def take(self, path: Path, series: str = "") -> Cleaned:
        """Take an object in; returns what was stored of it. It is durable when this returns.

        `series`: key of the one it must be part of; "": any.

        Raises:
            Refused: too large, no room, of a kind that is not taken, not readable, of another series, or against the
                rules.
            DiskError: the mapping, the ledger or the list cannot be written.
        """
        try:
            try:
                size = path.stat().st_size
            except OSError as error:
                raise Refused("full", f"what was received is not on the disk ({error.strerror})") from None
            if size > self.most:
                raise Refused("full", f"larger than {self.most:,} bytes")
            with self._one:
                self.spool.room(size)
                cleaned = self._deidentifier.clean_file(path)
                if cleaned.origin.sop_class not in self.kinds:
                    raise Refused("kind", "of a modality that this space does not hold")
                if series and cleaned.series != series:
                    raise Refused("policy", "of another series than the one that was asked for")
                if self._mapping is not None:
                    self._mapping.keep(cleaned)
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
        """Count and list an object that is not taken."""
        self.counts["refused"] += 1
        with contextlib.suppress(DiskError):  # it was promised nothing
            self.spool.note("", "", reason)
