"""The service as one ASGI application.

* `make_app`: from a space and an index -> `App`. From outside to inside:

    Observed (metrics)  counts, logs, and turns exceptions into answers
    Guard               host, origin, token; security headers of every answer
    RequestTimer        size and time of a body, time of the whole, disconnected clients
    FastAPI             routes_*: checks values, puts work into the queues of `Service`
"""

import contextlib
from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastapi import APIRouter, FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from m3bind.core.version import __version__
from m3bind.errors import M3BindError
from m3bind.evaluate.own_prompts import OwnClasses
from m3bind.index.roots import Roots
from m3bind.search.searcher import Source
from m3bind.serve import routes_about, routes_ask, routes_items
from m3bind.serve.access import Access
from m3bind.serve.errors import ANSWERS, Refusal, body_of, refusal_of
from m3bind.serve.metrics import Metrics, Observed
from m3bind.serve.middleware import LOOPBACK, Guard
from m3bind.serve.request_limits import InFlightBytes, RequestTimer
from m3bind.serve.service import Service
from m3bind.serve.settings import NOTICE, ServiceSettings
from m3bind.space.bundle import Space

_CODES = {404: ("not_found", "No such address."), 405: ("method", "This address takes other methods.")}


@dataclass
class App:
    """The ASGI application, and its parts."""

    service: Service
    inner: FastAPI
    outer: Observed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        await self.outer(scope, receive, send)


def make_app(
    space: Space,
    source: Source,
    *,
    token: str | None = None,
    hosts: Collection[str] | None = LOOPBACK,
    texts: Sequence[str] = (),
    settings: ServiceSettings | None = None,
    roots: Sequence[Path] | None = None,
    classes: Sequence[OwnClasses] = (),
) -> App:
    """A service of one space and one index.

    Args:
        space: the space the index was encoded with.
        source: an index, its URI, an encoded archive, or its folder.
        token: required of clients; None: every client that reaches the service may send requests.
        hosts: names the service may be called by; None: any.
        texts: further phrases for "nearest phrases".
        settings: limits.
        roots: folders below which files of items may be shown; None: all paths in the index, for one's own index only.
        classes: of prompt files (`evaluate.own_prompts.read_classes`), offered for zero-shot classification.

    Raises:
        SpaceError: the index is of another space, or cannot be opened.
    """
    settings = settings or ServiceSettings()
    service = Service(space, source, settings, texts, Roots(roots), classes)
    flying = InFlightBytes(settings.flying_bytes)
    access, metrics = Access(token, settings.login_seconds), Metrics(service, flying)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.begin()
        yield
        service.close()

    inner = FastAPI(
        title="m3bind",
        version=__version__,
        description=NOTICE,
        docs_url=None,  # both would load third-party scripts
        redoc_url=None,
        openapi_url="/api/openapi.json",
        lifespan=lifespan,
        responses=ANSWERS,
    )
    router = APIRouter()
    routes_about.add(router, service, access, metrics)
    routes_ask.add(router, service)
    routes_items.add(router, service)
    inner.include_router(router)
    inner.mount("/static", routes_about.Static(directory=routes_about.WEB, check_dir=False), name="static")
    for kind in (Refusal, M3BindError, Exception):
        inner.add_exception_handler(kind, _refused)
    inner.add_exception_handler(RequestValidationError, _invalid)
    inner.add_exception_handler(HTTPException, _http)
    outer = Observed(Guard(RequestTimer(inner, settings, flying), access, hosts), metrics)
    return App(service, inner, outer)


async def _refused(_: Request, error: Exception) -> JSONResponse:
    refusal = refusal_of(error)
    return JSONResponse(body_of(refusal), refusal.status, refusal.headers())


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    """The field and the reason, without the value."""
    assert isinstance(error, RequestValidationError)
    lines = [f"{'.'.join(map(str, line['loc']))}: {line['msg']}" for line in error.errors()[:5]]
    return await _refused(request, Refusal(422, "invalid", "; ".join(lines)))


async def _http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    if isinstance(error.__cause__, Refusal):  # raised while the body was read
        return await _refused(request, error.__cause__)
    code, message = _CODES.get(error.status_code, ("bad_request", "This request cannot be read."))
    return await _refused(request, Refusal(error.status_code, code, message))
