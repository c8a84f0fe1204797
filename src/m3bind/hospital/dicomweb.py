"""Series fetched from a DICOMweb server (QIDO-RS, WADO-RS) into the spool, from where they go into the index.

* `Pull`: finds series (`m3bind.hospital.qido`), fetches those that are not done yet, object by object to disk.

Stopped at any moment, the same call goes on: a series is done when all its items are in the index, or in the list with
a reason, and is fetched again only when that is not so or when the server has more of it than then. What a server does
wrong with one series, study or answer is counted and listed, and the rest goes on.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from m3bind.errors import DiskError
from m3bind.hospital.answers import Failing, ServerUnavailableError, WebError, content
from m3bind.hospital.deidentify import Refused
from m3bind.hospital.http import Web
from m3bind.hospital.intake import Intake
from m3bind.hospital.ledger import Pulled
from m3bind.hospital.multipart import objects_to_files
from m3bind.hospital.qido import Catalogue, FoundSeries, Wanted

_ANY = 'multipart/related; type="application/dicom"; transfer-syntax=*'
_ONE = f"{_ANY}, application/dicom; transfer-syntax=*"
_NO_USE = (401, 403)  # to ask for the objects of a series one by one
SUSPECT = 3  # series in a row that fail before the server is asked whether it is still there
HOPELESS = 3  # objects in a row that cannot be had, of a series that is fetched one by one
Place = Literal["index", "list", ""]  # where a unit is that has left the spool


@dataclass
class _Got:
    """What came of a series."""

    objects: set[str] = field(default_factory=set)  # keys of those that were taken
    units: set[str] = field(default_factory=set)
    refused: int = 0
    unfit: int = 0  # of the refused: of another kind, so no part of an item
    partial: str = ""  # why there may be more


class Pull:
    """One run over what is wanted. Iterated, it fetches series after series and yields what was done so far.

    Counted are "series" (fetched), "skipped" (done before), "objects", "refused", and, unless nothing is wrong,
    "incomplete" (series, fetched but with fewer objects than the server has), "failed" (series, studies and answers
    that could not be had), "listed before" (skipped series of which something is in the list), "other kinds".
    """

    def __init__(
        self, web: Web, intake: Intake, wanted: Wanted, place: Callable[[str], Place] = lambda unit: "index"
    ) -> None:
        """`place`: where a unit is that has left the spool; "" where it is lost and must be fetched again.

        Raises:
            ConfigError: `wanted` makes no sense.
        """
        self._web, self._intake, self._wanted, self._place = web, intake, wanted, place
        self._spool = intake.spool
        self._catalogue = Catalogue(web, wanted, self._doubt)
        self._tried = self._in_a_row = 0  # series; failures
        self.counts: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()  # why something is missing

    @property
    def whole(self) -> bool:
        """Whether everything that was asked for is here."""
        wrong = ("failed", "incomplete", "refused", "listed before")
        return not any(self.counts[name] for name in wrong)

    def __iter__(self) -> Iterator[Counter[str]]:
        """Run.

        Raises:
            WebError: the search cannot begin, or the server is gone.
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
        except ServerUnavailableError:
            raise
        except WebError as error:
            self._failed(self._intake.key("study", study), error)
        if self._catalogue.other_kinds:
            self.counts["other kinds"] = self._catalogue.other_kinds

    def _is_done(self, key: str, expected: int) -> bool:
        """Whether a series came to its end before, and all of it waits complete, is in the index or in the list."""
        before = self._spool.pulled(key)
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
        """One series into the spool; where the server cannot send it as a whole, object by object.

        Returns:
            Whether it came to its end.
        """
        got, end = _Got(), time.monotonic() + self._web.bounds.seconds
        expected = series.count
        try:
            try:
                self._receive(f"studies/{series.study}/series/{series.uid}", _ANY, key, got, end)
            except ServerUnavailableError:
                raise
            except WebError as error:
                if error.status in _NO_USE or 300 <= error.status < 400 or time.monotonic() >= end:
                    raise
                got.refused = got.unfit = 0
                expected = max(expected, self._one_by_one(series, key, got, end, error))
            if not got.objects and not got.refused:
                raise WebError("an answer without objects")
        except ServerUnavailableError:
            raise
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

    def _fetched(self, key: str, got: _Got, expected: int) -> None:
        """A series came to its end."""
        came = len(got.objects) + got.refused
        if came < expected and not got.partial:
            got.partial = f"{came} of {expected} objects came"
        if got.partial:
            self.counts["incomplete"] += 1
            self._list(key, got.partial)
        self._spool.complete({key} & got.units, max(0, expected - got.unfit))
        self._spool.complete(got.units - {key})
        self._spool.set_pulled(key, Pulled(came, got.refused, tuple(got.units)))
        self.counts["series"] += 1
        self._in_a_row = 0

    def _one_by_one(self, series: FoundSeries, key: str, got: _Got, end: float, why: WebError) -> int:
        """What can be had of a series object by object; how many objects the server has of it.

        Raises:
            WebError: nothing can be had this way either: `why` the series could not be had as a whole.
        """
        path = f"studies/{series.study}/series/{series.uid}/instances"
        try:
            uids = list(islice(self._catalogue.instances(series.study, series.uid), self._web.bounds.parts))
        except ServerUnavailableError:
            raise
        except WebError:
            raise why from None
        missing = in_a_row = 0
        for uid in uids:
            if self._intake.key("object", uid) in got.objects:
                continue
            try:
                self._receive(f"{path}/{uid}", _ONE, key, got, end)
                in_a_row = 0
            except ServerUnavailableError:
                raise
            except WebError as error:
                missing, in_a_row, why = missing + 1, in_a_row + 1, error
                if in_a_row == HOPELESS or time.monotonic() >= end:
                    raise
        if not got.objects:
            raise why
        if missing:
            got.partial = f"{missing} of {len(uids)} objects cannot be had: {why}"
        return len(uids)

    def _receive(self, path: str, accept: str, key: str, got: _Got, end: float) -> None:
        """The objects of an answer, again from its start where the connection broke; what was taken before counts."""
        refused: Counter[str] = Counter()
        bounds = self._web.bounds

        def read(answer: Any) -> None:
            refused.clear()
            if answer.status_code == 206:
                got.partial = "the server says that it sends only a part"
            kind = answer.headers.get("Content-Type", "")
            blocks = content(answer, self._spool.most + self._intake.most)
            for file in objects_to_files(blocks, kind, self._spool.incoming, self._intake.most, bounds.parts):
                refused[self._take(file, key, got)] += 1

        try:
            self._web.request("GET", path, read, {"Accept": accept, "Accept-Encoding": "identity"}, end=end)
        finally:
            got.refused += refused.total() - refused[""]
            got.unfit += refused["kind"]

    def _take(self, file: Path | None, key: str, got: _Got) -> str:
        """Why an object that came is refused, or ""; a full disk ends the whole."""
        if file is None:
            self._intake.counts["refused"] += 1
            self._spool.note(key, "", f"larger than {self._intake.most:,} bytes")
            return "full"
        try:
            cleaned = self._intake.take(file, key)
        except Refused as refused:
            if refused.why == "full" and file.stat().st_size <= self._intake.most:
                raise
            return refused.why
        finally:
            file.unlink(missing_ok=True)
        got.units.add(cleaned.unit)
        got.objects.add(cleaned.instance)
        return ""

    # -- what went wrong -----------------------------------------------------------------------------------------------

    def _failed(self, key: str, error: WebError) -> None:
        """Count and list what could not be had; after some in a row, ask whether the server is still there.

        Raises:
            ServerUnavailableError: it is not.
        """
        self.counts["failed"] += 1
        self._list(key, str(error))
        self._in_a_row = self._in_a_row + 1 if isinstance(error, Failing) else 0
        if self._in_a_row < SUSPECT:
            return
        try:
            self._web.search("studies", {"limit": 1}, tries=1)
        except WebError as gone:
            if not gone.status:
                raise ServerUnavailableError(
                    f"{self._web.host}: no longer answers ({error}); the same command goes on"
                ) from None
        self._in_a_row = 0

    def _doubt(self, uid: str, reason: str) -> None:
        """Something may be missing."""
        self.counts["failed"] += 1
        self._list(self._intake.key("series", uid) if uid else "", reason)

    def _list(self, key: str, reason: str) -> None:
        self._spool.note(key, "", reason)
        self.reasons[reason] += 1
        logging.getLogger(__name__).info("%s", reason)
