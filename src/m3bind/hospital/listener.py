"""A C-STORE listener: accepts objects of scanners and archives, and answers only when they are safe on disk.

* `Listener`: starts and stops; `ListenerSettings`: its titles, limits and TLS.
* `refuse_open`: an address that other machines reach needs named or proven senders.

| answer | meaning |
|---|---|
| 0x0000 | it is de-identified and on disk, and will be in the index, or in the list of unreadable objects |
| 0xA700 | out of resources: too large, the spool or a disk is full; send it again later |
| 0xA900 | an unsupported kind of object or transfer syntax |
| 0xC000 | cannot be parsed |
| 0x0124 | refused by rule: burned-in text, the label of a slide |

Received bytes go to the spool's folder as they arrive, never into memory as a whole; an association that sends an
object larger than allowed is aborted. The number of associations is limited; connections that have not requested one
wait on the `pending_connections`. A series stays open while an association that sent some of it is open: see `Spool`.
"""

import ipaddress
import logging
import ssl
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from m3bind.errors import ConfigError, DiskError
from m3bind.hospital.deidentify import Refused
from m3bind.hospital.intake import Intake
from m3bind.hospital.pending_connections import PendingConnections

log = logging.getLogger(__name__)
SUCCESS, OUT_OF_RESOURCES, NO_MATCH, NOT_UNDERSTOOD, NOT_AUTHORISED = 0x0000, 0xA700, 0xA900, 0xC000, 0x0124
_ANSWERS = {"full": OUT_OF_RESOURCES, "kind": NO_MATCH, "unreadable": NOT_UNDERSTOOD, "policy": NOT_AUTHORISED}
_SYNTAXES = [
    "1.2.840.10008.1.2.1", "1.2.840.10008.1.2", "1.2.840.10008.1.2.5",
    *(f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 57, 70, 80, 81, 90, 91, 201, 202, 203)),
]  # fmt: skip
SLACK = 1 << 20  # bytes of headers and commands beside an object
HELLO = 10.0  # seconds until a connection must have requested an association
Complete = Literal["quiet", "release"]


@dataclass(frozen=True)
class ListenerSettings:
    """Who may send, how many at a time, and when a series is complete."""

    aet: str = "M3BIND"  # our application entity title
    allow: Sequence[str] = ()  # titles that may send; empty: all
    associations: int = 8  # at a time
    timeout: float = 60.0  # seconds
    complete: Complete = "quiet"  # see `Spool`
    tls: ssl.SSLContext | None = None  # None: plain DICOM


