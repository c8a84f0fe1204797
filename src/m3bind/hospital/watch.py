"""Who ends a connection that takes too long, whatever part of an answer is waited for.

* `AnswerTimer`: around one request. Time limits of a client count from byte to byte, so a server that sends one byte a
  second, in the head, in the middle of a chunk's length or in the body, keeps it busy for ever; this one counts all.
"""

import contextlib
import socket
import threading
import time
from types import TracebackType
from typing import Any, Self


class AnswerTimer:
    """A thread that ends the connection when an answer is too slow; `late` then says why, else it is ""."""

    def __init__(self, grace: float, rate: float, end: float, stream: Any = None) -> None:
        """Set up.

        Args:
            grace: seconds before `rate` counts.
            rate: bytes per second, on average.
            end: `time.monotonic()` at which all is over.
            stream: of a connection that may be used again.
        """
        self._grace, self._rate, self._end = grace, rate, end
        self._start, self._over = time.monotonic(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.stream, self.answer, self.late = stream, None, ""  # type: Any, Any, str

    def trace(self, name: str, info: dict[str, Any]) -> None:
        """What httpcore calls at every step: learn of a new connection."""
        if name.endswith(("connect_tcp.complete", "start_tls.complete")):
            self.stream = info["return_value"]

    def _due(self) -> float:
        """When the answer is too slow, if nothing more comes."""
        came = self.answer.num_bytes_downloaded if self.answer is not None else 0
        return min(self._end, self._start + self._grace + came / self._rate)

    def _run(self) -> None:
        while not self._over.wait(max(0.01, self._due() - time.monotonic())):
            if time.monotonic() >= self._due():
                slow = time.monotonic() < self._end
                self.late = f"slower than {self._rate:,.0f} bytes a second" if slow else "takes longer than allowed"
                self._hang_up()
                self._over.wait(1.0)  # until it is noticed; a new connection meanwhile is ended as well

    def _hang_up(self) -> None:
        channel = self.stream.get_extra_info("socket") if self.stream is not None else None
        if channel is not None:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(channel, socket.SHUT_RDWR)  # not an SSLSocket's own, which forgets its state

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()
