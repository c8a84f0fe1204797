"""Series fetched from a DICOMweb server (QIDO-RS, WADO-RS) into the spool, from where they go into the index.

* `Pull`: finds series (`m3bind.hospital.qido`) and fetches those that are not done yet, object by object to disk.

Stopped at any moment, the same call resumes: a series is done when all its items are in the index, or in the list with
a reason, and is fetched again only if that is not so or if the server now has more of it. A fault of one series, study
or answer is counted and listed; the others continue.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from m3bind.errors import DiskError
from m3bind.hospital.deidentify import Refused
from m3bind.hospital.http import Request, Web
from m3bind.hospital.intake import Intake
from m3bind.hospital.multipart import objects_to_files
from m3bind.hospital.qido import Catalogue, FoundSeries, Wanted
from m3bind.hospital.responses import ServerFailureError, ServerUnavailableError, WebError, content
from m3bind.hospital.spool_database import Pulled

if TYPE_CHECKING:
    from httpx import Response

_ANY = 'multipart/related; type="application/dicom"; transfer-syntax=*'
_SINGLE = f"{_ANY}, application/dicom; transfer-syntax=*"
_FORBIDDEN = (401, 403)  # for the objects of a series one by one as well
SUSPECT = 3  # consecutive failed series after which the server's presence is checked
HOPELESS = 3  # consecutive failed objects after which a series that is fetched one by one is given up
Place = Literal["index", "list", ""]  # of a unit that has left the spool


@dataclass
class _Received:
    """What was received of a series."""

    objects: set[str] = field(default_factory=set)  # keys of the accepted ones
    units: set[str] = field(default_factory=set)
    refused: int = 0
    unfit: int = 0  # of the refused: of another kind, so no part of an item
    partial: str = ""  # why there may be more


class Pull:
    """One run over the wanted series. Iterated, it fetches series after series and yields the counts so far.

    Counts: "series" (fetched), "skipped" (done before), "objects", "refused", and, if there are any, "incomplete"
    (series, fetched but with fewer objects than the server has), "failed" (series, studies and answers that could not
    be fetched), "listed before" (skipped series with a line in the list), "other kinds".
    """

    def __init__(
        self, web: Web, intake: Intake, wanted: Wanted, place: Callable[[str], Place] = lambda unit: "index"
    ) -> None:
        """`place`: where a unit is that has left the spool; "" if it is lost and must be fetched again.

        Raises:
            ConfigError: `wanted` is invalid.
        """
        self._web, self._intake, self._wanted, self._place = web, intake, wanted, place
        self._spool = intake.spool
        self._catalogue = Catalogue(web, wanted, self._doubt)
        self._tried = self._in_a_row = 0  # series; consecutive failures
        self.counts: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()  # of missing objects, series and studies

    @property
    def whole(self) -> bool:
        """Whether everything wanted was received."""
        return not any(self.counts[name] for name in ("failed", "incomplete", "refused", "listed before"))

    def __iter__(self) -> Iterator[Counter[str]]:
        """Run.

        Raises:
            WebError: the search cannot begin.
            ServerUnavailableError: the server cannot be reached, or no longer answers.
            Refused: the spool or the disk is full.
        """
        seen: set[str] = set()
        for study in self._catalogue.studies():
            for series in self._series_of(study):
                key = self._intake.key("series", series.uid)
                if key in seen:
                    continue
                seen.add(key)
                if self._is_done(key, series.count):
                    self.counts["skipped"] += 1
                elif self._wanted.limit and self._tried >= self._wanted.limit:
                    return
                else:
                    self._tried += 1
                    if not self._fetch(series, key):
                        seen.discard(key)  # the server may have listed it under a study that is not its own
                yield self.counts

    def _series_of(self, study: str) -> Iterator[FoundSeries]:
        try:
            yield from self._catalogue.series(study)
        except WebError as error:
            self._failed(self._intake.key("study", study), error)
        if self._catalogue.other_kinds:
            self.counts["other kinds"] = self._catalogue.other_kinds

    def _is_done(self, key: str, expected: int) -> bool:
        """Whether a series was received to its end before, and all of it waits, is in the index or in the list."""
        before = self._spool.database.pulled(key)
        if before is None or not expected or before.objects < expected:
            return False
        places = [self._place(unit) for unit in before.units if not self._spool.waits(unit)]
        if "" in places:
            return False
        if before.refused or "list" in places:
            self.counts["listed before"] += 1
        return True

    # -- one series ----------------------------------------------------------------------------------------------------

    def _fetch(self, series: FoundSeries, key: str) -> bool:
        """One series into the spool, object by object if it cannot be sent as a whole; whether its end was received."""
        got, end = _Received(), time.monotonic() + self._web.bounds.seconds
        expected = series.count
        try:
            try:
                self._receive(f"studies/{series.study}/series/{series.uid}", _ANY, key, got, end)
            except WebError as error:
                if error.status in _FORBIDDEN or 300 <= error.status < 400 or time.monotonic() >= end:
                    raise
                got.refused = got.unfit = 0
                expected = max(expected, self._one_by_one(series, key, got, end, error))
            if not got.objects and not got.refused:
                raise WebError("an answer without objects")
        except WebError as error:
            self._failed(key, error)
            return False
        except OSError as error:
            raise DiskError(f"{self._spool.folder}: cannot receive there ({error.strerror})") from error
        else:
            self._fetched(key, got, expected)
            return True
        finally:
            self.counts["objects"] += len(got.objects)
            self.counts["refused"] += got.refused

    def _fetched(self, key: str, got: _Received, expected: int) -> None:
        """Record a series that was received to its end."""
        count = len(got.objects) + got.refused
        if count < expected and not got.partial:
            got.partial = f"{count} of {expected} objects came"
        if got.partial:
            self.counts["incomplete"] += 1
            self._list(key, got.partial)
        self._spool.complete({key} & got.units, max(0, expected - got.unfit))
        self._spool.complete(got.units - {key})
        self._spool.database.set_pulled(key, Pulled(count, got.refused, tuple(got.units)))
        self.counts["series"] += 1
        self._in_a_row = 0

    def _one_by_one(self, series: FoundSeries, key: str, got: _Received, end: float, why: WebError) -> int:
        """Fetch a series object by object; the number of objects the server has of it.

        WebError: this fails as well: `why` the series could not be fetched as a whole.
        """
        path = f"studies/{series.study}/series/{series.uid}/instances"
        try:
            uids = list(islice(self._catalogue.instances(series.study, series.uid), self._web.bounds.parts))
        except WebError:
            raise why from None
        missing = in_a_row = 0
        for uid in uids:
            if self._intake.key("object", uid) in got.objects:
                continue
            try:
                self._receive(f"{path}/{uid}", _SINGLE, key, got, end)
                in_a_row = 0
            except WebError as error:
                missing, in_a_row, why = missing + 1, in_a_row + 1, error
                if in_a_row == HOPELESS or time.monotonic() >= end:
                    raise
        if not got.objects:
            raise why
        if missing:
            got.partial = f"{missing} of {len(uids)} objects cannot be had: {why}"
        return len(uids)

    def _receive(self, path: str, accept: str, key: str, got: _Received, end: float) -> None:
        """The objects of an answer, from its start again if the connection broke; accepted objects count once."""
        refused: Counter[str] = Counter()

        def read(answer: "Response") -> None:
            refused.clear()
            if answer.status_code == 206:
                got.partial = "the server says that it sends only a part"
            kind, maximum = answer.headers.get("Content-Type", ""), self._intake.max_bytes
            blocks = content(answer, self._spool.max_bytes + maximum)
            for file in objects_to_files(blocks, kind, self._spool.incoming, maximum, self._web.bounds.parts):
                refused[self._take(file, key, got)] += 1

        headers = {"Accept": accept, "Accept-Encoding": "identity"}
        try:
            self._web.request(Request("GET", path, headers), read, end=end)
        finally:
            got.refused += refused.total() - refused[""]
            got.unfit += refused["kind"]

    def _take(self, file: Path | None, key: str, got: _Received) -> str:
        """Why a received object is refused, or ""; a full disk ends the run."""
        if file is None:
            self._intake.counts["refused"] += 1
            self._spool.quarantine.note(key, "", f"larger than {self._intake.max_bytes:,} bytes")
            return "full"
        try:
            cleaned = self._intake.take(file, key)
        except Refused as refused:
            if refused.why == "full" and file.stat().st_size <= self._intake.max_bytes:
                raise
            return refused.why
        finally:
            file.unlink(missing_ok=True)
        got.units.add(cleaned.unit)
        got.objects.add(cleaned.instance)
        return ""

    # -- faults --------------------------------------------------------------------------------------------------------

    def _failed(self, key: str, error: WebError) -> None:
        """Count and list a failure; after some in a row, ServerUnavailableError if the server no longer answers."""
        self.counts["failed"] += 1
        self._list(key, str(error))
        self._in_a_row = self._in_a_row + 1 if isinstance(error, ServerFailureError) else 0
        if self._in_a_row < SUSPECT:
            return
        try:
            self._web.search("studies", {"limit": 1}, tries=1)
        except (WebError, ServerUnavailableError) as gone:
            if not gone.status:
                raise ServerUnavailableError(
                    f"{self._web.host}: no longer answers ({error}); the same command resumes"
                ) from None
        self._in_a_row = 0

    def _doubt(self, uid: str, reason: str) -> None:
        """Count and list that a series, or a part of the search, may be missing."""
        self.counts["failed"] += 1
        self._list(self._intake.key("series", uid) if uid else "", reason)

    def _list(self, key: str, reason: str) -> None:
        self._spool.quarantine.note(key, "", reason)
        self.reasons[reason] += 1
        logging.getLogger(__name__).info("%s", reason)
