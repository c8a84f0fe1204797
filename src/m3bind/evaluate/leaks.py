"""Data leakage: leaks between splits, near-duplicates, and data that a model was trained on.

* `split_leaks`: patients and file contents in both train and test. `near_duplicates`: test images almost equal to a
  training image. `seen_by`: data sets of a model's card. `LeakReport`: all findings as text.

Shapes: n test files, m training files, d dimension of the embeddings.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from m3bind.data.file_keys import file_key
from m3bind.data.records import BadRow, Record
from m3bind.errors import ReadError

_BLOCK = 1024


@dataclass(frozen=True)
class NearDuplicate:
    """Ids of a test file and of the most similar training file, with their cosine."""

    test: str
    train: str
    cosine: float


@dataclass
class LeakReport:
    """Findings; counts are of test files unless stated otherwise."""

    test: int
    patients: int = 0  # patients in train and in test
    quarantined: int = 0  # rows that would have leaked, excluded by the manifest's rules
    contents: int = 0  # test files with the bytes of a training file
    repeated: int = 0  # test files that occur more than once within test
    duplicates: list[NearDuplicate] = field(default_factory=list)
    threshold: float = 1.0  # minimum cosine of near-duplicates
    seen: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # model -> names on its card that match

    def report(self) -> str:
        """The findings as text, without patients and paths."""
        lines = [
            f"{self.test:,} test files",
            f"patients in both train and test: {self.patients}",
            f"rows that would have leaked, quarantined: {self.quarantined}",
            f"test files with the content of a training file: {self.contents}",
            f"test files that occur more than once in test: {self.repeated}",
            f"test files with a near-duplicate in train (cosine >= {self.threshold:.4f}): {len(self.duplicates)}",
        ]
        lines += [f"{name} has seen this data set in training: {', '.join(sets)}" for name, sets in self.seen.items()]
        return "\n".join(lines)


def split_leaks(records: Sequence[Record], bad: Sequence[BadRow] = ()) -> LeakReport:
    """Patients and contents shared by train and test; unreadable files are skipped."""
    train = [r for r in records if r.split == "train"]
    test = [r for r in records if r.split == "test"]
    both = {r.patient for r in train} & {r.patient for r in test}
    contents = Counter(key for record in test if (key := _content(record)) is not None)
    trained = {_content(record) for record in train}
    copied = sum(count for key, count in contents.items() if key in trained)
    repeated = sum(count for count in contents.values() if count > 1)
    quarantined = sum(row.kind == "that would leak" for row in bad)
    return LeakReport(len(test), len(both), quarantined, copied, repeated)


def _content(record: Record) -> str | None:
    try:
        return file_key(record.path)
    except (ReadError, OSError):
        return None


def near_duplicates(
    test: ArrayLike, train: ArrayLike, ids: tuple[Sequence[str], Sequence[str]], threshold: float | None = None
) -> tuple[list[NearDuplicate], float]:
    """Test files almost equal to a training file: unit rows (n, d), (m, d).

    The default threshold is the cosine that one in a thousand training files reaches with its nearest other training
    file, but at least .999: similarities that are usual within the data set do not count as copies.

    Returns:
        the pairs, most similar first, and the threshold.
    """
    rows, bank = np.asarray(test, dtype=np.float32), np.asarray(train, dtype=np.float32)
    if not len(rows) or not len(bank):
        return [], threshold or 1.0
    if threshold is None:
        some = np.linspace(0, len(bank) - 1, min(len(bank), 2000)).astype(np.int64)
        nearest, _ = _nearest(bank[some], bank, some)
        threshold = max(0.999, float(np.quantile(nearest, 0.999))) if len(bank) > 1 else 0.999
    best, place = _nearest(rows, bank)
    order = np.argsort(-best, kind="stable")
    found = [NearDuplicate(ids[0][i], ids[1][place[i]], float(best[i])) for i in order if best[i] >= threshold]
    return found, threshold


def _nearest(
    rows: NDArray[np.float32], bank: NDArray[np.float32], own: NDArray[np.int64] | None = None
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Highest cosine of each row with the bank (without its own place, if given), and its place."""
    best, place = np.empty(len(rows), np.float32), np.empty(len(rows), np.int64)
    for start in range(0, len(rows), _BLOCK):
        part = slice(start, start + _BLOCK)
        cosines = rows[part] @ bank.T
        if own is not None:
            cosines[np.arange(len(cosines)), own[part]] = -1
        place[part] = cosines.argmax(1)
        best[part] = np.take_along_axis(cosines, place[part][:, None], 1)[:, 0]
    return best, place


def seen_by(training_data: Sequence[str], names: Sequence[str]) -> tuple[str, ...]:
    """Entries of a model's training data that name the data set with these `names` (name, title and aliases).

    Names are compared without case and punctuation; "CheXpert" is seen in "CheXpert (reports)", not in "Che".
    """
    plain = [_plain(name) for name in names]
    pattern = re.compile("|".join(name for name in plain if len(name) >= 4) or "(?!)")
    return tuple(entry for entry in training_data if pattern.search(_plain(entry)))


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.casefold())
