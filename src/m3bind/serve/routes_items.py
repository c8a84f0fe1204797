"""Items and uploads: facts, thumbnails, images, signals, phrases; and the upload of files.

* `add`: these routes, each for items of the index and for uploads.
"""

import hashlib
from collections.abc import Callable
from enum import Enum
from typing import Annotated, Any, Literal, TypeVar

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response

from m3bind.errors import ReadError
from m3bind.modalities.formats.archive import temporary_folder
from m3bind.serve import pictures, schemas, uploads
from m3bind.serve.errors import Refusal
from m3bind.serve.index_reload import ArchiveState
from m3bind.serve.multipart import receive
from m3bind.serve.pictures import Window
from m3bind.serve.previews import Preview
from m3bind.serve.schemas import QuestionPart
from m3bind.serve.service import Service

T = TypeVar("T")
Thumb = Annotated[int, Query(ge=16, le=512, description="pixels of the longer side")]
Size = Annotated[int, Query(ge=16, le=2048, description="pixels of the longer side")]
Slice = Annotated[int | None, Query(ge=0, le=100_000, description="of a volume, 0 is nearest to the feet")]
Count = Annotated[int, Query(ge=1, le=50)]
PNG: dict[int | str, dict[str, Any]] = {200: {"content": {"image/png": {}}, "description": "a PNG"}}
_FILES = {"type": "array", "items": {"type": "string", "format": "binary"}, "minItems": 1}
_SCHEMA = {"type": "object", "required": ["file"], "properties": {"file": _FILES, "modality": {"type": "string"}}}
FORM = {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": _SCHEMA}}}}


def add(router: APIRouter, service: Service) -> None:
    """Add the routes to `router`."""
    _add_upload(router, service)
    _add_views(router, service, "upload", "/api/uploads/{id}")
    _add_views(router, service, "item", "/api/items/{id:path}")


def _add_upload(router: APIRouter, service: Service) -> None:
    @router.post(
        "/api/uploads", response_model=schemas.UploadAnswer, status_code=201, tags=["uploads"], openapi_extra=FORM
    )
    async def bring(request: Request) -> Any:
        """Encode a file, the slices of a series, or the files of a WFDB record; stored in memory for a while."""
        kind = request.headers.get("content-type", "")
        with temporary_folder() as folder:
            form = await receive(kind, request.stream(), folder, service.settings.files)
            modality = form.fields.get("modality") or None
            if modality is not None and modality not in service.space.modalities:
                known = ", ".join(service.space.modalities)
                raise Refusal(400, "unknown", f"This space has no such modality; known: {known}.")
            decoded = await service.files.run(uploads.decode, service.space, form.files, modality)
        upload = await service.towers.run(uploads.embed, service.space, decoded)
        name = service.uploads.add(upload)
        facts = {"id": name, "modality": upload.modality, "warnings": upload.warnings, "steps": upload.steps}
        return JSONResponse(facts, 201)


def _add_views(router: APIRouter, service: Service, kind: Literal["item", "upload"], root: str) -> None:
    tags: list[str | Enum] = [f"{kind}s"]

    async def see(id: str, work: Callable[..., T], *arguments: Any) -> T:
        """`work(preview, *arguments)`."""
        if kind == "upload":
            return await service.files.run(work, service.uploads.get(id).preview, *arguments)
        return await service.see(lambda state: work(service.preview(service.seen(state, id)), *arguments))

    @router.get(root + "/thumbnail", responses=PNG, response_class=Response, tags=tags)
    async def thumbnail(id: str, request: Request, size: Thumb = 160) -> Response:
        """A small image."""
        if kind == "upload":
            return _png(request, await see(id, pictures.thumbnail, size))
        return _png(request, await service.see(lambda state: service.thumbnail(service.seen(state, id), size)))

    @router.get(root + "/picture", responses=PNG, response_class=Response, tags=tags)
    async def picture(
        id: str, request: Request, size: Size = 768, slice: Slice = None, window: Window | None = None
    ) -> Response:
        """An image; of a volume one slice."""
        return _png(request, await see(id, pictures.picture, size, slice, window))

    @router.get(root + "/signal", response_model=schemas.SignalAnswer, tags=tags)
    async def signal(id: str) -> Any:
        """The leads of an ECG."""
        return JSONResponse(await see(id, pictures.signal))

    @router.get(root + "/texts", response_model=schemas.PhrasesAnswer, tags=tags)
    async def texts(id: str, k: Count = 5) -> Any:
        """The nearest phrases of the vocabulary."""
        parts = [QuestionPart(kind=kind, value=id)]
        return JSONResponse({"texts": await service.ask(lambda state: service.near(state, parts, k))})

    @router.get(root, response_model=schemas.ItemAnswer, tags=tags)
    async def facts(id: str) -> Any:
        """The facts of an item or an upload."""
        if kind == "upload":
            upload = service.uploads.get(id)
            return JSONResponse(_facts(id, upload.modality, {}, upload.preview))

        def work(state: ArchiveState) -> dict[str, Any]:
            item = service.seen(state, id)
            try:
                preview = service.preview(item)
            except (Refusal, ReadError):
                preview = None
            return _facts(id, item.modality, item.fields, preview)

        return JSONResponse(await service.see(work))


def _facts(name: str, modality: str, fields: dict[str, str], preview: Preview | None) -> dict[str, Any]:
    kind = "image" if preview is None else preview.kind
    slices = None if preview is None else preview.slices
    known = {"id": name, "modality": modality, "fields": fields}
    return {**known, "picture": preview is not None, "kind": kind, "slices": slices}


def _png(request: Request, data: bytes) -> Response:
    """An image that a browser may cache; 304 if it has it already."""
    mark = f'"{hashlib.sha256(data).hexdigest()[:32]}"'
    lines = {"etag": mark, "cache-control": "private, max-age=3600"}
    if mark in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=lines)
    return Response(data, media_type="image/png", headers=lines)
