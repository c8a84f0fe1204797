"""Values that cost something to make, kept within a number of bytes.

* `LruCache`: by key; the least recently used go first.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class LruCache(Generic[T]):
    """Thread-safe. Two that ask for the same at the same time may both make it."""

    def __init__(self, most: int, size: Callable[[T], int]) -> None:
        """At most `most` bytes (but one value in any case), each of `size(value)`."""
        self.most, self.nbytes, self._size = most, 0, size
        self._values: OrderedDict[Hashable, T] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """The value of `key`, made where it is not there; what `make` raises is not kept."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
        made = make()
        with self._lock:
            if key not in self._values:
                self._values[key] = made
                self.nbytes += self._size(made)
            while self.nbytes > self.most and len(self._values) > 1:
                self.nbytes -= self._size(self._values.popitem(last=False)[1])
        return made

    def __len__(self) -> int:
        return len(self._values)
