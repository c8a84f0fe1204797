"""Normalisation of table cells from spreadsheets, databases and pandas.

* `plain`: a cell as text; `identifier`: the id of a person, visit or item; `key`: equal for spellings of one label.
* `column`: a column's name. `one_spelling`: the spelling to use for each label with several spellings.
* `lost_digits`: whether a spreadsheet shortened an identifier.
* `path_spellings`: the paths that a cell may mean, for any separators and composition of accented letters.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from pathlib import Path, PurePosixPath

_INVISIBLE = re.compile("[\u200b-\u200f\u2060\ufeff\u00ad]")
# Written by programs for "no value". "none" and "na" in lower case may be words; pandas treats them as such, too.
_EMPTY = frozenset(("nan", "-nan", "null", "n/a", "#n/a", "#n/a n/a", "#na", "<na>", "nat", "1.#qnan", "-1.#ind"))
_EMPTY_AS_WRITTEN = frozenset(("NA", "None"))
_NUMBER = re.compile(r"[+-]?\d+(?:\.\d*)?(?:[eE][+-]?\d{1,3})?")
_LOST = re.compile(r"\d\.\d+[eE]\+?\d{2,3}")  # spreadsheet format of a number with many digits


@lru_cache(maxsize=1024)
def column(name: str) -> str:
    """A column's name without case, outer spaces and invisible characters."""
    return " ".join(_INVISIBLE.sub("", unicodedata.normalize("NFC", name)).split()).casefold()


@lru_cache(maxsize=1 << 16)
def plain(cell: str) -> str:
    """A cell's text: composed letters (NFC), single spaces, no invisible characters; "" for "nan", "N/A" etc."""
    text = " ".join(_INVISIBLE.sub("", unicodedata.normalize("NFC", cell)).split())
    return "" if text.casefold() in _EMPTY or text in _EMPTY_AS_WRITTEN else text


def identifier(cell: str) -> str:
    """An id of a person or item: `plain`, and 10001.0, 1.0001e4 and '10001 are all "10001".

    Leading zeros are part of a name: "007" is not "7".
    """
    text = plain(unicodedata.normalize("NFKC", cell))
    if re.fullmatch(r"'\d+", text):  # spreadsheet notation of digits as text
        text = text[1:]
    return _whole(text) or text


@lru_cache(maxsize=1 << 16)
def key(label: str) -> str:
    """Equal for two spellings of one label: without case and extra spaces, 1.0 as 1."""
    text = plain(plain(label).casefold())
    return _whole(text) or text


def _whole(text: str) -> str:
    """The digits of an integer written as a decimal; "" for other texts, and for plain digits."""
    if len(text) > 40 or text.isdigit() or not _NUMBER.fullmatch(text):
        return ""
    try:
        value = Decimal(text)
    except InvalidOperation:
        return ""
    return str(int(value)) if value == value.to_integral_value() and abs(value) < Decimal(10) ** 30 else ""


def lost_digits(cell: str) -> bool:
    """Whether an identifier is a number that a spreadsheet shortened ("1.23457E+11"): others may have the same text."""
    return _LOST.fullmatch(cell.strip()) is not None


def one_spelling(counts: Mapping[str, int]) -> tuple[dict[str, str], list[str]]:
    """The spelling to use instead of each variant, and a sentence on each such group.

    The most frequent spelling of a group (same `key`) is used, the first of several. `counts`: rows of each label, in
    the order of their first appearance.
    """
    groups: dict[str, Counter[str]] = {}
    for label, count in counts.items():
        groups.setdefault(key(label), Counter())[label] += count
    use: dict[str, str] = {}
    notes = []
    for spellings in groups.values():
        (best, _), *others = spellings.most_common()
        use |= {other: best for other, _ in others}
        if others:
            written = ", ".join(repr(label[:40]) for label, _ in [(best, 0), *others][:5])
            notes.append(f"{written} are taken as one label, {best[:40]!r} ({spellings.total()} rows)")
    return use, notes


# --- paths ------------------------------------------------------------------------------------------------------------


def path_spellings(base: Path, text: str, endings: Sequence[str] = ()) -> Iterator[str]:
    """Interpretations of a cell as a path below `base`, the literal one first.

    The others: "/" for backslashes, and existing names with the same letters in another composition (NFC, NFD);
    `endings` may be missing in the cell.
    """
    yield text
    slashed = text.replace("\\", "/")
    if slashed != text:
        yield slashed
    if not text.isascii():
        existing = _by_letters(base, slashed, endings)
        if existing is not None:
            yield existing


def _by_letters(base: Path, text: str, endings: Sequence[str]) -> str | None:
    """The existing path with the letters of `text`, each part as on disk; None if missing."""
    place = base
    *folders, last = PurePosixPath(text).parts
    for part in folders:
        name = _names_of(place).get(unicodedata.normalize("NFC", part))
        if name is None:
            return None
        place = place / name
    names = _names_of(place)
    for ending in ("", *endings):
        name = names.get(unicodedata.normalize("NFC", last) + ending)
        if name is not None:
            return str(place.relative_to(base) / name.removesuffix(ending))
    return None


def _names_of(folder: Path) -> Mapping[str, str]:
    """The names in a folder by their composed form; empty if it is not a folder."""
    try:
        return _listed(folder, folder.stat().st_mtime_ns)
    except OSError:
        return {}


@lru_cache(maxsize=64)
def _listed(folder: Path, _changed: int) -> Mapping[str, str]:
    return {unicodedata.normalize("NFC", path.name): path.name for path in folder.iterdir()}
