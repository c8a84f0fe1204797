"""What a figure may owe to having been seen: leaks between splits, near-duplicates, and data a model was trained on.

* `split_leaks`: patients and file contents on both sides. * `near_duplicates`: test images that a training image almost
  equals. * `seen_by`: data sets of a model's card. * `LeakReport`: all of it for people.

Shapes: n test files, m training files, d dimension of the embeddings.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from m3bind.data.cache import file_key
from m3bind.data.records import BadRow, Record
from m3bind.errors import ReadError

_BLOCK = 1024


@dataclass(frozen=True)
class NearDuplicate:
    """A test file and the training file most like it, by their ids, with their cosine."""

    test: str
    train: str
    cosine: float


@dataclass
class LeakReport:
    """What was found; counts are of test files (and of patients where it says so)."""

    test: int
    patients: int = 0  # in train and in test
    set_aside: int = 0  # rows that would have leaked, which the manifest's rules took out
    contents: int = 0  # test files whose bytes are a training file's
    repeated: int = 0  # test files that occur more than once within test
    twins: list[NearDuplicate] = field(default_factory=list)
    threshold: float = 1.0  # of the cosine from which on two files are near-duplicates
    seen: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # model -> names on its card that match

    def report(self) -> str:
        """Sentences for people; no patients and no paths."""
        lines = [
            f"{self.test:,} test files",
            f"patients in both train and test: {self.patients}",
            f"rows that would have leaked, set aside: {self.set_aside}",
            f"test files with the content of a training file: {self.contents}",
            f"test files that occur more than once in test: {self.repeated}",
            f"test files with a near-duplicate in train (cosine >= {self.threshold:.4f}): {len(self.twins)}",
        ]
        lines += [f"{name} has seen this data set in training: {', '.join(sets)}" for name, sets in self.seen.items()]
        return "\n".join(lines)


def split_leaks(records: Sequence[Record], bad: Sequence[BadRow] = ()) -> LeakReport:
    """Patients and contents shared by train and test; files that cannot be read are not looked at."""
    train, test = ([r for r in records if r.split == split] for split in ("train", "test"))
    both = {r.patient for r in train} & {r.patient for r in test}
    contents: dict[str, list[Record]] = defaultdict(list)
    for record in test:
        if (key := _content(record)) is not None:
            contents[key].append(record)
    trained = {key for record in train if (key := _content(record)) is not None}
    copied = sum(len(found) for key, found in contents.items() if key in trained)
    repeated = sum(len(found) for found in contents.values() if len(found) > 1)
    aside = sum(row.kind == "that would leak" for row in bad)
    return LeakReport(len(test), len(both), aside, copied, repeated)


def _content(record: Record) -> str | None:
    try:
        return file_key(record.path)
    except (ReadError, OSError):
        return None


def near_duplicates(
    test: ArrayLike, train: ArrayLike, ids: tuple[Sequence[str], Sequence[str]], threshold: float | None = None
) -> tuple[list[NearDuplicate], float]:
    """Test files that a training file almost equals: unit rows (n, d), (m, d).

    Without `threshold` it is the cosine that one in a thousand training files reaches with its own nearest other
    training file, but at least .999: what is usual within the data set does not count as a copy.

    Returns:
        the pairs, most alike first, and the threshold.
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
    """Highest cosine of each row with the bank (its own place, where given, left out), and where."""
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
    """Entries of a model's training data that name the data set called `names` (its name, title and other names).

    Names are compared without case and punctuation; "CheXpert" is seen in "CheXpert (reports)", not in "Che".
    """
    wanted = [plain for name in names if len(plain := _plain(name)) >= 4]
    return tuple(entry for entry in training_data if any(name in _plain(entry) for name in wanted))


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.casefold())
