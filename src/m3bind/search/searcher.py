"""Search: from texts, files, items, or a mix of them, to the nearest items of an index.

* `Searcher`: a space and an index, for many queries. * `search`: one query in one call. * `Hit`: a found item.
* `searchable`: opens an index by its URI, or an encoded archive.

Hits of several modalities are merged by how much their modality has to say to the query and by their score in it
(`ranking`), not by their cosine, which favours one modality. Shapes: q queries, d dimension of the space.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from m3bind.encode.encoded import MARKER, Encoded, open_encoded
from m3bind.errors import ConfigError, SpaceError, UnknownNameError
from m3bind.index.base import INCOMPLETE, KEY, Index, SearchResult, Where
from m3bind.index.calibration import calibration_of
from m3bind.index.uri import open_index
from m3bind.models.embedding import Array, correct_gap
from m3bind.search.along import ConceptAxis
from m3bind.search.query import TEXT, Query, QueryPart
from m3bind.search.ranking import QueryVectors, RankedQueries, Ranking
from m3bind.search.thumbnails import thumbnail
from m3bind.space.bundle import Space
from m3bind.space.unlike import UNLIKE

Rank = Literal["calibrated", "cosine"]
Source = Index | Encoded | Path | str


@dataclass(frozen=True)
class Hit:
    """One found item.

    `score` is the cosine to the query; `calibrated` how many standard deviations it is above what is usual in this
    modality; `percentile` its rank there: the share of this modality's items, in %, that fit less; `relevance` how much
    the modality has to say to the query, in (0, 1] (`ranking.Ranking`).
    """

    score: float
    calibrated: float
    percentile: float
    id: str
    modality: str
    relevance: float = 1.0
    path: str = ""  # as stored in the index; "" if it stores none
    fields: Mapping[str, str] = field(default_factory=dict)  # the other non-empty columns

    @property
    def merged(self) -> float:
        """What hits of several modalities are ordered by."""
        return self.calibrated + math.log(self.relevance)

    @property
    def incomplete(self) -> str:
        """Why the item may lack a part, e.g. a series with missing slices; "" if it is complete."""
        return self.fields.get(INCOMPLETE, "")

    @property
    def unlike(self) -> str:
        """Why the item is unlike the training data of the space; "" if it is not, or if that was not measured."""
        return self.fields.get(UNLIKE, "")

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        values = {"score": self.score, "calibrated": self.calibrated, "percentile": self.percentile}
        return values | {
            "relevance": self.relevance,
            "id": self.id,
            "modality": self.modality,
            "path": self.path,
            "fields": dict(self.fields),
        }

    def thumbnail(self, size: int = 160) -> Image.Image:
        """A small image, read from the item's file; the last ones are cached.

        Raises:
            ReadError: the file cannot be read.
            ConfigError: the index stores no paths.
        """
        return thumbnail(self.modality, self.path, size)


class Searcher:
    """Searches an index with its space; modalities and calibration are looked up once. Thread-safe if the index is."""

    def __init__(self, space: Space, source: Source, workers: int | None = None) -> None:
        """Open the index.

        Args:
            space: the space the index was encoded with.
            source: an index, its URI, an encoded archive, or its folder.
            workers: processes that read the files of queries; one per usable core by default.

        Raises:
            SpaceError: the index is of another space, or cannot be opened.
        """
        self.space, self.index, self._workers = space, searchable(source), workers
        if self.index.fingerprint != space.fingerprint:
            raise SpaceError(f"{self.index.uri} was encoded with another space; encode it again with this one")
        self.calibration = calibration_of(self.index)
        self.ranking = Ranking.of(space, self.calibration)

    def search(
        self,
        query: Query | str,
        k: int = 10,
        where: Where | None = None,
        *,
        rank: Rank = "calibrated",
        per_modality: bool = False,
        gap_correction: bool | None = None,
        along: tuple[str, str] | None = None,
    ) -> list[Hit]:
        """The k best items, best first; see `search_many`."""
        options: dict[str, Any] = {"rank": rank, "per_modality": per_modality, "gap_correction": gap_correction}
        return self.search_many([query], k, where, along=along, **options)[0]

    def search_many(
        self,
        queries: Sequence[Query | str],
        k: int = 10,
        where: Where | None = None,
        *,
        rank: Rank = "calibrated",
        per_modality: bool = False,
        gap_correction: bool | None = None,
        along: tuple[str, str] | None = None,
    ) -> list[list[Hit]]:
        """The hits of each query, best first; all queries are searched together.

        Args:
            queries: a text stands for `Query.text`. Items in a query are not among its hits.
            k: hits per query; fewer if there are fewer items.
            where: conditions on the items.
            rank: order of hits of several modalities: "calibrated" or "cosine".
            per_modality: k hits of each modality, one modality after the other, the most relevant one first.
            gap_correction: subtract the modality's mean embedding from files. Default: as in the index, so that both
                sides are corrected or neither; correcting the files alone changed precision of search across
                modalities by under .01 (docs/search.md).
            along: two opposite wordings, e.g. ("normal", "abnormal"): rank by the query's side of this axis (along.py).

        Raises:
            ConfigError: k < 1, a query that cannot be combined, or an axis of two equal wordings.
            SpaceError: a text or uncorrected files, on an index with gap correction; a mean is missing.
            UnknownNameError: no such modality, item or text tower.
            ReadError: a file cannot be read.
        """
        _check(k, rank)
        parsed, own = [], []
        for query in queries:
            parsed.append(Query.text(query) if isinstance(query, str) else query)
            own.append({part.value for part in parsed[-1].parts if part.kind == "item"})
        if not parsed:
            return []
        vectors = self._embed(parsed, gap_correction, along)
        return self.nearest(vectors, k, where, own, rank=rank, per_modality=per_modality)

    def nearest(
        self,
        queries: QueryVectors | Array,
        k: int = 10,
        where: Where | None = None,
        own: Sequence[set[str]] | None = None,
        *,
        rank: Rank = "calibrated",
        per_modality: bool = False,
    ) -> list[list[Hit]]:
        """The hits of queries given as unit vectors.

        Unit vectors (q, d) alone, of which no parts are known, are ranked by z. `own`: ids to exclude from the hits of
        each. Other arguments, and errors: see `search_many`.
        """
        _check(k, rank)
        if not isinstance(queries, QueryVectors):
            queries = QueryVectors(queries)
        own = own or [set() for _ in queries.rows]
        relevance = self.ranking.relevance(queries)
        ranked = (self.ranking if rank == "calibrated" else Ranking(self.calibration)).of_queries(queries)
        found = []  # of each modality, a list per query
        for name in self._modalities(where):
            number = self.ranking.modalities.index(name)
            found.append(self._hits(ranked, relevance[:, number], name, k, where, own))
        lists = [[hits[number] for hits in found] for number in range(len(queries.rows))]  # of each query, per modality
        if per_modality:
            for hits in lists:
                hits.sort(key=lambda group: -group[0].relevance if group else 0.0)
            return [list(chain.from_iterable(hits)) for hits in lists]
        key = (lambda hit: -hit.merged) if rank == "calibrated" else (lambda hit: -hit.score)
        return [sorted(chain.from_iterable(hits), key=key)[:k] for hits in lists]

    def embed(
        self, queries: Sequence[Query], gap_correction: bool | None = None, along: tuple[str, str] | None = None
    ) -> Array:
        """The unit vectors (q, d) of queries; each tower is called once. Arguments and errors: `search_many`."""
        return self._embed(queries, gap_correction, along).rows

    def _embed(
        self, queries: Sequence[Query], gap_correction: bool | None, along: tuple[str, str] | None
    ) -> QueryVectors:
        corrected = self.index.gap_corrected if gap_correction is None else gap_correction
        parts = list(dict.fromkeys(chain.from_iterable(query.parts for query in queries)))
        if self.index.gap_corrected:
            if along or any(part.kind == "text" for part in parts):
                raise SpaceError(
                    f"{self.index.uri} was encoded with gap correction, which texts do not fit; encode it again without"
                )
            if not corrected and any(part.kind == "file" for part in parts):
                raise SpaceError(f"{self.index.uri} was encoded with gap correction; search with gap_correction")
        groups: dict[tuple[str, str | None], list[QueryPart]] = {}
        for part in parts:
            groups.setdefault((part.kind, part.modality if part.kind == "file" else part.tower), []).append(part)
        vectors: dict[QueryPart, Array] = {}
        for (kind, name), members in groups.items():
            values = [part.value for part in members]
            if kind == "text":
                rows = self.space.encode_text(values, name)
            elif kind == "item":
                rows = self.index.vectors(values)
            else:
                assert name is not None
                rows = self.space.encode_image(values, name, workers=self._workers)
                rows = correct_gap(rows, self.space.image_mean(name)) if corrected else rows
            vectors |= zip(members, rows)
        combined, by_kind, known = [], [], self._kinds(parts)
        axis = along and ConceptAxis.between(self.space.encode_text(along), self.calibration.rows)
        for query in queries:
            rows = np.stack([vectors[part] for part in query.parts])
            kinds = [known[part] for part in query.parts]
            combined.append(axis.combine(query, rows, kinds) if axis else query.combine(rows))
            by_kind.append(query.by_kind(rows, kinds))
        return QueryVectors.stack(combined, by_kind)

    def _kinds(self, parts: Sequence[QueryPart]) -> dict[QueryPart, str]:
        """The kind of each part, see `Query.by_kind`."""
        items = [part.value for part in parts if part.kind == "item"]
        known = dict(zip(items, self.index.items(items)["modality"])) if items else {}
        return {part: known[part.value] if part.kind == "item" else part.modality or TEXT for part in parts}

    def _modalities(self, where: Where | None) -> list[str]:
        """The modalities to search."""
        known = list(self.calibration.rows)
        if where is None or where.modality is None:
            return known
        for name in where.modality:
            if name not in known:
                raise UnknownNameError("modality of this index", name, known)
        return list(dict.fromkeys(where.modality))

    def _hits(
        self,
        ranked: RankedQueries,
        relevance: NDArray[np.float64],
        modality: str,
        k: int,
        where: Where | None,
        own: Sequence[set[str]],
    ) -> list[list[Hit]]:
        """At most k hits of one modality for each query, best first, without its `own` items."""
        extra = max(map(len, own))
        found = self.index.search(ranked.targets(modality), k + extra, replace(where or Where(), modality=(modality,)))
        calibrated, percentiles = ranked.scores(modality, found.scores)
        ids = list(dict.fromkeys(chain.from_iterable(found.ids)))
        items = {line[KEY]: line for line in self.index.items(ids).to_dict("records")}
        cosines = self._cosines(ranked, modality, found, ids)
        hits = []
        for number, names in enumerate(found.ids):
            values = zip(names, cosines[number], calibrated[number], percentiles[number])
            others = [(name, numbers) for name, *numbers in values if name not in own[number]][:k]
            hits.append([_hit(items[name], numbers, float(relevance[number])) for name, numbers in others])
        return hits

    def _cosines(
        self, ranked: RankedQueries, modality: str, found: SearchResult, ids: Sequence[str]
    ) -> NDArray[np.float64]:
        """The cosines (q, k) of hits to queries that were searched by their targets; `ids`: all hits."""
        if not ids or not ranked.shifted:
            return found.scores.astype(np.float64)
        place = {name: number for number, name in enumerate(ids)}
        vectors = self.index.vectors(ids)
        hits = np.zeros((*found.scores.shape, vectors.shape[1]), np.float32)
        for number, names in enumerate(found.ids):
            hits[number, : len(names)] = vectors[[place[name] for name in names]]
        return ranked.cosines(modality, found.scores, hits)


def _check(k: int, rank: str) -> None:
    if k < 1:
        raise ConfigError(f"k is {k}; it must be at least 1")
    if rank not in ("calibrated", "cosine"):
        raise UnknownNameError("rank", rank, ["calibrated", "cosine"])


def _hit(item: Mapping[Any, str], scores: Sequence[float], relevance: float) -> Hit:
    """A hit from the metadata and scores of its item."""
    rest = {str(name): value for name, value in item.items() if name not in (KEY, "modality", "path") and value}
    path = item.get("path", "")
    score, calibrated, percentile = map(float, scores)
    return Hit(score, calibrated, percentile, item[KEY], item["modality"], relevance, path, rest)


def search(space: Space, source: Source, query: Query | str, k: int = 10, where: Where | None = None) -> list[Hit]:
    """One query to an index or an encoded archive; for more, or with options, use a `Searcher`."""
    return Searcher(space, source).search(query, k, where)


def searchable(source: Source) -> Index:
    """An index opened for reading; an encoded archive is searched exactly, without an index.

    Raises:
        SpaceError: neither of both, or damaged.
    """
    if isinstance(source, Index):
        return source
    if isinstance(source, Encoded) or (Path(source) / MARKER).is_file():
        from m3bind.index.encoded_archive import ArchiveIndex

        return ArchiveIndex(source if isinstance(source, Encoded) else open_encoded(source))
    return open_index(source)
