"""Hardening of pynetdicom's connections against untrusted senders.

* `guard`: bounds one connection: length and time of messages, timers on a monotonic clock.
* `receive_into`: objects go to files of our own folder as they arrive; errors of the disk are recorded, not raised.
  `restore` undoes it. * `Received`: such a file.

Both use internals of pynetdicom, whose version is bounded in pyproject.toml.
"""

import contextlib
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from pynetdicom import dimse_messages
from pynetdicom.pdu import A_ABORT_RQ
from pynetdicom.timer import Timer

PDU = 1 << 20  # bytes of one message of the protocol


class _Timer(Timer):  # type: ignore[misc]  # its package has no types
    """A timer that changes of the system clock neither end nor delay."""

    def start(self) -> None:
        self._start_time = time.monotonic()
        self._end_time: float | None = None

    def stop(self) -> None:
        self._end_time = time.monotonic()

    @property
    def remaining(self) -> float:
        if self.timeout is None or self._start_time is None:
            return 1.0 if self.timeout is None else float(self.timeout)
        return float(self.timeout) - ((self._end_time or time.monotonic()) - self._start_time)


def guard(association: Any, seconds: float, refuse: Callable[[str], None]) -> None:
    """Bound the memory and time of one message, whatever length it declares, before the connection is read.

    An association whose message cannot be parsed is aborted, and `refuse` is called with the reason.
    """
    provider = association.dul
    provider.artim_timer, provider._idle_timer = _Timer(association.acse_timeout), _Timer(association.network_timeout)
    plain = provider.socket.socket

    def receive(count: int) -> bytearray:
        if count > PDU:
            raise OSError("a message longer than the negotiated maximum")
        end, data = time.monotonic() + seconds, bytearray()
        while len(data) < count:
            plain.settimeout(max(end - time.monotonic(), 0.001))
            piece = plain.recv(min(count - len(data), 1 << 16))
            if not piece:
                break
            data += piece
        return data

    provider.socket.recv = receive
    act = provider.state_machine.do_action

    def acted(event: str) -> None:
        try:
            act(event)
        except Exception:  # pynetdicom raises anything here, which would end its thread with a traceback
            refuse("a message that cannot be parsed: association aborted")
            _abort(association)

    provider.state_machine.do_action = acted


def _abort(association: Any) -> None:
    """End an association from its own thread, whose state is invalid."""
    provider, pdu = association.dul, A_ABORT_RQ()
    pdu.source, pdu.reason_diagnostic = 2, 0  # the service provider, reason not specified
    association.is_aborted, association.is_established = True, False
    association._kill = provider._kill_thread = True
    if provider.socket is not None:
        provider.socket.send(pdu.encode())
        provider.socket.close()


class Received:
    """The file of an object that is being received. An error of the disk is recorded in `failed`, not raised."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / f"{secrets.token_hex(12)}.dcm"
        self.name, self.file, self.failed = str(self.path), self, ""
        self._out: IO[bytes] | None = None
        try:
            self._out = open(self.path, "xb")  # noqa: SIM115  closed when the object is complete
        except OSError as error:
            self._fail(error)

    def write(self, data: bytes) -> int:
        """Write, unless the disk refused before."""
        self._run(lambda out: out.write(data))
        return len(data)

    def flush(self) -> None:
        """Flush to the system."""
        self._run(lambda out: out.flush())

    def close(self) -> None:
        """Flush and close."""
        self.flush()
        if self._out is not None:
            self._out.close()
            self._out = None

    def _run(self, action: Callable[[IO[bytes]], object]) -> None:
        out = self._out
        if out is None:
            return
        try:
            action(out)
        except OSError as error:
            self._fail(error)
            with contextlib.suppress(OSError):  # of buffered bytes
                out.close()

    def _fail(self, error: OSError) -> None:
        self.failed, self._out = error.strerror or "refused", None
        self.path.unlink(missing_ok=True)


def receive_into(folder: Path) -> Any:
    """Make pynetdicom write received objects into `folder`; returns its former class, for `restore`."""
    before = dimse_messages.NamedTemporaryFile
    dimse_messages.NamedTemporaryFile = lambda *_, **__: Received(folder)
    return before


def restore(before: Any) -> None:
    """Undo `receive_into`."""
    dimse_messages.NamedTemporaryFile = before
