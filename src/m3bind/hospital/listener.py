"""A C-STORE listener: takes what scanners and archives send, and answers only when it is safe on disk.

* `Listener`: starts and stops. * `refuse_open`: who may send, where others can reach it.

| answer | meaning |
|---|---|
| 0x0000 | kept: it is de-identified, on disk, and will be in the index |
| 0xA700 | out of resources: too large, the spool or the disk is full; send it again later |
| 0xA900 | a kind of object or transfer syntax that is not taken |
| 0xC000 | cannot be understood |
| 0x0124 | refused by rule: burned-in text, the label of a slide |

Received bytes go to the spool's folder as they come, never into memory as a whole; an association that sends an object
larger than allowed is aborted. Not more associations at a time than allowed, and four times as many connections.
"""

import ipaddress
import logging
import ssl
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

from m3bind.errors import ConfigError
from m3bind.hospital.deidentify import Refused
from m3bind.hospital.intake import Intake

SUCCESS, OUT_OF_RESOURCES, NO_MATCH, NOT_UNDERSTOOD, NOT_AUTHORISED = 0x0000, 0xA700, 0xA900, 0xC000, 0x0124
_ANSWERS = {"full": OUT_OF_RESOURCES, "kind": NO_MATCH, "unreadable": NOT_UNDERSTOOD, "policy": NOT_AUTHORISED}
_SYNTAXES = [
    "1.2.840.10008.1.2.1", "1.2.840.10008.1.2", "1.2.840.10008.1.2.5",
    *(f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 57, 70, 80, 81, 90, 91, 201, 202, 203)),
]  # fmt: skip
SLACK = 1 << 20  # bytes of headers and commands beside an object
PDU = 1 << 20  # bytes of one message of the protocol
Complete = Literal["quiet", "release"]


def refuse_open(host: str, allow: Sequence[str], proven: bool = False) -> None:
    """Refuse to listen where other machines reach us without saying who may send; `proven`: by certificates.

    Raises:
        ConfigError: no titles are named.
    """
    try:
        own = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        own = False
    if not own and not allow and not proven:
        raise ConfigError(
            f"--host {host} can be reached from other machines: name who may send with --allow TITLE, or have senders "
            "prove it (--tls-cert, --tls-key, --tls-ca). Plain DICOM neither proves titles nor encrypts, so let only "
            "the archive's address through the firewall."
        )


