"""Work off the event loop: a few threads, a bounded number of waiting requests, and a refusal beyond.

* `Queue`: the service has one in front of the towers and the index, and one in front of the decoders.

A request whose client disconnected, or whose time is over, frees its place at once while it waits; if its thread is
already running, the place is free when that ends.
"""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from m3bind.serve.errors import Refusal

T = TypeVar("T")
INITIAL_SECONDS = 0.05  # of one piece of work, before any measurement
MAX_RETRY = 30.0


class Queue:
    """`workers` threads and up to `max_waiting` requests in front of them."""

    def __init__(self, name: str, workers: int, max_waiting: int) -> None:
        self.name, self.workers, self.max_waiting = name, workers, max_waiting
        self.waiting = self.running = 0
        self._seconds = INITIAL_SECONDS  # running mean
        self._free = asyncio.Semaphore(workers)
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix=name)

    async def run(self, work: Callable[..., T], *arguments: Any) -> T:
        """`work(*arguments)` in a thread.

        Raises:
            Refusal: too many are waiting (503, with the time after which to try again).
        """
        if self.waiting >= self.max_waiting:
            wait = min(MAX_RETRY, self._seconds * self.waiting / self.workers)
            raise Refusal(503, "busy", "Too many requests are waiting; try again in a moment.", wait)
        self.waiting += 1
        try:
            await self._free.acquire()
        finally:
            self.waiting -= 1
        self.running += 1
        begun = time.perf_counter()
        try:
            future = asyncio.get_running_loop().run_in_executor(self._pool, work, *arguments)
        except RuntimeError:  # the pool is shut down
            self._done(begun)
            raise Refusal(503, "stopping", "The service is stopping.", 10) from None
        future.add_done_callback(lambda done: self._done(begun, done))
        return await asyncio.shield(future)

    def _done(self, begun: float, future: "asyncio.Future[Any] | None" = None) -> None:
        self.running -= 1
        self._seconds += 0.1 * (time.perf_counter() - begun - self._seconds)
        self._free.release()
        if future is not None and not future.cancelled():
            future.exception()  # mark it as retrieved: its request may be cancelled

    def close(self) -> None:
        """Start no further work."""
        self._pool.shutdown(wait=False, cancel_futures=True)
