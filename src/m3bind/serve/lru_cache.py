"""A cache of expensive values, bounded in bytes.

* `LruCache`: by key; the least recently used are evicted first.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class LruCache(Generic[T]):
    """Thread-safe. Concurrent calls for the same key may both compute it."""

    def __init__(self, max_bytes: int, size: Callable[[T], int]) -> None:
        """Up to `max_bytes` (but always one value), each of `size(value)`."""
        self.max_bytes, self.nbytes, self._size = max_bytes, 0, size
        self._values: OrderedDict[Hashable, T] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """The value of `key`, computed if missing; errors of `make` are not cached."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
        value = make()
        with self._lock:
            if key not in self._values:
                self._values[key] = value
                self.nbytes += self._size(value)
            while self.nbytes > self.max_bytes and len(self._values) > 1:
                self.nbytes -= self._size(self._values.popitem(last=False)[1])
        return value

    def __len__(self) -> int:
        return len(self._values)
