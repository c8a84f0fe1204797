"""What makes pynetdicom's connections safe to leave open to others.

* `guard`: of one connection: messages of bounded length and time, timers of a clock that nobody can set.
* `receive_into`: objects go to files of a folder of ours as they come; a disk that refuses breaks nothing.

Both reach into pynetdicom, whose version is bounded in pyproject.toml.
"""

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
    """A timer that a change of the clock neither ends nor delays."""

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
    """Bound what one message may cost, whatever length it declares, before the connection is read from.

    An association whose message cannot be understood is aborted, and `refuse` is told why.
    """
    provider = association.dul
    provider.artim_timer, provider._idle_timer = _Timer(association.acse_timeout), _Timer(association.network_timeout)
    plain = provider.socket.socket

    def receive(count: int) -> bytearray:
        if count > PDU:
            raise OSError("a message longer than any that was agreed on")
        end, found = time.monotonic() + seconds, bytearray()
        while len(found) < count:
            plain.settimeout(max(end - time.monotonic(), 0.001))
            piece = plain.recv(min(count - len(found), 1 << 16))
            if not piece:
                break
            found += piece
        return found

    provider.socket.recv = receive
    act = provider.state_machine.do_action

    def acted(event: str) -> None:
        try:
            act(event)
        except Exception:  # pynetdicom raises anything here, which would end its thread with a traceback
            refuse("a message that cannot be understood: association aborted")
            _abort(association)

    provider.state_machine.do_action = acted


def _abort(association: Any) -> None:
    """End an association from its own thread, whose state is not what it should be."""
    provider, pdu = association.dul, A_ABORT_RQ()
    pdu.source, pdu.reason_diagnostic = 2, 0  # the service provider, for no reason that is told
    association.is_aborted, association.is_established = True, False
    association._kill = provider._kill_thread = True
    if provider.socket is not None:
        provider.socket.send(pdu.encode())
        provider.socket.close()


class Received:
    """The file of an object that is being received. A disk that refuses is remembered in `failed`, not raised."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / f"{secrets.token_hex(12)}.dcm"
        self.name, self.file, self.failed = str(self.path), self, ""
        self._out: IO[bytes] | None = None
        try:
            self._out = open(self.path, "xb")  # noqa: SIM115  closed when the object is there
        except OSError as error:
            self._fail(error)

    def write(self, data: bytes) -> int:
        """Write as much as the disk takes."""
        try:
            if self._out is not None:
                self._out.write(data)
        except OSError as error:
            self._fail(error)
        return len(data)

    def flush(self) -> None:
        """Give to the system what was written."""
        try:
            if self._out is not None:
                self._out.flush()
        except OSError as error:
            self._fail(error)

    def close(self) -> None:
        """Write no more."""
        self.flush()
        if self._out is not None:
            self._out.close()
            self._out = None

    def _fail(self, error: OSError) -> None:
        self.failed = error.strerror or "refused"
        out, self._out = self._out, None
        self.path.unlink(missing_ok=True)
        if out is not None:
            try:
                out.close()
            except OSError:  # what it could not write before
                return


def receive_into(folder: Path) -> Any:
    """Have pynetdicom put what it receives into `folder`; returns what it did before, for `restore`."""
    before = dimse_messages.NamedTemporaryFile
    dimse_messages.NamedTemporaryFile = lambda *_, **__: Received(folder)
    return before


def restore(before: Any) -> None:
    """Undo `receive_into`."""
    dimse_messages.NamedTemporaryFile = before
