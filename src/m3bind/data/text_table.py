"""The distinct texts of a run, stored once; elsewhere a text is represented by its index.

* `TextTable`: texts by index, indices by text, both for many at a time. * `digests_of`: 128-bit hashes of texts.
* `DigestIndex`: numbers of distinct hashes. * `Strings`: any texts in Arrow arrays.

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
BLOCK = 1 << 14  # texts handled as Python strings at a time, and stored in one Arrow array


def digests_of(texts: Iterable[str]) -> Digests:
    """BLAKE2b of each text, (n, 2)."""
    parts = [blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest() for text in texts]
    return np.frombuffer(b"".join(parts), np.uint64).reshape(-1, 2)


class DigestIndex:
    """Distinct digests numbered in the order in which they are added: a hash table in arrays, some 40 bytes each."""

    def __init__(self) -> None:
        self._digests: Digests = np.zeros((8, 2), np.uint64)  # the first `_count` rows
        self._count = 0
        self._slots = np.full(16, -1, np.int32)  # numbers, by hash with linear probing; -1: free

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
            grown = np.zeros((self._count * 3 // 2, 2), np.uint64)
            grown[:start] = self._digests[:start]
            self._digests = grown
        self._digests[start : self._count] = digests
        if 2 * self._count > len(self._slots):
            self._slots = np.full(1 << (3 * self._count - 1).bit_length(), -1, np.int32)
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


class Strings(Sequence[str]):
    """Texts in Arrow arrays of `BLOCK` each; more can be added at the end."""

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._blocks: list[pa.Array] = []
        self._recent: list[str] = []
        self.extend(texts)

    def extend(self, texts: Iterable[str]) -> None:
        """Add texts."""
        rest = iter(texts)
        while more := list(islice(rest, BLOCK - len(self._recent))):
            self._recent += more
            if len(self._recent) == BLOCK:
                self._blocks.append(pa.array(self._recent, pa.large_string()))
                self._recent = []

    def __len__(self) -> int:
        return BLOCK * len(self._blocks) + len(self._recent)

    def array(self, ids: IntArray) -> pa.Array:
        """(n,) large_string, the texts at `ids`."""
        block, position = np.divmod(ids, BLOCK)
        used, which = np.unique(block, return_inverse=True)
        parts, order = [pa.array([], pa.large_string())], np.argsort(which, kind="stable")
        bounds = np.searchsorted(which[order], np.arange(len(used) + 1))
        for number, start, stop in zip(used.tolist(), bounds, bounds[1:]):
            texts = self._blocks[number] if number < len(self._blocks) else pa.array(self._recent, pa.large_string())
            parts.append(texts.take(pa.array(position[order[start:stop]])))
        if (order[1:] > order[:-1]).all():
            return pa.concat_arrays(parts)
        back = np.empty(len(ids), np.int64)
        back[order] = np.arange(len(ids))
        return pa.concat_arrays(parts).take(pa.array(back))

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            texts: list[str] = self.array(np.arange(len(self))[index]).to_pylist()
            return texts
        block, position = divmod(range(len(self))[index], BLOCK)
        return self._blocks[block][position].as_py() if block < len(self._blocks) else self._recent[position]

    def __iter__(self) -> Iterator[str]:
        for block in self._blocks:
            yield from block.to_pylist()
        yield from self._recent


class TextTable(Sequence[str]):
    """Distinct texts in the order in which they were added. Tables may share the storage of their texts."""

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._index = DigestIndex()
        self._strings = Strings()
        self._places: list[IntArray] = []  # of texts in `_strings`, by index; joined when needed
        self.ids(texts)

    def subset(self, ids: IntArray) -> "TextTable":
        """A new table of the texts at distinct `ids`, in their order; texts are not copied."""
        table = TextTable()
        table._strings = self._strings
        table._index.add(self.digests[ids])
        table._places = [self._place(ids)]
        return table

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
            parts.append(numbers)
            self._places.append(len(self._strings) + np.arange(len(new)))
            self._strings.extend(block[i] for i in new)
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    def ids_of(self, other: "TextTable", ids: IntArray) -> IntArray:
        """(n,) indices of the texts of another table; new ones are added."""
        numbers = self._index.find(other.digests[ids])
        new = np.flatnonzero(numbers < 0)
        numbers[new] = self.ids(other.at(ids[new]))
        return numbers

    def find(self, texts: Iterable[str]) -> IntArray:
        """(n,) indices of texts, -1 for unknown ones."""
        return self._index.find(digests_of(texts))

    def _place(self, ids: IntArray) -> IntArray:
        if len(self._places) > 1:
            self._places = [np.concatenate(self._places)]
        return self._places[0][ids] if self._places else ids

    def array(self, ids: IntArray) -> pa.Array:
        """(n,) large_string, the texts at `ids`."""
        return self._strings.array(self._place(ids))

    def take(self, ids: IntArray) -> list[str]:
        """The texts at (n,) indices."""
        texts: list[str] = self.array(ids).to_pylist()
        return texts

    def at(self, ids: IntArray) -> Iterator[str]:
        """The texts at (n,) indices, not all in memory as strings at the same time."""
        for part in _blocks(ids):
            yield from self.take(part)

    def sorted(self, ids: IntArray) -> IntArray:
        """(n,) indices in the order of their texts, by code points."""
        return np.asarray(ids[pc.sort_indices(self.array(ids)).to_numpy()])

    def lengths(self, ids: IntArray) -> IntArray:
        """(n,) characters of texts."""
        parts = [pc.utf8_length(self.array(part)).to_numpy() for part in _blocks(ids)]
        return np.concatenate([np.zeros(0, np.int64), *parts])

    def matching(self, pattern: str, ids: IntArray) -> IntArray:
        """Those of (n,) indices whose text contains a match of a regular expression (RE2)."""
        parts = [ids[:0]]
        for part in _blocks(ids):
            found = pc.match_substring_regex(self.array(part), pattern)
            parts.append(part[found.to_numpy(zero_copy_only=False)])
        return np.concatenate(parts)

    def __len__(self) -> int:
        return len(self._index)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        return self._strings[int(self._place(np.array(range(len(self))[index])))]

    def __iter__(self) -> Iterator[str]:
        return self.at(np.arange(len(self)))


def _blocks(ids: IntArray) -> Iterator[IntArray]:
    """Consecutive parts of `ids`, so that not all texts are copied at the same time."""
    return (ids[start : start + BLOCK] for start in range(0, len(ids), BLOCK))
