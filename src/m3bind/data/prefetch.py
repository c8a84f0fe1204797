"""Work on many items in threads, prefetched and in order: files are decoded in child processes while a caller computes.

* `ahead`: the results of a function for a stream of items.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from m3bind.modalities.formats.isolation import allow

WAITING = 256 << 20  # bytes of results that may wait for the caller
T = TypeVar("T")
R = TypeVar("R")


def ahead(
    call: Callable[[T], R], items: Iterable[T], workers: int, limit: int, nbytes: Callable[[R], int]
) -> Iterator[R]:
    """`call` of every item, in order.

    `workers` threads, with a child process each where files are read, prefetch at most `limit` items, or results of
    `WAITING` bytes by `nbytes`.
    """
    allow(workers)
    waiting: deque[Future[R]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    try:
        for item in items:
            while len(waiting) >= limit or (waiting and _bytes(waiting, nbytes) > WAITING):
                yield waiting.popleft().result()
            waiting.append(pool.submit(call, item))
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _bytes(waiting: Iterable[Future[R]], nbytes: Callable[[R], int]) -> int:
    return sum(nbytes(future.result()) for future in waiting if future.done() and not future.cancelled())
