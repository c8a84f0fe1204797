"""Queries: search, encode, zero-shot, nearest phrases, the map.

* `add`: these routes.
"""

import time
from collections import Counter
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from m3bind.search.searcher import Hit
from m3bind.serve import schemas
from m3bind.serve.index_reload import ArchiveState
from m3bind.serve.schemas import Encode, Phrases, Place, Search, ZeroShot
from m3bind.serve.service import Service

OPTIONS = {"rank", "per_modality"}


def add(router: APIRouter, service: Service) -> None:
    """Add the routes to `router`."""

    @router.post("/api/search", response_model=schemas.SearchAnswer, tags=["search"])
    async def search(asked: Search) -> Any:
        """The nearest items to a query of texts, items and uploads."""
        begun = time.perf_counter()

        def work(state: ArchiveState) -> dict[str, Any]:
            vectors = service.questions.vectors(state, asked.parts, asked.along)
            own = {part.value for part in asked.parts if part.kind == "item"}
            options = asked.model_dump(include=OPTIONS)
            hits = state.searcher.nearest(vectors, asked.k, asked.where.where(), [own], **options)[0]
            listed = [_hit(rank, hit, service.roots.allow(hit.path)) for rank, hit in enumerate(hits, 1)]
            ranking = state.searcher.ranking
            searched = asked.where.modality or ranking.modalities
            values = zip(ranking.modalities, ranking.relevance(vectors)[0].round(4).tolist())
            relevance = {name: value for name, value in values if name in searched}
            counts = dict(sorted(Counter(hit.modality for hit in hits).items()))
            return {"hits": listed, "counts": counts, "relevance": relevance}

        found = await service.ask(work)
        return JSONResponse({**found, "seconds": round(time.perf_counter() - begun, 4)})

    @router.post("/api/encode", response_model=schemas.EncodeAnswer, tags=["search"])
    async def encode(asked: Encode) -> Any:
        """Texts or uploads as unit vectors of the space."""
        if asked.uploads is not None:
            rows = [service.uploads.get(name).row.tolist() for name in asked.uploads]
        else:
            texts = asked.texts or []
            rows = await service.ask(lambda state: service.questions.texts(texts).tolist())
        return JSONResponse({"vectors": rows})

    @router.post("/api/zero-shot", response_model=schemas.ZeroShotAnswer, tags=["search"])
    async def zero_shot(asked: ZeroShot) -> Any:
        """Probabilities of labels for an item or an upload, or an abstention."""
        return JSONResponse(await service.ask(lambda state: service.zero_shot.answer(state, asked)))

    @router.post("/api/texts", response_model=schemas.PhrasesAnswer, tags=["search"])
    async def phrases(asked: Phrases) -> Any:
        """The phrases of the vocabulary that are nearest to a query."""
        return JSONResponse({"texts": await service.ask(lambda state: service.near(state, asked.parts, asked.k))})

    @router.get("/api/map", response_model=schemas.MapAnswer, tags=["map"])
    async def layout() -> Any:
        """A sample of the items in two dimensions; computed in the background, again when the index changed."""
        return JSONResponse(await service.ask(service.layout.answer))

    @router.post("/api/map/place", response_model=schemas.PlaceAnswer, tags=["map"])
    async def place(asked: Place) -> Any:
        """The position of a query on the map: 503 while there is no map."""

        def work(state: ArchiveState) -> dict[str, float]:
            row = service.questions.vectors(state, asked.parts).rows[0]
            items = [part.value for part in asked.parts]
            alone = items[0] if len(items) == 1 and asked.parts[0].kind == "item" else None
            return service.layout.place(state, row, alone)

        return JSONResponse(await service.ask(work))


def _hit(rank: int, hit: Hit, may_be_shown: bool) -> dict[str, Any]:
    return {
        "rank": rank,
        "id": hit.id,
        "modality": hit.modality,
        "score": round(hit.score, 5),
        "calibrated": round(hit.calibrated, 4),
        "percentile": round(hit.percentile, 2),
        "relevance": round(hit.relevance, 4),
        "fields": dict(hit.fields),
        "picture": bool(hit.path) and may_be_shown,
    }
