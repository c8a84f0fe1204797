"""Closes a connection that takes too long, in any phase of the answer.

* `AnswerTimer`: around one request. A client's time limits run from byte to byte, so a server that sends one byte a
  second (in the head, in a chunk's length or in the body) keeps it busy for ever; this one runs from start to end.
"""

import contextlib
import socket
import threading
import time
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from httpx import Response


class AnswerTimer:
    """A thread that closes the connection when an answer is too slow; `late` is then the reason, else ""."""

    def __init__(self, grace: float, rate: float, end: float, stream: Any = None) -> None:
        """Set up.

        Args:
            grace: seconds before `rate` counts.
            rate: bytes per second, on average.
            end: `time.monotonic()` of the deadline.
            stream: of a connection that may be reused.
        """
        self._grace, self._rate, self._end = grace, rate, end
        self._start, self._over = time.monotonic(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.stream, self.late = stream, ""
        self.answer: Response | None = None

    def trace(self, name: str, info: dict[str, Any]) -> None:
        """Called by httpcore at every step: store a new connection."""
        if name.endswith(("connect_tcp.complete", "start_tls.complete")):
            self.stream = info["return_value"]

    def _due(self) -> float:
        """The time at which the answer is too slow, if no more bytes arrive."""
        received = self.answer.num_bytes_downloaded if self.answer is not None else 0
        return min(self._end, self._start + self._grace + received / self._rate)

    def _run(self) -> None:
        while not self._over.wait(max(0.01, self._due() - time.monotonic())):
            if time.monotonic() >= self._due():
                slow = time.monotonic() < self._end
                self.late = f"slower than {self._rate:,.0f} bytes a second" if slow else "takes longer than allowed"
                self._hang_up()
                self._over.wait(1.0)  # until it is noticed; a new connection meanwhile is closed as well

    def _hang_up(self) -> None:
        channel = self.stream.get_extra_info("socket") if self.stream is not None else None
        if channel is not None:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(channel, socket.SHUT_RDWR)  # not an SSLSocket's own, which drops its state

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
