"""The distinct texts of a run, stored once; elsewhere a text is represented by its index.

* `TextTable`: texts by index, indices by text, both for many at a time. * `digests_of`: 128-bit hashes of texts.
* `DigestIndex`: positions of distinct hashes.

Shapes: n texts of a call, K distinct texts.
"""

from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from itertools import islice
from typing import overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from m3bind.data.batching import IntArray

Digests = NDArray[np.uint64]  # (n, 2)
BLOCK = 1 << 16  # texts handled as Python strings at a time


def digests_of(texts: Iterable[str]) -> Digests:
    """BLAKE2b of each text, (n, 2)."""
    parts = [blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest() for text in texts]
    return np.frombuffer(b"".join(parts), np.uint64).reshape(-1, 2)


class DigestIndex:
    """Distinct digests numbered in the order in which they are added: a hash table in arrays, 32 bytes per digest."""

    def __init__(self) -> None:
        self._digests: Digests = np.zeros((8, 2), np.uint64)  # the first `_count` rows
        self._count = 0
        self._slots: IntArray = np.full(16, -1, np.int64)  # numbers, by hash with linear probing; -1: free

    def __len__(self) -> int:
        return self._count

    @property
    def digests(self) -> Digests:
        """All digests by number, (K, 2)."""
        return self._digests[: self._count]

    def find(self, digests: Digests) -> IntArray:
        """(n,) numbers of digests (n, 2), -1 for unknown ones."""
        found = np.full(len(digests), -1, np.int64)
        left, slots = np.arange(len(digests)), self._home(digests)
        while len(left):
            held = self._slots[slots]
            same = (held >= 0) & (self._digests[held] == digests[left]).all(1)
            found[left[same]] = held[same]
            rest = (held >= 0) & ~same
            left, slots = left[rest], (slots[rest] + 1) & (len(self._slots) - 1)
        return found

    def add(self, digests: Digests) -> tuple[IntArray, IntArray]:
        """(n,) numbers of digests (n, 2), and the positions among them of those that were new, in order."""
        numbers = self.find(digests)
        unknown = np.flatnonzero(numbers < 0)
        if not len(unknown):
            return numbers, unknown
        order = np.lexsort((digests[unknown, 1], digests[unknown, 0]))  # stable: the first of equal ones leads
        ordered = digests[unknown][order]
        leads = np.append(True, (ordered[1:] != ordered[:-1]).any(1))
        first = np.sort(order[leads])
        self._append(digests[unknown[first]])
        number_of_lead = self._count - len(first) + np.searchsorted(first, order[leads])
        numbers[unknown[order]] = number_of_lead[np.cumsum(leads) - 1]
        return numbers, unknown[first]

    def _append(self, digests: Digests) -> None:
        """Number distinct digests that are all unknown."""
        start, self._count = self._count, self._count + len(digests)
        if self._count > len(self._digests):
            grown = np.zeros((2 * self._count, 2), np.uint64)
            grown[:start] = self._digests[:start]
            self._digests = grown
        self._digests[start : self._count] = digests
        if 2 * self._count > len(self._slots):
            self._slots = np.full(1 << (4 * self._count - 1).bit_length(), -1, np.int64)
            start = 0
        left = np.arange(start, self._count)
        slots = self._home(self._digests[left])
        while len(left):
            free = self._slots[slots] < 0
            self._slots[slots[free]] = left[free]
            rest = self._slots[slots] != left
            left, slots = left[rest], (slots[rest] + 1) & (len(self._slots) - 1)

    def _home(self, digests: Digests) -> IntArray:
        return (digests[:, 0] & np.uint64(len(self._slots) - 1)).astype(np.int64)


class TextTable(Sequence[str]):
    """Distinct texts in the order in which they were added, stored as one Arrow array."""

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._index = DigestIndex()
        self._stored: pa.Array = pa.array([], pa.large_string())
        self._recent: list[str] = []  # not yet in `_stored`
        self.ids(texts)

    @property
    def texts(self) -> Sequence[str]:
        """All texts by index."""
        return self

    @property
    def digests(self) -> Digests:
        """`digests_of` all texts, (K, 2)."""
        return self._index.digests

    def add(self, text: str) -> int:
        """Index of `text`, which is added if new."""
        return int(self.ids([text])[0])

    def ids(self, texts: Iterable[str]) -> IntArray:
        """(n,) indices of texts; new ones are added."""
        parts: list[IntArray] = []
        rest = iter(texts)
        while block := list(islice(rest, BLOCK)):
            numbers, new = self._index.add(digests_of(block))
            self._recent += [block[i] for i in new]
            parts.append(numbers)
            if len(self._recent) > max(BLOCK, len(self._stored) // 4):
                self._store()
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    def find(self, texts: Iterable[str]) -> IntArray:
        """(n,) indices of texts, -1 for unknown ones."""
        return self._index.find(digests_of(texts))

    def take(self, ids: IntArray) -> list[str]:
        """The texts of (n,) indices."""
        self._store()
        return self._stored.take(pa.array(ids, pa.int64())).to_pylist()  # type: ignore[no-any-return]

    def at(self, ids: IntArray) -> Iterator[str]:
        """The texts of (n,) indices, not all in memory as strings at the same time."""
        for start in range(0, len(ids), BLOCK):
            yield from self.take(ids[start : start + BLOCK])

    def sorted(self, ids: IntArray) -> IntArray:
        """(n,) indices in the order of their texts, by code points."""
        self._store()
        order = pc.sort_indices(self._stored.take(pa.array(ids, pa.int64())))
        return np.asarray(ids[order.to_numpy()])

    def lengths(self, ids: IntArray) -> IntArray:
        """(n,) characters of texts."""
        self._store()
        return pc.utf8_length(self._stored.take(pa.array(ids, pa.int64()))).to_numpy()  # type: ignore[no-any-return]

    def matching(self, pattern: str, ids: IntArray) -> IntArray:
        """Those of (n,) indices whose text contains a match of a regular expression (RE2)."""
        self._store()
        found = pc.match_substring_regex(self._stored.take(pa.array(ids, pa.int64())), pattern)
        return np.asarray(ids[found.to_numpy(zero_copy_only=False)])

    def _store(self) -> None:
        if self._recent:
            self._stored = pa.concat_arrays([self._stored, pa.array(self._recent, pa.large_string())])
            self._recent = []

    def __len__(self) -> int:
        return len(self._index)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        at = range(len(self))[index]
        stored = len(self._stored)
        return self._stored[at].as_py() if at < stored else self._recent[at - stored]

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), BLOCK):
            yield from self[start : start + BLOCK]