def refuse_open(host: str, allow: Sequence[str], proven: bool = False) -> None:
    """Refuse an address that other machines reach, unless the senders are named or `proven` by certificates.

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
    """One DICOM application entity that accepts objects."""

    def __init__(self, intake: Intake, settings: ListenerSettings | None = None) -> None:
        """Configure it.

        Raises:
            ConfigError: an invalid title.
        """
        from pynetdicom import AE, _config
        from pynetdicom.sop_class import Verification

        from m3bind.hospital.connection_limits import PDU

        _config.STORE_RECV_CHUNKED_DATASET = True
        _config.LOG_HANDLER_LEVEL = "none"
        logging.getLogger("pynetdicom").setLevel(logging.CRITICAL + 1)  # it quotes received values
        self._intake, self._settings = intake, settings or ListenerSettings()
        try:
            self._ae = AE(self._settings.aet)
            self._ae.require_called_aet = True
            self._ae.require_calling_aet = list(self._settings.allow)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"an application entity title has 1 to 16 characters: {error}") from error
        self._ae.maximum_associations = self._settings.associations
        self._ae.acse_timeout = self._ae.dimse_timeout = self._ae.network_timeout = self._settings.timeout
        self._ae.maximum_pdu_size = PDU // 4
        self._ae.add_supported_context(Verification)
        for uid in intake.kinds:
            self._ae.add_supported_context(uid, _SYNTAXES)
        self._server: Any = None
        self._porch: PendingConnections | None = None
        self._before: Any = None  # pynetdicom's class for received files
        self._guard = threading.Lock()
        self._received: Counter[Any] = Counter()  # bytes of the object an association is sending
        self._connected: set[Any] = set()  # associations that are not known to have ended

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self._server.server_address[1])

    def start(self, host: str, port: int) -> None:
        """Listen. Port 0 takes a free one.

        Raises:
            ConfigError: the address is not available.
        """
        from pynetdicom import evt

        from m3bind.hospital.connection_limits import receive_into

        handlers = [
            (evt.EVT_CONN_OPEN, self._opened),
            (evt.EVT_C_STORE, self._store),
            (evt.EVT_DATA_RECV, self._count),
            (evt.EVT_ACSE_RECV, self._acse),
            (evt.EVT_CONN_CLOSE, lambda event: self._gone(event.assoc)),
        ]
        self._porch = PendingConnections(self._deliver, self._sweep, min(HELLO, self._ae.network_timeout))
        try:
            self._server = self._ae.make_server(
                (host, port), evt_handlers=handlers, server_class=_server(self._porch, self._settings.tls)
            )
        except OSError as error:
            self._porch.close()
            raise ConfigError(f"cannot listen on {host}:{port} ({error.strerror}); choose another --port") from error
        self._ae._servers.append(self._server)
        self._before = receive_into(self._intake.spool.incoming)
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True).start()

    def _deliver(self, connection: Any, address: Any) -> None:
        """Give a connection that has requested an association its thread, unless there are too many."""
        connection.settimeout(self._ae.network_timeout)
        if len(self._server.active_associations) < 4 * self._ae.maximum_associations:
            self._server.begin(connection, address)
        else:
            self._server.shutdown_request(connection)

    def stop(self, seconds: float) -> None:
        """Accept no more associations, wait up to `seconds` for running ones, then abort them."""
        from m3bind.hospital.connection_limits import restore

        self._server.shutdown()
        if self._porch is not None:
            self._porch.close()
        end = time.monotonic() + seconds
        while self._ae.active_associations and time.monotonic() < end:
            time.sleep(0.05)
        for association in self._ae.active_associations:
            association.abort()
        restore(self._before)
        self._sweep()
        self._intake.spool.settle()

    def _opened(self, event: Any) -> None:
        from m3bind.hospital.connection_limits import guard

        guard(event.assoc, self._ae.network_timeout, self._intake.refuse)
        with self._guard:
            self._connected.add(event.assoc)

    def _store(self, event: Any) -> int:
        """Accept one object."""
        try:
            failed = getattr(event.request._dataset_file, "failed", "")
            if failed:
                self._intake.refuse(f"the received file cannot be written ({failed})")
                return OUT_OF_RESOURCES
            unit = self._intake.take(event.dataset_path).unit
        except Refused as refused:
            return _ANSWERS[refused.why]
        except DiskError as error:
            log.error("%s; the answer asks senders to try again later", error)
            return OUT_OF_RESOURCES
        except Exception as error:
            log.error("an object could not be accepted (%s)", type(error).__name__)
            return OUT_OF_RESOURCES
        finally:
            self._received.pop(event.assoc, None)
        self._intake.spool.sending(event.assoc, unit)
        return SUCCESS

    def _count(self, event: Any) -> None:
        """Abort an association whose object grows too large; in a thread, as this one must continue to read."""
        with self._guard:
            self._received[event.assoc] += len(event.data)
            over = self._received[event.assoc] > self._intake.max_bytes + SLACK
            if over:
                self._received[event.assoc] = -(1 << 62)
        if over:
            self._intake.refuse(f"larger than {self._intake.max_bytes:,} bytes: association aborted")
            threading.Thread(target=event.assoc.abort, daemon=True).start()

    def _acse(self, event: Any) -> None:
        """A sender that releases its association has sent everything."""
        from pynetdicom.pdu_primitives import A_RELEASE

        if isinstance(event.primitive, A_RELEASE):
            units = self._intake.spool.left(event.assoc, broken=False)
            if self._settings.complete == "release":
                self._intake.spool.complete(units)

    def _gone(self, association: Any) -> None:
        """Forget an association and its partly received file; without a release, its series are broken off."""
        with self._guard:
            self._connected.discard(association)
            self._received.pop(association, None)
        self._intake.spool.left(association, broken=True)
        message = getattr(association.dimse, "message", None)
        path = getattr(message, "_data_set_path", None)
        if path is not None:
            path.unlink(missing_ok=True)

    def _sweep(self) -> None:
        """Forget associations that ended without an event."""
        with self._guard:
            ended = [association for association in self._connected if not association.is_alive()]
        for association in ended:
            self._gone(association)


def _server(pending: PendingConnections, tls: ssl.SSLContext | None) -> Any:
    """A server whose connections wait apart until they request an association."""
    from pynetdicom.transport import ThreadedAssociationServer

    class Server(ThreadedAssociationServer):  # type: ignore[misc]  # its package has no types
        daemon_threads = True
        request_queue_size = 128

        def get_request(self) -> tuple[Any, Any]:
            plain, address = self.socket.accept()
            if tls is None:
                return plain, address
            return tls.wrap_socket(plain, server_side=True, do_handshake_on_connect=False), address

        def process_request(self, request: Any, client_address: Any) -> None:
            pending.add(request, client_address)

        def begin(self, request: Any, client_address: Any) -> None:
            """Give a connection its thread."""
            super().process_request(request, client_address)

        def handle_error(self, request: Any, client_address: Any) -> None:
            """No traceback, which would name the client."""

    return Server
