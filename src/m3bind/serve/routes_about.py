"""About the service, the login, health, metrics, and the page.

* `add`: these routes.
"""

import asyncio
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from fastapi.staticfiles import StaticFiles

from m3bind import modalities
from m3bind.core.version import __version__
from m3bind.serve.access import COOKIE, Access
from m3bind.serve.errors import Refusal
from m3bind.serve.index_reload import ArchiveState
from m3bind.serve.metrics import Metrics
from m3bind.serve.schemas import AboutAnswer, Login
from m3bind.serve.service import Service
from m3bind.serve.settings import HITS, LABELS, NOTICE, PARTS, TEXT_CHARS

WEB = Path(__file__).parent / "web"
PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"
WRONG_TOKEN_SECONDS = 0.5  # a wrong login waits that long


def add(router: APIRouter, service: Service, access: Access, metrics: Metrics) -> None:
    """Add the routes to `router`."""

    @router.get("/api/about", response_model=AboutAnswer, tags=["about"])
    async def about() -> Any:
        """The content and limits of this service."""
        return JSONResponse(await service.ask(lambda state: describe(service, state)))

    @router.post("/api/login", status_code=204, tags=["about"])
    async def login(given: Login, request: Request) -> Response:
        """Exchange the token for a cookie, for pages."""
        if access.open:
            return Response(status_code=204)
        if not access.fits(given.token):
            await asyncio.sleep(WRONG_TOKEN_SECONDS)
            raise Refusal(401, "token", "This is not the token of the service.")
        response = Response(status_code=204)
        response.set_cookie(
            COOKIE, access.cookie(), max_age=int(access.seconds), path="/", httponly=True, samesite="strict",
            secure="https" in (request.url.scheme, request.headers.get("x-forwarded-proto")),
        )  # fmt: skip
        return response

    @router.get("/healthz", tags=["operation"], response_class=PlainTextResponse)
    async def healthz() -> PlainTextResponse:
        """Whether the process answers."""
        return PlainTextResponse("ok\n")

    @router.get("/readyz", tags=["operation"], response_class=PlainTextResponse)
    async def readyz() -> PlainTextResponse:
        """Whether queries are answered."""
        if service.stopping or not service.ready:
            return PlainTextResponse("stopping\n" if service.stopping else "starting\n", 503, {"Retry-After": "1"})
        return PlainTextResponse("ready\n")

    @router.get("/metrics", tags=["operation"], response_class=PlainTextResponse)
    async def numbers() -> Response:
        """Counters and gauges for Prometheus."""
        return Response(metrics.text(), media_type=PROMETHEUS)

    @router.get("/", include_in_schema=False)
    async def page() -> Response:
        if not (WEB / "index.html").is_file():
            raise Refusal(404, "no_page", "This installation has no page; see the API at /api/openapi.json.")
        return FileResponse(WEB / "index.html", headers={"cache-control": "no-cache"})


class Static(StaticFiles):
    """The files of the page; a browser revalidates them each time."""

    def file_response(self, *arguments: Any, **options: Any) -> Response:
        """As in Starlette, with a cache header."""
        response = super().file_response(*arguments, **options)
        response.headers["cache-control"] = "no-cache"
        return response


def describe(service: Service, state: ArchiveState) -> dict[str, Any]:
    """The values of `AboutAnswer`."""
    space, index = service.space, state.index
    kinds = [(name, modalities.get(name)) for name in space.modalities]
    return {
        "version": __version__,
        "synthetic": space.synthetic,
        "dim": space.dim,
        "modalities": [
            {
                "name": name,
                "title": kind.title or name,
                "color": kind.color,
                "accepts": list(kind.suffixes),
                "items": state.counts.get(name, 0),
            }
            for name, kind in kinds
        ],
        "items": len(index),
        "columns": [name for name in index.columns if name != "path"],
        "labels": {name: state.labels.get(name, []) for name in space.modalities},
        "classes": [asdict(own) for own in service.classes],
        "limits": {
            "body_bytes": service.settings.body_bytes,
            "text_chars": TEXT_CHARS,
            "k": HITS,
            "parts": PARTS,
            "labels": LABELS,
        },
        "pictures": state.pictures,
        "texts": len(service.phrases),
        "notice": NOTICE,
    }
