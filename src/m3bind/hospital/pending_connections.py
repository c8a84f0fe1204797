"""Connections that have not requested an association yet, so that idle ones do not block others.

* `PendingConnections`: watches them in one thread, without a thread or a sender's slot for each; slow
  connections are closed, and the oldest if there are too many.

A connection is delivered when its request has arrived completely. Over TLS, received bytes cannot be inspected without
consuming them: it is delivered when the handshake is done and bytes are there.
"""

import contextlib
import selectors
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

CONNECTIONS = 256
HEAD = 6  # bytes of a message with its kind and length
REQUEST = 1  # kind of the message that requests an association
PEEKED = 32 << 10  # bytes of a request to wait for; longer ones are delivered at this length
SLOW = 0.05  # seconds between checks of a request that arrived in part
TICK = 1.0  # seconds between calls of `tick`


@dataclass(eq=False)
class _Connection:
    """A waiting connection."""

    connection: socket.socket
    address: Any
    since: float = field(default_factory=time.monotonic)
    agreed: bool = False  # the TLS handshake is done
    begun: bool = False  # a part of its request is there


class PendingConnections:
    """See above."""

    def __init__(
        self,
        deliver: Callable[[socket.socket, Any], None],
        tick: Callable[[], None],
        seconds: float,
        maximum: int = CONNECTIONS,
    ) -> None:
        """`deliver` takes over a connection; `tick` is called every second; `seconds`: longest wait."""
        self._deliver, self._tick, self._seconds, self._maximum = deliver, tick, seconds, maximum
        self._selector = selectors.DefaultSelector()
        self._guard = threading.Lock()
        self._visitors: dict[_Connection, None] = {}  # in order of arrival
        self._open = True
        self._thread = threading.Thread(target=self._run, name="pending connections", daemon=True)
        self._thread.start()

    def add(self, connection: socket.socket, address: Any) -> None:
        """Add a connection."""
        connection.setblocking(False)
        visitor = _Connection(connection, address)
        with self._guard:
            self._visitors[visitor] = None
            oldest = next(iter(self._visitors)) if len(self._visitors) > self._maximum else None
        if oldest is not None:
            self._close(oldest)
        with contextlib.suppress(KeyError, ValueError, OSError):  # closed meanwhile
            self._selector.register(connection, selectors.EVENT_READ, visitor)

    def close(self) -> None:
        """Close all waiting connections."""
        self._open = False
        self._thread.join(5)
        for visitor in list(self._visitors):
            self._close(visitor)
        self._selector.close()

    def _run(self) -> None:
        ticked = time.monotonic()
        while self._open:
            begun = [visitor for visitor in list(self._visitors) if visitor.begun]
            ready = [key.data for key, _ in self._selector.select(SLOW if begun else SLOW * 4)]
            for visitor in dict.fromkeys(ready + begun):
                self._check(visitor)
            now = time.monotonic()
            for visitor in list(self._visitors):
                if now - visitor.since > self._seconds:
                    self._close(visitor)
            if now - ticked > TICK:
                ticked = now
                self._tick()

    def _unwatch(self, visitor: _Connection) -> None:
        with contextlib.suppress(KeyError, ValueError, OSError):
            self._selector.unregister(visitor.connection)

    def _forget(self, visitor: _Connection) -> bool:
        """Remove a connection; whether it was still waiting."""
        self._unwatch(visitor)
        with self._guard:
            return visitor in self._visitors and self._visitors.pop(visitor, None) is None

    def _close(self, visitor: _Connection) -> None:
        if self._forget(visitor):
            visitor.connection.close()

    def _check(self, visitor: _Connection) -> None:
        """Deliver a connection with a request, close a broken one."""
        try:
            complete = self._has_request(visitor)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return
        except (OSError, ValueError):
            self._close(visitor)
            return
        if complete:
            if self._forget(visitor):
                self._deliver(visitor.connection, visitor.address)
        elif not visitor.begun:  # polled from now on: the selector would report it all the time
            visitor.begun = True
            self._unwatch(visitor)

    def _has_request(self, visitor: _Connection) -> bool:
        """Whether the request has arrived completely. OSError: no bytes yet, or the connection is closed."""
        connection = visitor.connection
        if isinstance(connection, ssl.SSLSocket):
            if not visitor.agreed:
                connection.do_handshake()
                visitor.agreed = True
            return bool(connection.pending()) or bool(_peeked(connection, 1))
        head = _peeked(connection, PEEKED)
        if len(head) < HEAD:
            return False
        kind, length = struct.unpack(">BxL", head[:HEAD])
        return bool(kind != REQUEST or len(head) >= min(HEAD + length, PEEKED))


def _peeked(connection: socket.socket, count: int) -> bytes:
    """The received bytes, without consuming them. OSError: no bytes yet, or the connection is closed."""
    data = socket.socket.recv(connection, count, socket.MSG_PEEK)
    if not data:
        raise ConnectionResetError
    return data
