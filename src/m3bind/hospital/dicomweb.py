"""Series fetched from a DICOMweb server (QIDO-RS, WADO-RS) into the spool, from where they go into the index.

* `Wanted`: which. * `pull`: finds them page by page, fetches those that are not there yet, object by object to disk.

Stopped at any moment, the same call goes on: a series is done when all its items are in the index, or in the list with
a reason, and is fetched again only when that is not so or when the server has more of it than then.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m3bind.errors import ConfigError, DiskError
from m3bind.hospital.deidentify import Refused
from m3bind.hospital.http import Gone, Web, WebError
from m3bind.hospital.intake import Intake
from m3bind.hospital.ledger import Pulled
from m3bind.hospital.multipart import boundary_of, parts_to_files
from m3bind.modalities._files import DICOM_KINDS

_UID = re.compile(r"[0-9]+(\.[0-9]+)*")
_ANY = 'multipart/related; type="application/dicom"; transfer-syntax=*'
_STUDY, _SERIES, _KIND, _COUNT = "0020000D", "0020000E", "00080060", "00201209"


@dataclass(frozen=True)
class Wanted:
    """Which series to fetch. Days as 2020-01-31; both ends are included."""

    modality: str = ""  # DICOM code, e.g. CT; "" for all that a modality reads
    since: str = ""
    until: str = ""
    limit: int = 0  # series; 0: all
    page: int = 100  # studies per question

    def query(self) -> dict[str, str]:
        """As QIDO-RS attributes of studies.

        Raises:
            ConfigError: not a day, or numbers that make no sense.
        """
        for day in (self.since, self.until):
            if day and not re.fullmatch(r"\d{4}-\d\d-\d\d", day):
                raise ConfigError(f"{day!r}: write a day as 2020-01-31")
        if self.limit < 0 or not 1 <= self.page <= 5000:
            raise ConfigError("--limit is 0 or more, --page 1 to 5000")
        asked = {}
        if self.since or self.until:
            asked["StudyDate"] = "-".join(day.replace("-", "") for day in (self.since, self.until))
        if self.modality:
            asked["ModalitiesInStudy"] = self.modality
        return asked


def pull(
    web: Web, intake: Intake, wanted: Wanted, settled: Callable[[str], bool] = lambda unit: True
) -> Iterator[Counter[str]]:
    """Fetch series after series; yields what was done so far: "series", "skipped", "objects", "refused", "failed".

    `settled`: whether a unit that has left the spool is in the index, or in the list with its reason.

    Raises:
        WebError: the search fails, or the server is gone.
        Refused: the spool or the disk is full.
        ConfigError: `wanted` makes no sense.
    """
    counts: Counter[str] = Counter()

    def safe(unit: str) -> bool:
        return intake.spool.waits(unit) or settled(unit)

    for study, series, expected in _found(web, wanted, counts):
        key = intake.series_key(series)
        before = intake.spool.pulled(key)
        if expected and before and before.objects >= expected and all(map(safe, before.units)):
            counts["skipped"] += 1
        else:
            if wanted.limit and counts["series"] + counts["failed"] >= wanted.limit:
                return
            _fetch(web, intake, (study, series), key, counts)
        yield counts


def _found(web: Web, wanted: Wanted, counts: Counter[str]) -> Iterator[tuple[str, str, int]]:
    """(study, series, number of objects, 0 if unknown) of all series wanted, page after page."""
    query = wanted.query()
    seen: set[str] = set()
    offset = 0
    while True:
        page = web.json("studies", {**query, "limit": wanted.page, "offset": offset})
        studies = [uid for item in page if _UID.fullmatch(uid := _value(item, _STUDY)) and uid not in seen]
        for study in studies:
            seen.add(study)
            asked: dict[str, Any] = {"Modality": wanted.modality} if wanted.modality else {}
            for item in web.json(f"studies/{study}/series", {**asked, "includefield": _COUNT}):
                series, code = _value(item, _SERIES), _value(item, _KIND)
                fits = code == wanted.modality if wanted.modality else code in DICOM_KINDS or code == "XC"
                if _UID.fullmatch(series) and fits:
                    count = _value(item, _COUNT)
                    yield study, series, int(count) if count.isdigit() else 0
                elif not fits:
                    counts["other kinds"] += 1
        offset += len(page)
        if not studies:  # the last page, or a server that does not know pages and answered the same again
            return


def _fetch(web: Web, intake: Intake, uids: tuple[str, str], key: str, counts: Counter[str]) -> None:
    """One series into the spool, again from the start where the connection broke."""
    units: set[str] = set()
    got: Counter[str] = Counter()

    def read(answer: Any) -> None:
        got.clear()
        blocks = answer.iter_raw() if "Content-Encoding" not in answer.headers else answer.iter_bytes()
        boundary = boundary_of(answer.headers.get("Content-Type", ""))
        for path in parts_to_files(blocks, boundary, intake.spool.incoming, intake.most):
            _take(intake, path, units, got)

    try:
        web.request("GET", f"studies/{uids[0]}/series/{uids[1]}", read, {"Accept": _ANY})
    except Gone:
        raise
    except WebError as error:
        counts["failed"] += 1
        intake.spool.note("", "", str(error))
        return
    except OSError as error:
        raise DiskError(f"{intake.spool.folder}: cannot receive there ({error.strerror})") from error
    finally:
        counts["objects"] += got["objects"]
        counts["refused"] += got["refused"]
    intake.spool.complete(units)
    intake.spool.set_pulled(key, Pulled(sum(got.values()), got["refused"], tuple(units)))
    counts["series"] += 1


def _take(intake: Intake, path: Path | None, units: set[str], got: Counter[str]) -> None:
    """One object that came; those that break a rule are counted, a full disk ends the whole."""
    if path is None:
        got["refused"] += 1
        intake.counts["refused"] += 1
        intake.spool.note("", "", f"larger than {intake.most:,} bytes")
        return
    try:
        units.add(intake.accept(path))
        got["objects"] += 1
    except Refused as refused:
        if refused.why == "full" and path.stat().st_size <= intake.most:
            raise
        got["refused"] += 1
    finally:
        path.unlink(missing_ok=True)


def _value(item: dict[str, Any], tag: str) -> str:
    """The first value of a tag in DICOM JSON, "" without one."""
    values = item.get(tag, {}).get("Value") if isinstance(item.get(tag), dict) else None
    return str(values[0]) if isinstance(values, list) and values else ""
