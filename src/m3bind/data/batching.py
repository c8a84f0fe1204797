"""Samples and texts of a step, as pure functions of (seed, step).

No state has to be saved: the batch of step s does not depend on earlier steps or on the number of workers or processes,
so a run resumed in the middle of an epoch continues with exactly the batches of an uninterrupted run.

* `rng(seed, *names)`: a counter-based generator for a named purpose.
* `EpochSampler`: batches without replacement within an epoch.
* `PoolSampler`: texts of the shared batch, modality by probability (p_m of Eq. 3), then uniformly within it.
* `length_buckets`: sequences grouped by length under a token budget. * `distinct_ids`: of arrays of integers.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m3bind.core.files import sha256_text

IntArray = NDArray[np.int64]


def rng(seed: int, *names: object) -> np.random.Generator:
    """A generator that depends on `seed` and `names` only."""
    digest = sha256_text(str(seed), *map(str, names))
    return np.random.Generator(np.random.Philox(key=int(digest[:32], 16)))


def distinct_ids(*parts: NDArray[np.integer[Any]]) -> IntArray:
    """The distinct integers of all parts, sorted.

    `np.unique` of numpy 2.4 hashes them: 570 ms for a million, which sorting takes 11 ms for.
    """
    values = np.sort(np.concatenate([np.zeros(0, np.int64), *parts]))
    return np.asarray(values[np.append(True, values[1:] != values[:-1])[: len(values)]], np.int64)


class EpochSampler:
    """Batches of indices 0..n-1: each epoch is a new permutation cut into whole batches.

    Within a batch no index appears twice; a batch larger than n is cut to n; the remainder of an epoch that does not
    fill a batch is dropped (the next epoch has another permutation).
    """

    def __init__(self, n: int, batch: int, seed: int, name: str = "") -> None:
        """`n` items, `batch` indices per step; `name` distinguishes samplers of one run."""
        self.n, self.size, self.seed, self.name = n, batch, seed, name
        self._order: dict[int, IntArray] = {}

    def batch(self, step: int) -> IntArray:
        """Indices of step `step` (0-based), shape (min(batch, n),)."""
        size = min(self.size, self.n)
        per_epoch = self.n // size
        epoch, position = divmod(step, per_epoch)
        if epoch not in self._order:
            self._order = {epoch: rng(self.seed, "epoch", self.name, epoch).permutation(self.n)}
        return self._order[epoch][position * size : (position + 1) * size]


class PoolSampler:
    """Text ids of the shared text batch: a modality by its probability, then one of its texts uniformly."""

    def __init__(
        self, pools: Sequence[IntArray], probabilities: Sequence[float], batch: int, seed: int, name: str = "pool"
    ) -> None:
        """`pools[m]` holds the text ids of modality m, `probabilities[m]` its share (Eq. 3)."""
        self.ids = np.concatenate([np.asarray(pool, dtype=np.int64) for pool in pools])
        self.sizes = np.array([len(pool) for pool in pools], dtype=np.int64)
        self.starts = np.cumsum(self.sizes) - self.sizes
        self.probabilities = np.asarray(probabilities, dtype=np.float64) / float(np.sum(probabilities))
        self.size, self.seed, self.name = batch, seed, name

    def batch(self, step: int) -> tuple[IntArray, IntArray]:
        """(text ids, index of each one's modality), both of shape (batch,)."""
        random = rng(self.seed, self.name, step)
        source = random.choice(len(self.sizes), size=self.size, p=self.probabilities)
        return self.ids[self.starts[source] + random.integers(self.sizes[source])], source.astype(np.int64)


def length_buckets(lengths: Sequence[int], budget: int) -> list[IntArray]:
    """Indices grouped so that (items x longest item) of a group stays within `budget` tokens, longest group first.

    An item longer than the budget forms its own group. Every index appears exactly once.
    """
    order = np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable")
    groups: list[IntArray] = []
    start = 0
    while start < len(order):
        longest = max(int(lengths[order[start]]), 1)
        stop = start + max(budget // longest, 1)
        groups.append(order[start:stop].astype(np.int64))
        start = stop
    return groups
