"""The series of a DICOMweb server (QIDO-RS); servers page, cap, refuse or repeat in different ways.

* `Wanted`: which series. * `Catalogue`: `studies`, `series` of a study, `instances` of a series, page by page.
* `value`, `uid_of`, `count_of`: parts of an entry in DICOM JSON.

If a server refuses a parameter (an open range of days, a modality, a field, a limit), the query is repeated without it
and the answer filtered here. Whatever may be missing is a doubt: the caller must not call the search complete.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from m3bind.errors import ConfigError
from m3bind.hospital.http import Page, Web
from m3bind.hospital.responses import ServerUnavailableError, WebError
from m3bind.modalities.formats.files import DICOM_KINDS

STUDY, SERIES, INSTANCE = "0020000D", "0020000E", "00080018"
_DAY, _KIND, _COUNT = "00080020", "00080060", "00201209"
_UID = re.compile(r"[0-9]+(\.[0-9]+)*")
_REFUSED = (400, 405, 406, 413, 414, 422, 501)  # of a parameter
_BEYOND = (*_REFUSED, 404, 416)  # of a page after the last one, by servers without empty pages
_EARLIEST, _LATEST = "19000101", "29991231"
_MAX_COUNT = 10_000_000  # objects of a series
PATIENCE = 3  # consecutive pages without new entries after which a search for studies ends
Doubt = Callable[[str, str], None]  # (UID or "", reason)


@dataclass(frozen=True)
class Wanted:
    """Which series to fetch. Days as 2020-01-31; both ends are included."""

    modality: str = ""  # DICOM code, e.g. CT; "" for all that a modality reads
    since: str = ""
    until: str = ""
    limit: int = 0  # series; 0: all
    page: int = 100  # studies per query

    def check(self) -> None:
        """Check the values.

        Raises:
            ConfigError: not a day, or a number out of range.
        """
        for day in (self.since, self.until):
            if day and not re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", day):
                raise ConfigError(f"{day!r}: write a day as 2020-01-31")
        if self.limit < 0 or not 1 <= self.page <= 5000:
            raise ConfigError("--limit is 0 or more, --page 1 to 5000")

    def days(self) -> tuple[str, str]:
        """First and last day as DICOM writes them; "" if open."""
        return self.since.replace("-", ""), self.until.replace("-", "")

    def queries(self) -> list[dict[str, str]]:
        """As QIDO-RS attributes of studies, in forms with fewer and fewer parameters."""
        first, last = self.days()
        kind = {"ModalitiesInStudy": self.modality} if self.modality else {}
        days = {"StudyDate": f"{first}-{last}"} if first or last else {}
        closed = {"StudyDate": f"{first or _EARLIEST}-{last or _LATEST}"} if days else {}
        return [days | kind, closed | kind, closed, kind, {}]


@dataclass(frozen=True)
class FoundSeries:
    """A series of a study, as reported by a server."""

    study: str
    uid: str
    count: int  # objects it should have, 0 if unknown


class _Search:
    """A search in forms with fewer and fewer parameters; the first that is not refused is used from then on."""

    def __init__(self, *forms: dict[str, str]) -> None:
        self._forms = [form for at, form in enumerate(forms) if form not in forms[:at]]
        self._at = 0

    @property
    def form(self) -> dict[str, str]:
        """The parameters in use."""
        return self._forms[self._at]

    def page(self, web: Web, path: str, offset: int) -> Page:
        """One page. Forms are changed on the first page only, so that pages belong together.

        WebError: no answer, or a refusal of all forms: the first of them.
        """
        refusal = None
        for at in range(self._at, len(self._forms) if not offset else self._at + 1):
            form = self._forms[at]
            try:
                page = web.search(path, {**form, "offset": offset} if "limit" in form else form)
            except WebError as error:
                if error.status not in _REFUSED:
                    raise
                refusal = refusal or error
            else:
                self._at = at
                return page
        raise refusal or AssertionError


class Catalogue:
    """The entries a server reports, without repetitions. Iteration raises WebError if the first page fails."""

    def __init__(self, web: Web, wanted: Wanted, doubt: Doubt) -> None:
        """`doubt` is called with each reason why something may be missing.

        Raises:
            ConfigError: `wanted` is invalid.
        """
        wanted.check()
        self._web, self._wanted, self._doubt = web, wanted, doubt
        limit = {"limit": str(wanted.page)}
        kind = {"Modality": wanted.modality} if wanted.modality else {}
        count = {"includefield": _COUNT}
        self._for_studies = _Search(*(form | limit for form in wanted.queries()), *wanted.queries())
        self._for_series = _Search(kind | count | limit, count | limit, kind | limit, limit, kind | count, {})
        self._for_instances = _Search(limit, {})
        self.other_kinds = 0  # series

    def studies(self) -> Iterator[str]:
        """UIDs of the wanted studies."""
        first, last = self._wanted.days()
        for uid, item in self._pages("studies", self._for_studies, STUDY, PATIENCE):
            day = re.sub(r"[^0-9]", "", value(item, _DAY))
            if (first or last) and len(day) != 8:
                if "StudyDate" in self._for_studies.form:
                    yield uid
                else:
                    self._doubt(uid, "a study without a day in the server's answer")
            elif (first or day) <= day <= (last or day):
                yield uid

    def series(self, study: str) -> Iterator[FoundSeries]:
        """The wanted series of a study."""
        wanted = self._wanted.modality.upper()
        for uid, item in self._pages(f"studies/{study}/series", self._for_series, SERIES, 1):
            code = value(item, _KIND).upper()
            if not code and wanted:
                self._doubt(uid, "a series without a modality in the server's answer; pull without --modality")
            elif code == wanted if wanted else (code in DICOM_KINDS or code in ("XC", "")):
                yield FoundSeries(study, uid, count_of(item))
            else:
                self.other_kinds += 1

    def instances(self, study: str, series: str) -> Iterator[str]:
        """UIDs of the objects of a series."""
        path = f"studies/{study}/series/{series}/instances"
        for uid, _ in self._pages(path, self._for_instances, INSTANCE, 1):
            yield uid

    def _pages(self, path: str, search: _Search, tag: str, patience: int) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """(UID, entry) of new entries, page by page, until `patience` consecutive pages have none."""
        seen: set[str] = set()
        offset = barren = first = 0
        for number in range(self._web.bounds.pages):
            try:
                page = search.page(self._web, path, offset)
            except (WebError, ServerUnavailableError) as error:
                if not number:
                    raise
                if error.status not in _BEYOND or first >= self._wanted.page:
                    self._doubt("", f"page {number + 1} of a search: {error}")
                return
            first = first or len(page.items)
            entries = [(uid_of(item, tag), item) for item in page.items]
            if invalid := sum(not uid for uid, _ in entries):
                self._doubt("", f"{invalid} entries of a search without a UID, or with an invalid one")
            new = {uid: item for uid, item in entries if uid and uid not in seen}
            if new and barren:
                self._doubt("", f"{barren} pages of a search with nothing new, before pages with new entries")
            seen.update(new)
            yield from new.items()
            barren = 0 if new else barren + 1
            if barren == patience or "limit" not in search.form:
                if page.more or (barren and len(page.items) == first == self._wanted.page):
                    self._doubt(
                        "", "the server has more than it shows, and no further pages; narrow --from and --until"
                    )
                return
            offset += len(page.items) or self._wanted.page
        self._doubt("", f"a search of more than {self._web.bounds.pages:,} pages")


def value(item: Mapping[str, Any], tag: str) -> str:
    """The first value of a tag in DICOM JSON without padding, "" if missing."""
    element = item.get(tag, item.get(tag.lower()))
    values = element.get("Value") if isinstance(element, dict) else None
    first = values[0] if isinstance(values, list) and values else values
    return str(first).strip(" \0\t\r\n") if isinstance(first, (str, int, float)) and not isinstance(first, bool) else ""


def uid_of(item: Mapping[str, Any], tag: str) -> str:
    """The UID of an entry; "" if it is invalid, so that nothing else ever becomes part of a path."""
    uid = value(item, tag)
    return uid if len(uid) <= 128 and _UID.fullmatch(uid) else ""


def count_of(item: Mapping[str, Any]) -> int:
    """How many objects a series should have; 0 if missing or invalid."""
    found = re.fullmatch(r"([0-9]{1,8})(\.0+)?", value(item, _COUNT))
    return int(found[1]) if found and int(found[1]) <= _MAX_COUNT else 0
