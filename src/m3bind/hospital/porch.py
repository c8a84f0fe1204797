"""Where connections wait until they ask for an association, so that those that never do keep nobody else out.

* `Porch`: watches them in one thread, without a thread or a place among the senders for each; what is too slow or too
  many is closed, the oldest first.

A connection is handed on when its request is there as a whole. Over TLS, what it sends cannot be looked at without
taking it: there it is handed on when the keys are agreed on and it has sent something.
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

MOST = 256  # connections
HEAD = 6  # bytes of a message that say its kind and length
REQUEST = 1  # kind of the message that asks for an association
PEEKED = 32 << 10  # bytes of a request that are waited for; longer ones are handed on with so many
SLOW = 0.05  # seconds between looks at a request that came in part
TICK = 1.0  # seconds between calls of `tick`


@dataclass(eq=False)
class _Visitor:
    """A connection that waits."""

    connection: socket.socket
    address: Any
    since: float = field(default_factory=time.monotonic)
    agreed: bool = False  # on keys, over TLS
    begun: bool = False  # a part of its request is there


class Porch:
    """See above."""

    def __init__(
        self, deliver: Callable[[socket.socket, Any], None], tick: Callable[[], None], seconds: float, most: int = MOST
    ) -> None:
        """`deliver` takes a connection over; `tick` is called now and then; `seconds`: longest wait."""
        self._deliver, self._tick, self._seconds, self._most = deliver, tick, seconds, most
        self._selector = selectors.DefaultSelector()
        self._guard = threading.Lock()
        self._visitors: dict[_Visitor, None] = {}  # in the order they came
        self._open = True
        self._thread = threading.Thread(target=self._run, name="porch", daemon=True)
        self._thread.start()

    def add(self, connection: socket.socket, address: Any) -> None:
        """Let a connection wait."""
        connection.setblocking(False)
        visitor = _Visitor(connection, address)
        with self._guard:
            self._visitors[visitor] = None
            oldest = next(iter(self._visitors)) if len(self._visitors) > self._most else None
        if oldest is not None:
            self._close(oldest)
        self._watch(visitor)

    def close(self) -> None:
        """Close all that wait."""
        self._open = False
        self._thread.join(5)
        for visitor in list(self._visitors):
            self._close(visitor)
        self._selector.close()

    def _run(self) -> None:
        told = time.monotonic()
        while self._open:
            begun = [visitor for visitor in list(self._visitors) if visitor.begun]
            ready = [key.data for key, _ in self._selector.select(SLOW if begun else SLOW * 4)]
            for visitor in dict.fromkeys(ready + begun):
                self._look(visitor)
            now = time.monotonic()
            for visitor in list(self._visitors):
                if now - visitor.since > self._seconds:
                    self._close(visitor)
            if now - told > TICK:
                told = now
                self._tick()

    def _watch(self, visitor: _Visitor) -> None:
        with contextlib.suppress(KeyError, ValueError, OSError):  # closed meanwhile
            self._selector.register(visitor.connection, selectors.EVENT_READ, visitor)

    def _forget(self, visitor: _Visitor) -> bool:
        """Whether it still waited."""
        with contextlib.suppress(KeyError, ValueError, OSError):
            self._selector.unregister(visitor.connection)
        with self._guard:
            return visitor in self._visitors and self._visitors.pop(visitor, None) is None

    def _close(self, visitor: _Visitor) -> None:
        if self._forget(visitor):
            visitor.connection.close()

    def _look(self, visitor: _Visitor) -> None:
        """Hand a connection on if it has asked, close it if it has gone."""
        try:
            complete = self._has_asked(visitor)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return
        except (OSError, ValueError):
            self._close(visitor)
            return
        if complete:
            if self._forget(visitor):
                self._deliver(visitor.connection, visitor.address)
        elif not visitor.begun:  # it is looked at now and then: there is always something to read
            visitor.begun = True
            with contextlib.suppress(KeyError, ValueError, OSError):
                self._selector.unregister(visitor.connection)

    def _has_asked(self, visitor: _Visitor) -> bool:
        """Whether the request is there.

        Raises:
            OSError: nothing is there yet, or the connection has gone.
        """
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
    """What can be read, left where it is.

    Raises:
        OSError: nothing is there yet, or the connection has gone.
    """
    found = socket.socket.recv(connection, count, socket.MSG_PEEK)
    if not found:
        raise ConnectionResetError
    return found
