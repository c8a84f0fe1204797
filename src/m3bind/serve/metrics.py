"""Metrics, the access log, and the last resort: every exception becomes an answer.

* `Metrics`: counters and gauges of one service, for Prometheus. * `Observed`: an ASGI application around another one.

Labels are templates of routes ("/api/items/{id}"), methods and statuses; a log line holds these and milliseconds.
"""

import logging
import time
from collections.abc import Callable
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from m3bind.serve.errors import answer, refusal_of
from m3bind.serve.request_limits import InFlightBytes
from m3bind.serve.service import Service

log = logging.getLogger("m3bind.serve.access")
METHODS = ("GET", "HEAD", "POST", "OPTIONS", "PUT", "DELETE", "PATCH")
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
GONE = 499  # the client disconnected before its answer


class Metrics:
    """The metrics of one service, in a registry of its own."""

    def __init__(self, service: Service, in_flight: InFlightBytes) -> None:
        self.registry = own = CollectorRegistry()
        names = ["route", "method", "status"]
        self.requests = Counter("m3bind_requests", "answered requests", names, registry=own)
        self.seconds = Histogram(
            "m3bind_request_seconds", "time to the answer", ["route"], buckets=BUCKETS, registry=own
        )
        self.running = Gauge("m3bind_requests_running", "requests that are being answered", registry=own)
        ProcessCollector(registry=own)

        def gauge(name: str, text: str, value: Callable[[], float]) -> None:
            Gauge(name, text, registry=own).set_function(value)

        gauge("m3bind_uploads", "uploads in memory", lambda: len(service.uploads))
        gauge("m3bind_upload_bytes", "memory of uploads", lambda: service.uploads.nbytes)
        gauge("m3bind_picture_bytes", "memory of decoded items", lambda: service.previews.nbytes)
        gauge("m3bind_body_bytes", "bytes of bodies that are being received", lambda: in_flight.nbytes)
        gauge("m3bind_index_items", "items of the index", lambda: sum(service.archive.items.values()))
        gauge("m3bind_index_stale", "1: the index changed and cannot be opened", lambda: service.archive.stale)
        for queue in (service.towers, service.files):
            for name in ("waiting", "running"):
                gauge(f"m3bind_{queue.name}_{name}", f"requests, {name}", partial(getattr, queue, name))

    def text(self) -> bytes:
        """All metrics in Prometheus' format."""
        return generate_latest(self.registry)


class Observed:
    """Counts and logs requests, and answers if `app` raises."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun, status = time.perf_counter(), 0

        async def seen(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self._metrics.running.inc()
        try:
            await self.app(scope, receive, seen)
        except ConnectionResetError:
            status = status or GONE
        except Exception as error:
            if status:
                raise _Broken from None  # the answer has begun: only a closed connection shows that it is incomplete
            await answer(refusal_of(error), scope, receive, seen)
        finally:
            self._metrics.running.dec()
            self._count(scope, status or GONE, time.perf_counter() - begun)

    def _count(self, scope: Scope, status: int, seconds: float) -> None:
        static = "/static/{path}" if scope["path"].startswith("/static/") else "other"
        route = getattr(scope.get("route"), "path", "") or static
        method = scope["method"] if scope["method"] in METHODS else "other"
        self._metrics.requests.labels(route, method, str(status)).inc()
        self._metrics.seconds.labels(route).observe(seconds)
        log.info("%s %s %d %.0f ms", method, route, status, 1000 * seconds)


class _Broken(Exception):
    """An incomplete answer."""
