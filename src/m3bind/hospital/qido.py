"""Which series a DICOMweb server has (QIDO-RS), from servers that page, cap, refuse or repeat as they like.

* `Wanted`: which series. * `Catalogue`: `studies`, `series` of a study, `instances` of a series, page by page.

A server that refuses a parameter (a range of days that is open, a modality, a field, a limit) is asked again without
it, and the answer is sorted out here. Whatever may be missing is a doubt: the caller must not call the search complete.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from m3bind.errors import ConfigError
from m3bind.hospital.answers import WebError
from m3bind.hospital.http import Page, Web
from m3bind.modalities.formats.files import DICOM_KINDS

STUDY, SERIES, INSTANCE = "0020000D", "0020000E", "00080018"
_DAY, _KIND, _COUNT = "00080020", "00080060", "00201209"
_UID = re.compile(r"[0-9]+(\.[0-9]+)*")
_REFUSED = (400, 405, 406, 413, 414, 422, 501)  # of a parameter
_BEYOND = (*_REFUSED, 404, 416)  # of a page behind the last one, by servers that have no empty pages
_EARLIEST, _LATEST = "19000101", "29991231"
_MOST = 10_000_000  # objects of a series
PATIENCE = 3  # pages without anything new in a row, after which a search for studies is over
Doubt = Callable[[str, str], None]  # (UID it is about or "", reason)


@dataclass(frozen=True)
class Wanted:
    """Which series to fetch. Days as 2020-01-31; both ends are included."""

    modality: str = ""  # DICOM code, e.g. CT; "" for all that a modality reads
    since: str = ""
    until: str = ""
    limit: int = 0  # series; 0: all
    page: int = 100  # studies per question

    def check(self) -> None:
        """See that it makes sense.

        Raises:
            ConfigError: not a day, or numbers that make no sense.
        """
        for day in (self.since, self.until):
            if day and not re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", day):
                raise ConfigError(f"{day!r}: write a day as 2020-01-31")
        if self.limit < 0 or not 1 <= self.page <= 5000:
            raise ConfigError("--limit is 0 or more, --page 1 to 5000")

    def days(self) -> tuple[str, str]:
        """First and last day as DICOM writes them; "" where it is open."""
        return self.since.replace("-", ""), self.until.replace("-", "")

    def queries(self) -> list[dict[str, str]]:
        """As QIDO-RS attributes of studies, in forms that ask for less and less."""
        first, last = self.days()
        kind = {"ModalitiesInStudy": self.modality} if self.modality else {}
        asked = {"StudyDate": f"{first}-{last}"} if first or last else {}
        closed = {"StudyDate": f"{first or _EARLIEST}-{last or _LATEST}"} if asked else {}
        return [{**asked, **kind}, {**closed, **kind}, closed, kind, {}]


@dataclass(frozen=True)
class FoundSeries:
    """A series of a study, as a server tells it."""

    study: str
    uid: str
    count: int  # objects it should have, 0 if unknown


@dataclass
class _Question:
    """A search in forms that ask for less and less; the first that is not refused is used from then on."""

    forms: list[dict[str, str]]
    at: int = 0

    @property
    def form(self) -> dict[str, str]:
        """What is asked now."""
        return self.forms[self.at]

    def ask(self, web: Web, path: str, offset: int) -> Page:
        """One page. Forms are changed on the first page only, so that pages belong together.

        Raises:
            WebError: no answer, or a refusal of all forms: the first of them.
        """
        refusal = None
        for at in range(self.at, len(self.forms) if not offset else self.at + 1):
            form = self.forms[at]
            try:
                found = web.search(path, {**form, "offset": offset} if "limit" in form else form)
            except WebError as error:
                if error.status not in _REFUSED:
                    raise
                refusal = refusal or error
            else:
                self.at = at
                return found
        raise refusal or AssertionError


class Catalogue:
    """What a server says it has. Told twice, an entry counts once."""

    def __init__(self, web: Web, wanted: Wanted, doubt: Doubt) -> None:
        """`doubt` is called with each reason why something may be missing.

        Raises:
            ConfigError: `wanted` makes no sense.
        """
        wanted.check()
        self._web, self._wanted, self._doubt = web, wanted, doubt
        limit = {"limit": str(wanted.page)}
        modality = {"Modality": wanted.modality} if wanted.modality else {}
        count = {"includefield": _COUNT}
        self._for_studies = _forms([*({**form, **limit} for form in wanted.queries()), *wanted.queries()])
        self._for_series = _forms(
            [
                {**modality, **count, **limit},
                {**count, **limit},
                {**modality, **limit},
                limit,
                {**modality, **count},
                {},
            ]
        )
        self._for_instances = _forms([limit, {}])
        self.other_kinds = 0  # series

    def studies(self) -> Iterator[str]:
        """UIDs of the studies wanted.

        Raises:
            WebError: the first page cannot be had.
        """
        first, last = self._wanted.days()
        for uid, item in self._pages("studies", self._for_studies, STUDY, PATIENCE):
            day = re.sub(r"[^0-9]", "", value(item, _DAY))
            if (first or last) and len(day) != 8:
                if "StudyDate" in self._for_studies.form:
                    yield uid
                else:
                    self._doubt(uid, "a study whose day the server does not say")
            elif (first or day) <= day <= (last or day):
                yield uid

    def series(self, study: str) -> Iterator[FoundSeries]:
        """The series of a study that are wanted.

        Raises:
            WebError: the first page cannot be had.
        """
        wanted = self._wanted.modality.upper()
        for uid, item in self._pages(f"studies/{study}/series", self._for_series, SERIES, 1):
            code = value(item, _KIND).upper()
            if not code and wanted:
                self._doubt(uid, "a series whose modality the server does not say; pull without --modality")
            elif code == wanted if wanted else (code in DICOM_KINDS or code in ("XC", "")):
                yield FoundSeries(study, uid, count_of(item))
            else:
                self.other_kinds += 1

    def instances(self, study: str, series: str) -> Iterator[str]:
        """UIDs of the objects of a series.

        Raises:
            WebError: the first page cannot be had.
        """
        path = f"studies/{study}/series/{series}/instances"
        for uid, _ in self._pages(path, self._for_instances, INSTANCE, 1):
            yield uid

    def _pages(
        self, path: str, question: _Question, tag: str, patience: int
    ) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """(UID, entry) of what is new on page after page, until `patience` pages in a row bring nothing new."""
        seen: set[str] = set()
        offset = barren = first = 0
        for number in range(self._web.bounds.pages):
            try:
                page = question.ask(self._web, path, offset)
            except WebError as error:
                if not number:
                    raise
                if error.status not in _BEYOND or first >= self._wanted.page:
                    self._doubt("", f"page {number + 1} of a search: {error}")
                return
            first = first or len(page.items)
            found = [(uid, item) for item in page.items if (uid := uid_of(item, tag)) not in seen or not uid]
            strange = sum(not uid for uid, _ in found)
            if strange:
                self._doubt("", f"{strange} entries of a search without a UID, or with one that is none")
            new = {uid: item for uid, item in found if uid}
            if new and barren:
                self._doubt("", f"{barren} pages of a search that brought nothing new, with more behind them")
            seen.update(new)
            yield from new.items()
            barren = 0 if new else barren + 1
            if barren == patience or "limit" not in question.form:
                if page.more or (barren and len(page.items) == first == self._wanted.page):
                    self._doubt(
                        "", "the server has more than it shows, and no further pages; narrow --from and --until"
                    )
                return
            offset += len(page.items) or self._wanted.page
        self._doubt("", f"a search of more than {self._web.bounds.pages:,} pages")


def _forms(forms: list[dict[str, str]]) -> _Question:
    """Each form once."""
    return _Question([form for at, form in enumerate(forms) if form not in forms[:at]])


def value(item: Mapping[str, Any], tag: str) -> str:
    """The first value of a tag in DICOM JSON without padding, "" without one."""
    found = item.get(tag, item.get(tag.lower()))
    values = found.get("Value") if isinstance(found, dict) else None
    first = values[0] if isinstance(values, list) and values else values
    return str(first).strip(" \0\t\r\n") if isinstance(first, (str, int, float)) and not isinstance(first, bool) else ""


def uid_of(item: Mapping[str, Any], tag: str) -> str:
    """The UID of an entry; "" for what is none, so that nothing else ever becomes part of a path."""
    found = value(item, tag)
    return found if len(found) <= 128 and _UID.fullmatch(found) else ""


def count_of(item: Mapping[str, Any]) -> int:
    """How many objects a series should have; 0 for what is no such number."""
    found = re.fullmatch(r"([0-9]{1,8})(\.0+)?", value(item, _COUNT))
    return int(found[1]) if found and int(found[1]) <= _MOST else 0