class Listener:
    """One DICOM application entity that takes objects in."""

    def __init__(
        self,
        intake: Intake,
        aet: str = "M3BIND",
        allow: Sequence[str] = (),
        associations: int = 8,
        timeout: float = 60.0,
        complete: Complete = "quiet",
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """`allow`: titles that may send; all where empty. `complete`: when a series is, see `Spool`.

        Over TLS where `tls` is given.

        Raises:
            ConfigError: a title that is none.
        """
        from pynetdicom import AE, _config
        from pynetdicom.sop_class import Verification

        _config.STORE_RECV_CHUNKED_DATASET = True
        _config.LOG_HANDLER_LEVEL = "none"
        logging.getLogger("pynetdicom").setLevel(logging.CRITICAL + 1)  # it quotes what it was sent
        self._intake, self._complete, self._tls = intake, complete, tls
        try:
            self._ae = AE(aet)
            self._ae.require_called_aet = True
            self._ae.require_calling_aet = list(allow)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"an application entity title has 1 to 16 characters: {error}") from error
        self._ae.maximum_associations = associations
        self._ae.acse_timeout = self._ae.dimse_timeout = self._ae.network_timeout = timeout
        self._ae.maximum_pdu_size = PDU // 4
        self._ae.add_supported_context(Verification)
        for uid in intake.kinds:
            self._ae.add_supported_context(uid, _SYNTAXES)
        self._server: Any = None
        self._elsewhere: str | None = None  # where temporary files went before
        self._guard = threading.Lock()
        self._received: Counter[Any] = Counter()  # bytes of the object an association is sending
        self._units: dict[Any, set[str]] = {}  # of an association

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._server.server_address[1])

    def start(self, host: str, port: int) -> None:
        """Listen. Port 0 takes a free one.

        Raises:
            ConfigError: the address cannot be had.
        """
        from pynetdicom import evt
        from pynetdicom.transport import ThreadedAssociationServer

        most, tls, seconds = 4 * self._ae.maximum_associations, self._tls, self._ae.network_timeout

        class Server(ThreadedAssociationServer):  # type: ignore[misc]  # its package has no types
            """Closes connections beyond a number at once."""

            daemon_threads = True

            def get_request(self) -> tuple[Any, Any]:
                """A connection; who is slow to agree on keys keeps nobody else waiting."""
                plain, address = self.socket.accept()
                plain.settimeout(seconds)
                if tls is None:
                    return plain, address
                return tls.wrap_socket(plain, server_side=True, do_handshake_on_connect=False), address

            def verify_request(self, request: Any, client_address: Any) -> bool:
                return bool(len(self.active_associations) < most)

            def handle_error(self, request: Any, client_address: Any) -> None:
                """Without the traceback, which says who called."""

        handlers = [
            (evt.EVT_CONN_OPEN, self._opened),
            (evt.EVT_C_STORE, self._store),
            (evt.EVT_DATA_RECV, self._count),
            (evt.EVT_RELEASED, self._released),
            (evt.EVT_CONN_CLOSE, self._closed),
        ]
        try:
            self._server = self._ae.make_server((host, port), evt_handlers=handlers, server_class=Server)
        except OSError as error:
            raise ConfigError(f"cannot listen on {host}:{port} ({error.strerror}); choose another --port") from error
        self._ae._servers.append(self._server)
        self._elsewhere = tempfile.tempdir
        tempfile.tempdir = str(self._intake.spool.incoming)  # where pynetdicom puts what it receives
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True).start()

    def stop(self, seconds: float) -> None:
        """Take no more associations, let running ones end for at most `seconds`, then abort them."""
        self._server.shutdown()
        end = time.monotonic() + seconds
        while self._ae.active_associations and time.monotonic() < end:
            time.sleep(0.05)
        for association in self._ae.active_associations:
            association.abort()
        tempfile.tempdir = self._elsewhere
        self._intake.spool.settle()

    def _opened(self, event: Any) -> None:
        """Bound what one message of the protocol may cost, whatever length it declares."""
        channel = event.assoc.dul.socket
        plain, seconds = channel.socket, self._ae.network_timeout

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

        channel.recv = receive

    def _store(self, event: Any) -> int:
        """Take one object in."""
        try:
            unit = self._intake.accept(event.dataset_path)
        except Refused as refused:
            return _ANSWERS[refused.why]
        except Exception as error:
            logging.getLogger(__name__).error("an object could not be taken in (%s)", type(error).__name__)
            return OUT_OF_RESOURCES
        finally:
            self._received.pop(event.assoc, None)
        with self._guard:
            self._units.setdefault(event.assoc, set()).add(unit)
        return SUCCESS

    def _count(self, event: Any) -> None:
        """Abort an association whose object grows too large; in a thread, as this one must go on reading."""
        with self._guard:
            self._received[event.assoc] += len(event.data)
            over = self._received[event.assoc] > self._intake.most + SLACK
            if over:
                self._received[event.assoc] = -(1 << 62)
        if over:
            self._intake.counts["refused"] += 1
            self._intake.spool.note("", "", f"larger than {self._intake.most:,} bytes: association aborted")
            threading.Thread(target=event.assoc.abort, daemon=True).start()

    def _released(self, event: Any) -> None:
        with self._guard:
            units = self._units.get(event.assoc, set())
        if self._complete == "release":
            self._intake.spool.complete(units)
        else:
            self._intake.spool.released(units)

    def _closed(self, event: Any) -> None:
        """Forget an association and what it left half received."""
        with self._guard:
            self._units.pop(event.assoc, None)
            self._received.pop(event.assoc, None)
        message = getattr(event.assoc.dimse, "message", None)
        path = getattr(message, "_data_set_path", None)
        if path is not None:
            path.unlink(missing_ok=True)
