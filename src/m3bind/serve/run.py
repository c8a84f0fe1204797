"""The service as a process: from start to an orderly shutdown.

* `serve`: runs an application until SIGTERM or Ctrl-C; returns when running requests are finished.
  `make_server`: without running it. `log_to_stderr`: its log.
* `refuse_open`: an address that other machines reach needs a token. * `is_loopback`: whether they do not.
* `leave`: ends the process although a background thread still computes.

Clients that are slow with the head of a request, or that leave an answer unread, are disconnected; `request_limits`
bounds the body. On SIGTERM no request is accepted, and running ones get `ServiceSettings.stop_seconds`.
"""

import asyncio
import contextlib
import ipaddress
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from m3bind.errors import ConfigError
from m3bind.serve.access import VARIABLE
from m3bind.serve.settings import ServiceSettings

HEAD_BYTES = 32 << 10  # of a request's head
BACKGROUND = ("warm-up", "map", "reopen")  # threads of the service that are not joined
QUIET_SECONDS = 20  # between requests of a connection


def refuse_open(host: str, token: str | None) -> None:
    """Refuse to serve other machines without a token.

    Raises:
        ConfigError: the address is not a loopback one, and there is no token.
    """
    if token is None and not is_loopback(host):
        raise ConfigError(
            f"--host {host} can be reached from other machines, so a token is needed: set {VARIABLE}, or give a file "
            "with --token-file. Traffic is not encrypted: put a proxy with TLS in front."
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def serve(
    app: Any, host: str, port: int, settings: ServiceSettings | None = None, started: Callable[[str], None] = print
) -> None:
    """Run until a signal to stop; `started` gets the address.

    Raises:
        ConfigError: the address cannot be bound.
    """
    server, listener = make_server(app, host, port, settings or ServiceSettings(), started)
    server.run([listener])


def make_server(
    app: Any, host: str, port: int, settings: ServiceSettings, started: Callable[[str], None]
) -> tuple[uvicorn.Server, socket.socket]:
    """A server that does not run yet, and its bound socket.

    Raises:
        ConfigError: the address cannot be bound.
    """
    listener = _bound(host, port)
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{listener.getsockname()[1]}/"
    config = uvicorn.Config(
        app,
        http=_protocol(settings.header_seconds, settings.unread_seconds),
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=settings.connections,
        timeout_keep_alive=QUIET_SECONDS,
        timeout_graceful_shutdown=round(settings.stop_seconds),
        h11_max_incomplete_event_size=HEAD_BYTES,
    )
    server = _Server(config)
    server.on_start = lambda: started(address)
    return server, listener


def leave() -> None:
    """End the process at once, with exit code 0, if a warm-up or a map is still being computed; else return.

    Such a thread may be inside of a native library, which aborts the process when Python ends around it.
    """
    if any(thread.name in BACKGROUND for thread in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def log_to_stderr(level: int) -> None:
    """Log lines of the service on standard error; uvicorn's own are few and hold no identifiers."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(message)s"))
    for name, lowest in (("m3bind.serve", level), ("uvicorn.error", logging.ERROR)):
        log = logging.getLogger(name)
        log.handlers, log.propagate = [handler], False
        log.setLevel(lowest)
    logging.getLogger("m3bind.index.calibration").setLevel(logging.ERROR)  # it names the folder of the index


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host.strip("[]"), port))
    except OSError as error:
        listener.close()
        raise ConfigError(f"cannot listen at {host}:{port}: {error.strerror}; choose another --port") from None
    return listener


class _Server(uvicorn.Server):
    """Ends with exit code 0 after a signal to stop."""

    on_start: Callable[[], None]

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.on_start()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        numbers: list[signal.Signals] = []
        with contextlib.suppress(ValueError, RuntimeError):  # not in the main thread: a test
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, self._stop)
                numbers.append(number)
        try:
            yield
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)

    def _stop(self) -> None:
        if self.should_exit:  # the second time
            self.force_exit = True
        self.should_exit = True


def _protocol(seconds: float, unread: float) -> type[H11Protocol]:
    """HTTP/1.1 that closes a connection if a head, a refused body or the reading of an answer takes too long."""

    class Timed(H11Protocol):
        _late: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            with contextlib.suppress(OSError, AttributeError):  # Linux: covers bytes that wait at a closed window
                wire = transport.get_extra_info("socket")
                wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(1000 * unread))
            self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            self._forget()
            super().connection_lost(exc)

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if self.conn.their_state is h11.SEND_BODY:
                self._watch()

        def timeout_keep_alive_handler(self) -> None:
            super().timeout_keep_alive_handler()
            self.loop.call_later(seconds, self.transport.abort)

        def _watch(self) -> None:
            """Start the clock when it is the client's turn, stop it when it is ours."""
            busy = self.cycle is not None and not self.cycle.response_complete
            if busy or self.transport.is_closing():
                self._forget()
            elif self._late is None:
                self._late = self.loop.call_later(seconds, self.transport.abort)

        def _forget(self) -> None:
            if self._late is not None:
                self._late.cancel()
                self._late = None

    return Timed
