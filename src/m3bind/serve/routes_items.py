"""Items and uploads as they can be seen: facts, thumbnails, pictures, signals, phrases; and bringing files.

* `add`: these routes, each for items of the index and for uploads.
"""

import hashlib
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response

from m3bind.errors import ReadError
from m3bind.modalities.formats.archive import temporary_folder
from m3bind.serve import pictures, schemas, uploads
from m3bind.serve.archive import ArchiveState
from m3bind.serve.errors import Refusal
from m3bind.serve.multipart import receive
from m3bind.serve.pictures import Window
from m3bind.serve.previews import Preview
from m3bind.serve.schemas import QuestionPart
from m3bind.serve.service import Service

Thumb = Annotated[int, Query(ge=16, le=512, description="pixels of the longer side")]
Size = Annotated[int, Query(ge=16, le=2048, description="pixels of the longer side")]
Slice = Annotated[int | None, Query(ge=0, le=100_000, description="of a volume, 0 is nearest to the feet")]
Count = Annotated[int, Query(ge=1, le=50)]
PNG: dict[int | str, dict[str, Any]] = {200: {"content": {"image/png": {}}, "description": "a PNG"}}
FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {
                        "file": {"type": "array", "items": {"type": "string", "format": "binary"}, "minItems": 1},
                        "modality": {"type": "string"},
                    },
                }
            }
        },
    }
}


def add(router: APIRouter, service: Service) -> None:
    """Add the routes to `router`."""
    _add_bringing(router, service)
    _add_uploads(router, service)
    _add_items(router, service)


def _add_bringing(router: APIRouter, service: Service) -> None:
    @router.post(
        "/api/uploads", response_model=schemas.UploadAnswer, status_code=201, tags=["uploads"], openapi_extra=FORM
    )
    async def bring(request: Request) -> Any:
        """Encode a file, the slices of a series, or the files of a WFDB record; kept in memory for a while."""
        kind = request.headers.get("content-type", "")
        with temporary_folder() as folder:
            form = await receive(kind, request.stream(), folder, service.settings.files)
            modality = form.fields.get("modality") or None
            if modality is not None and modality not in service.space.modalities:
                known = ", ".join(service.space.modalities)
                raise Refusal(400, "unknown", f"This space holds no such modality; known: {known}.")
            decoded = await service.files.run(uploads.decode, service.space, form.files, modality)
        upload = await service.towers.run(uploads.embed, service.space, decoded)
        name = service.uploads.add(upload)
        told = {"id": name, "modality": upload.modality, "warnings": upload.warnings, "steps": upload.steps}
        return JSONResponse(told, 201)


def _add_uploads(router: APIRouter, service: Service) -> None:
    kept = service.uploads

    @router.get("/api/uploads/{id}", response_model=schemas.ItemAnswer, tags=["uploads"])
    async def facts(id: str) -> Any:
        """What is known of an upload."""
        upload = kept.get(id)
        return JSONResponse(_facts(id, upload.modality, {}, upload.preview))

    @router.get("/api/uploads/{id}/thumbnail", responses=PNG, response_class=Response, tags=["uploads"])
    async def thumbnail(id: str, request: Request, size: Thumb = 160) -> Response:
        """A small picture."""
        return _png(request, await service.files.run(pictures.thumbnail, kept.get(id).preview, size))

    @router.get("/api/uploads/{id}/picture", responses=PNG, response_class=Response, tags=["uploads"])
    async def picture(
        id: str, request: Request, size: Size = 768, slice: Slice = None, window: Window | None = None
    ) -> Response:
        """A picture; of a volume one slice."""
        return _png(request, await service.files.run(pictures.picture, kept.get(id).preview, size, slice, window))

    @router.get("/api/uploads/{id}/signal", response_model=schemas.SignalAnswer, tags=["uploads"])
    async def signal(id: str) -> Any:
        """The leads of an ECG."""
        return JSONResponse(await service.files.run(pictures.signal, kept.get(id).preview))

    @router.get("/api/uploads/{id}/texts", response_model=schemas.PhrasesAnswer, tags=["uploads"])
    async def texts(id: str, k: Count = 5) -> Any:
        """The nearest phrases of the vocabulary."""
        return JSONResponse({"texts": await service.ask(_near(service, "upload", id, k))})


def _add_items(router: APIRouter, service: Service) -> None:
    def on_preview(id: str, work: Callable[..., Any], *arguments: Any) -> Callable[[ArchiveState], Any]:
        return lambda state: work(service.preview(service.seen(state, id)), *arguments)

    @router.get("/api/items/{id:path}/thumbnail", responses=PNG, response_class=Response, tags=["items"])
    async def thumbnail(id: str, request: Request, size: Thumb = 160) -> Response:
        """A small picture."""
        return _png(request, await service.see(lambda state: service.thumbnail(service.seen(state, id), size)))

    @router.get("/api/items/{id:path}/picture", responses=PNG, response_class=Response, tags=["items"])
    async def picture(
        id: str, request: Request, size: Size = 768, slice: Slice = None, window: Window | None = None
    ) -> Response:
        """A picture; of a volume one slice."""
        return _png(request, await service.see(on_preview(id, pictures.picture, size, slice, window)))

    @router.get("/api/items/{id:path}/signal", response_model=schemas.SignalAnswer, tags=["items"])
    async def signal(id: str) -> Any:
        """The leads of an ECG."""
        return JSONResponse(await service.see(on_preview(id, pictures.signal)))

    @router.get("/api/items/{id:path}/texts", response_model=schemas.PhrasesAnswer, tags=["items"])
    async def texts(id: str, k: Count = 5) -> Any:
        """The nearest phrases of the vocabulary."""
        return JSONResponse({"texts": await service.ask(_near(service, "item", id, k))})

    @router.get("/api/items/{id:path}", response_model=schemas.ItemAnswer, tags=["items"])
    async def facts(id: str) -> Any:
        """What is known of an item."""

        def work(state: ArchiveState) -> dict[str, Any]:
            item = service.seen(state, id)
            try:
                preview = service.preview(item)
            except (Refusal, ReadError):
                preview = None
            return _facts(id, item.modality, item.fields, preview)

        return JSONResponse(await service.see(work))


def _near(service: Service, kind: Any, name: str, k: int) -> Callable[[ArchiveState], Any]:
    return lambda state: service.near(state, [QuestionPart(kind=kind, value=name)], k)


def _facts(name: str, modality: str, fields: dict[str, str], preview: Preview | None) -> dict[str, Any]:
    kind = "image" if preview is None else preview.kind
    slices = None if preview is None else preview.slices
    known = {"id": name, "modality": modality, "fields": fields}
    return {**known, "picture": preview is not None, "kind": kind, "slices": slices}


def _png(request: Request, data: bytes) -> Response:
    """A picture that a browser may keep; nothing but 304 where it has it already."""
    mark = f'"{hashlib.sha256(data).hexdigest()[:32]}"'
    lines = {"etag": mark, "cache-control": "private, max-age=3600"}
    if mark in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=lines)
    return Response(data, media_type="image/png", headers=lines)
