"""Data leakage: leaks between splits, near-duplicates, and data that a model was trained on.

* `split_leaks`: patients and file contents in both train and test. `copies_of`: pairs of files that show the same, by
  `near_duplicates`. `seen_by`: data sets of a model's card. `LeakReport`: all findings of a modality; `Copy`: a pair.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from m3bind.data.records import SPLITS, BadRow, Record
from m3bind.evaluate.near_duplicates import NearDuplicate


@dataclass(frozen=True)
class Copy:
    """Two files with the same content. Rows are those of the manifest, their splits in the order of `SPLITS`."""

    rows: tuple[int, int]
    splits: tuple[str, str]
    places: tuple[int, int]  # positions in the records of the modality
    correlation: float  # of the registered contents; 1 for the same bytes
    flip: str = ""  # left-right, up-down, both
    same_bytes: bool = False
    same_patient: bool = False

    @property
    def between(self) -> bool:
        """Whether the files are in different splits."""
        return self.splits[0] != self.splits[1]


@dataclass
class LeakReport:
    """Findings about one modality; counts are of test files unless stated otherwise."""

    test: int
    patients: int = 0  # patients in train and in test
    quarantined: int = 0  # rows that would have leaked, excluded by the manifest's rules
    contents: int = 0  # test files with the bytes of a training file
    repeated: int = 0  # test files that occur more than once within test
    compared: int = 0  # files of all splits whose contents were compared
    skipped: int = 0  # files that cannot be read
    threshold: float = 1.0  # minimum correlation of near-duplicates
    copies: list[Copy] = field(default_factory=list)  # between splits first, then by correlation
    seen: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # model -> names on its card that match

    @property
    def leaked(self) -> bool:
        """Whether the splits share patients or contents, or a model was trained on the data set."""
        return bool(self.patients or self.contents or self.seen or any(copy.between for copy in self.copies))

    def pairs(self) -> dict[str, int]:
        """Number of near-duplicate pairs by their splits: "train and test", "within train" ..."""
        names = (" and ".join(copy.splits) if copy.between else f"within {copy.splits[0]}" for copy in self.copies)
        return dict(sorted(Counter(names).items()))

    def report(self) -> str:
        """The findings as text, without patients and paths."""
        counts = "; ".join(f"{name}: {count:,}" for name, count in self.pairs().items())
        lines = [
            f"{self.test:,} test files",
            f"patients in both train and test: {self.patients}",
            f"rows that would have leaked, quarantined: {self.quarantined}",
            f"test files with the content of a training file: {self.contents}",
            f"test files that occur more than once in test: {self.repeated}",
            f"{self.compared:,} files of all splits compared by content, {self.skipped:,} unreadable",
            f"near-duplicate pairs (correlation >= {self.threshold:g}): {counts or 'none'}",
        ]
        lines += [f"{name} has seen this data set in training: {', '.join(sets)}" for name, sets in self.seen.items()]
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """JSON values; files are given by the rows of the manifest."""
        content = asdict(self) | {"pairs": self.pairs(), "leaked": self.leaked}
        for copy in content["copies"]:
            del copy["places"]
        return content


def split_leaks(records: Sequence[Record], keys: Sequence[str | None], bad: Sequence[BadRow] = ()) -> LeakReport:
    """Patients and contents shared by train and test; `keys`: hash of each record's file, None if unreadable."""
    train = {r.patient for r in records if r.split == "train"}
    test = {r.patient for r in records if r.split == "test"}
    contents = Counter(key for r, key in zip(records, keys, strict=True) if r.split == "test" and key is not None)
    trained = {key for r, key in zip(records, keys, strict=True) if r.split == "train"}
    copied = sum(count for key, count in contents.items() if key in trained)
    repeated = sum(count for count in contents.values() if count > 1)
    quarantined = sum(row.kind == "that would leak" for row in bad)
    return LeakReport(sum(r.split == "test" for r in records), len(train & test), quarantined, copied, repeated)


def copies_of(
    records: Sequence[Record], contents: Sequence[Sequence[int]], pairs: Sequence[NearDuplicate]
) -> list[Copy]:
    """Pairs of files, between splits first: same bytes, and near-duplicates of their contents.

    `contents`: positions of the records of each distinct content; `pairs` are positions in it. Of records with the
    same bytes, one per split is paired with other contents, and the first of all with each of the others.
    """

    def copy(i: int, j: int, correlation: float, flip: str = "", same_bytes: bool = False) -> Copy:
        i, j = sorted((i, j), key=lambda place: (SPLITS.index(records[place].split), place))
        a, b = records[i], records[j]
        known = bool(a.patient) and a.patient == b.patient
        return Copy((a.row, b.row), (a.split, b.split), (i, j), correlation, flip, same_bytes, known)

    found = [
        copy(i, j, pair.correlation, pair.flip)
        for pair in pairs
        for i in _one_per_split(records, contents[pair.first])
        for j in _one_per_split(records, contents[pair.second])
    ]
    for places in contents:
        first, *others = sorted(places, key=lambda place: (SPLITS.index(records[place].split), place))
        found += [copy(first, other, 1.0, same_bytes=True) for other in others]
    return sorted(found, key=lambda copy: (not copy.between, -copy.correlation, copy.rows))


def _one_per_split(records: Sequence[Record], places: Sequence[int]) -> list[int]:
    return list({records[place].split: place for place in reversed(places)}.values())


def seen_by(training_data: Sequence[str], names: Sequence[str]) -> tuple[str, ...]:
    """Entries of a model's training data that name the data set with these `names` (name, title and aliases).

    Names are compared without case and punctuation; "CheXpert" is seen in "CheXpert (reports)", not in "Che".
    """
    plain = [_plain(name) for name in names]
    pattern = re.compile("|".join(name for name in plain if len(name) >= 4) or "(?!)")
    return tuple(entry for entry in training_data if pattern.search(_plain(entry)))


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.casefold())
