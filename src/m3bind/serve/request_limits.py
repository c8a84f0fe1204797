"""The time and size of a request, and disconnected clients.

* `RequestTimer`: an ASGI application around another one. * `InFlightBytes`: of bodies that are being received.

A body is refused as soon as it is too large, whatever length was declared, or too slow. When the client disconnects or
the time is over, the request is cancelled wherever it waits.
"""

import asyncio
import contextlib
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from m3bind.serve.errors import Refusal
from m3bind.serve.settings import ServiceSettings

UPLOADS = "/api/uploads"


class InFlightBytes:
    """A budget of bytes for all requests together."""

    def __init__(self, maximum: int) -> None:
        self.maximum, self.nbytes = maximum, 0

    def take(self, count: int) -> None:
        """Count received bytes.

        Raises:
            Refusal: the budget is exceeded.
        """
        if self.nbytes + count > self.maximum:
            raise Refusal(503, "busy", "Too many uploads are in progress; try again in a moment.", 10)
        self.nbytes += count


class _Body:
    """The body of a request."""

    def __init__(self, scope: Scope, receive: Receive, settings: ServiceSettings, in_flight: InFlightBytes) -> None:
        self._receive, self._settings, self._in_flight = receive, settings, in_flight
        self._maximum = settings.body_bytes if scope["path"] == UPLOADS else settings.json_bytes
        self._begun, self.count = time.monotonic(), 0
        self.complete, self._left = asyncio.Event(), asyncio.Event()
        headers = dict(scope["headers"])
        declared = headers.get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > self._maximum:
            raise self._too_large()
        self._empty = declared == b"0" and b"transfer-encoding" not in headers  # until `receive` has returned it
        if self._empty:
            self.complete.set()

    def _too_large(self) -> Refusal:
        return Refusal(413, "too_large", f"The body is larger than {self._maximum:,} bytes; send less at a time.")

    async def receive(self) -> Message:
        """ASGI's `receive` for the application. Refusal: too large (413), or too slow (408)."""
        if self.complete.is_set():
            if self._empty:
                self._empty = False
                return {"type": "http.request", "body": b"", "more_body": False}
            await self._left.wait()
            return {"type": "http.disconnect"}
        allowed = self._settings.grace_seconds + self.count / self._settings.bytes_per_second
        try:
            async with asyncio.timeout(max(0.0, self._begun + allowed - time.monotonic())):
                message = await self._receive()
        except TimeoutError:
            raise Refusal(408, "slow", "The body was sent too slowly; send it again.") from None
        if message["type"] == "http.disconnect":
            self._left.set()
            self.complete.set()
            await asyncio.Event().wait()  # until `RequestTimer` cancels it
        piece = len(message.get("body", b""))
        if self.count + piece > self._maximum:
            raise self._too_large()
        self._in_flight.take(piece)
        self.count += piece
        if not message.get("more_body", False):
            self.complete.set()
        return message

    async def gone(self) -> None:
        """Returns when the client has disconnected."""
        await self.complete.wait()
        while not self._left.is_set():
            if (await self._receive())["type"] == "http.disconnect":
                self._left.set()

    async def over(self, seconds: float) -> None:
        """Returns `seconds` after the body is complete."""
        await self.complete.wait()
        await asyncio.sleep(seconds)


class RequestTimer:
    """Runs `app` for each request."""

    def __init__(self, app: ASGIApp, settings: ServiceSettings, in_flight: InFlightBytes) -> None:
        self.app, self._settings, self._in_flight = app, settings, in_flight

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI.

        Raises:
            TimeoutError: the time is over.
            ConnectionResetError: the client has disconnected.
        """
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body = _Body(scope, receive, self._settings, self._in_flight)
        work = asyncio.ensure_future(self.app(scope, body.receive, send))
        left = asyncio.ensure_future(body.gone())
        late = asyncio.ensure_future(body.over(self._settings.request_seconds))
        try:
            await asyncio.wait({work, left, late}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
            elif late.done():
                raise TimeoutError
            else:
                raise ConnectionResetError
        finally:
            self._in_flight.nbytes -= body.count
            for task in (work, left, late):
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await work
