"""Search: from texts, files, items, or a mix of them, to the nearest items of an index.

* `Searcher`: a space and an index, for many queries. * `search`: one query in one call. * `Hit`: a found item.
* `searchable`: opens an index by its URI, or an encoded archive.

Hits of several modalities are merged by their calibrated score (`index.calibration`), not by their cosine, which
favours one modality. Shapes: q queries, d dimension of the space.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from m3bind.encode.encoded import MARKER, Encoded, open_encoded
from m3bind.errors import ConfigError, SpaceError, UnknownNameError
from m3bind.index.base import INCOMPLETE, KEY, Index, Where
from m3bind.index.calibration import calibration_of
from m3bind.index.uri import open_index
from m3bind.models.embedding import Array, correct_gap
from m3bind.search.along import ConceptAxis
from m3bind.search.query import Query, QueryPart
from m3bind.search.thumbnails import thumbnail
from m3bind.space.bundle import Space
from m3bind.space.unlike import UNLIKE

Rank = Literal["calibrated", "cosine"]
Source = Index | Encoded | Path | str


@dataclass(frozen=True)
class Hit:
    """One found item.

    `score` is the cosine to the query; `calibrated` how many standard deviations that is above the mean cosine of the
    query to items of this modality; `percentile` the share of this modality's items, in %, that are less similar.
    """

    score: float
    calibrated: float
    percentile: float
    id: str
    modality: str
    path: str = ""  # as stored in the index; "" if it stores none
    fields: Mapping[str, str] = field(default_factory=dict)  # the other non-empty columns

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
        return values | {"id": self.id, "modality": self.modality, "path": self.path, "fields": dict(self.fields)}

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
            per_modality: k hits of each modality, one modality after the other.
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
        rows = self.embed(parsed, gap_correction, along)
        return self.nearest(rows, k, where, own, rank=rank, per_modality=per_modality)

    def nearest(
        self,
        rows: Array,
        k: int = 10,
        where: Where | None = None,
        own: Sequence[set[str]] | None = None,
        *,
        rank: Rank = "calibrated",
        per_modality: bool = False,
    ) -> list[list[Hit]]:
        """The hits of queries given as unit vectors (q, d); `own`: ids to exclude from the hits of each.

        Other arguments, and errors: see `search_many`.
        """
        _check(k, rank)
        own = own or [set() for _ in rows]
        names = self._modalities(where)
        by_modality = [self._hits(rows, name, k, where, own) for name in names]  # of each modality, a list per query
        merged = [list(chain.from_iterable(hits)) for hits in zip(*by_modality)] if names else [[] for _ in rows]
        if per_modality:
            return merged
        key = (lambda hit: -hit.calibrated) if rank == "calibrated" else (lambda hit: -hit.score)
        return [sorted(hits, key=key)[:k] for hits in merged]

    def embed(
        self, queries: Sequence[Query], gap_correction: bool | None = None, along: tuple[str, str] | None = None
    ) -> Array:
        """The unit vectors (q, d) of queries; each tower is called once. Arguments and errors: `search_many`."""
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
        combined = []
        axis = along and ConceptAxis.between(self.space.encode_text(along), self.calibration.rows)
        for query in queries:
            rows = np.stack([vectors[part] for part in query.parts])
            combined.append(axis.combine(query, rows, self._kinds(query)) if axis else query.combine(rows))
        return np.stack(combined)

    def _kinds(self, query: Query) -> list[str]:
        """The modality of each part; "" for a text."""
        items = [part.value for part in query.parts if part.kind == "item"]
        known = dict(zip(items, self.index.items(items)["modality"])) if items else {}
        return [known[part.value] if part.kind == "item" else part.modality for part in query.parts]

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
        self, rows: Array, modality: str, k: int, where: Where | None, own: Sequence[set[str]]
    ) -> list[list[Hit]]:
        """At most k hits of one modality for each query, best first, without its `own` items."""
        extra = max(map(len, own))
        found = self.index.search(rows, k + extra, replace(where or Where(), modality=(modality,)))
        calibrated, percentiles = self.calibration.calibrate_scores(rows, modality, found.scores)
        table = self.index.items(list(dict.fromkeys(chain.from_iterable(found.ids))))
        items = {line[KEY]: line for line in table.to_dict("records")}
        hits = []
        for number, ids in enumerate(found.ids):
            values = zip(ids, found.scores[number], calibrated[number], percentiles[number])
            hits.append([_hit(items[name], *numbers) for name, *numbers in values if name not in own[number]][:k])
        return hits


def _check(k: int, rank: str) -> None:
    if k < 1:
        raise ConfigError(f"k is {k}; it must be at least 1")
    if rank not in ("calibrated", "cosine"):
        raise UnknownNameError("rank", rank, ["calibrated", "cosine"])


def _hit(item: Mapping[Any, str], score: float, calibrated: float, percentile: float) -> Hit:
    """A hit from the metadata and scores of its item."""
    rest = {str(name): value for name, value in item.items() if name not in (KEY, "modality", "path") and value}
    path = item.get("path", "")
    return Hit(float(score), float(calibrated), float(percentile), item[KEY], item["modality"], path, rest)


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
