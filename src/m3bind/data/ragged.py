"""Lists of integers of different lengths in two arrays.

* `Ragged`: `ragged[i]` is list i; selection, concatenation and one random entry of each list for many at a time.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Self, overload

import numpy as np
from numpy.typing import NDArray

from m3bind.data.batching import IntArray


class Ragged(Sequence[IntArray]):
    """N lists: list i is `values[offsets[i]:offsets[i + 1]]`."""

    def __init__(self, offsets: IntArray, values: IntArray) -> None:
        """`offsets` (N + 1,) ascending from 0."""
        self.offsets, self.values = offsets, values

    @classmethod
    def of(cls, lists: Iterable[Sequence[int] | IntArray]) -> Self:
        """From lists or arrays."""
        arrays = [np.asarray(entry, dtype=np.int64) for entry in lists]
        return cls.by_lengths([len(a) for a in arrays], np.concatenate(arrays) if arrays else np.zeros(0, np.int64))

    @classmethod
    def by_lengths(cls, lengths: Sequence[int] | IntArray, values: IntArray) -> Self:
        """Consecutive lists of given lengths."""
        return cls(np.append(0, np.cumsum(lengths, dtype=np.int64)), values)

    @classmethod
    def concatenate(cls, parts: Sequence["Ragged"]) -> Self:
        """The lists of all parts, at least one."""
        return cls.by_lengths(
            np.concatenate([part.lengths for part in parts]), np.concatenate([part.values for part in parts])
        )

    @property
    def lengths(self) -> IntArray:
        """(N,) length of each list."""
        return self.offsets[1:] - self.offsets[:-1]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, index: int) -> IntArray: ...
    @overload
    def __getitem__(self, index: slice) -> "Ragged": ...
    def __getitem__(self, index: int | slice) -> "IntArray | Ragged":
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        at = range(len(self))[index]
        return self.values[self.offsets[at] : self.offsets[at + 1]]

    def take(self, rows: NDArray[np.integer[Any]]) -> "Ragged":
        """The lists at `rows` (n,)."""
        lengths = self.lengths[rows]
        ends = np.cumsum(lengths)
        at = np.arange(ends[-1] if len(ends) else 0) + np.repeat(self.offsets[rows] - (ends - lengths), lengths)
        return Ragged.by_lengths(lengths, self.values[at])

    def first(self) -> IntArray:
        """(N,) first entry of each list; none may be empty."""
        return self.values[self.offsets[:-1]]

    def draw(self, rows: IntArray, uniform: NDArray[np.float64]) -> IntArray:
        """(n,) one entry of each list at `rows`, for `uniform` in [0, 1); the lists may not be empty."""
        return self.values[self.offsets[rows] + (uniform * self.lengths[rows]).astype(np.int64)]
