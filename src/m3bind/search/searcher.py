"""Search: from words, files, items, or several of them at once, to the nearest items of an index.

* `Searcher`: a space and an index, many questions. * `search`: one question, in one call. * `Hit`: what is found.
* `searchable`: an index by its URI, or an encoded archive as it lies there.

Hits of several modalities are merged by their calibrated score (`index.calibration`), not by their cosine, which
favours one modality. Shapes: q queries, d dimension of the space.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
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
from m3bind.search.query import Query, QueryPart
from m3bind.search.thumbnails import thumbnail
from m3bind.space.bundle import Space

Rank = Literal["calibrated", "cosine"]
Source = Index | Encoded | Path | str


@dataclass(frozen=True)
class Hit:
    """One found item.

    `score` is the cosine to the question; `calibrated` how many standard deviations that is above the usual cosine of
    the question to items of this modality; `percentile` the share of this modality's items, in %, that are less near.
    """

    score: float
    calibrated: float
    percentile: float
    id: str
    modality: str
    path: str = ""  # as the index keeps it; "" where it keeps none
    fields: Mapping[str, str] = field(default_factory=dict)  # what else was kept

    @property
    def incomplete(self) -> str:
        """Why the item may lack a part, as a series of which some slices came; "" where nothing speaks for it."""
        return self.fields.get(INCOMPLETE, "")

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        values = {"score": self.score, "calibrated": self.calibrated, "percentile": self.percentile}
        return values | {"id": self.id, "modality": self.modality, "path": self.path, "fields": dict(self.fields)}

    def thumbnail(self, size: int = 160) -> Image.Image:
        """A small picture, read from the item's file (the last ones are remembered).

        Raises:
            ReadError: the file cannot be read any more.
            ConfigError: the index keeps no paths.
        """
        return thumbnail(self.modality, self.path, size)


class Searcher:
    """A space and an index made with it, as both are now: modalities and calibration are looked up once.

    Thread-safe where the index is.
    """

    def __init__(self, space: Space, source: Source) -> None:
        """Bring both together.

        Args:
            space: what the index was encoded with.
            source: an index, its URI, an encoded archive, or its folder.

        Raises:
            SpaceError: the index is of another space, or cannot be opened.
        """
        self.space, self.index = space, searchable(source)
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
    ) -> list[Hit]:
        """The k best items, best first; see `search_many`."""
        options: dict[str, Any] = {"rank": rank, "per_modality": per_modality, "gap_correction": gap_correction}
        return self.search_many([query], k, where, **options)[0]

    def search_many(
        self,
        queries: Sequence[Query | str],
        k: int = 10,
        where: Where | None = None,
        *,
        rank: Rank = "calibrated",
        per_modality: bool = False,
        gap_correction: bool | None = None,
    ) -> list[list[Hit]]:
        """The hits of each question, best first; all questions go through the index together.

        Args:
            queries: questions; a text stands for `Query.text`. Items a question names are not among its hits.
            k: hits per question; fewer where there are fewer items.
            where: which items to look at.
            rank: order of hits of several modalities: "calibrated" or "cosine".
            per_modality: k hits of each modality, one modality after the other.
            gap_correction: take the modality's mean embedding out of files. Default: as the index was made, where
                both sides are corrected; on an index that is not, correcting the files alone moved precision of
                search across modalities by under .01 (docs/search.md).

        Raises:
            ConfigError: k < 1, or a question that cannot be combined.
            SpaceError: a text or uncorrected files, on an index made with gap correction; a mean is missing.
            UnknownNameError: no such modality, item or text tower.
            ReadError: a file cannot be read.
        """
        asked = [Query.text(query) if isinstance(query, str) else query for query in queries]
        _check(k, rank)
        if not asked:
            return []
        own = [{part.value for part in query.parts if part.kind == "item"} for query in asked]
        return self.nearest(self.embed(asked, gap_correction), k, where, own, rank=rank, per_modality=per_modality)

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
        """The hits of questions that are unit vectors (q, d) already; `own` are ids that are not to be among them.

        Other arguments, and errors: see `search_many`.
        """
        _check(k, rank)
        own = own or [set() for _ in rows]
        names = self._modalities(where)
        found = {name: self._hits(rows, name, k, where, own) for name in names}
        if per_modality:
            return [[hit for name in names for hit in found[name][line][:k]] for line in range(len(rows))]
        key = (lambda hit: -hit.calibrated) if rank == "calibrated" else (lambda hit: -hit.score)
        return [sorted((hit for name in names for hit in found[name][line]), key=key)[:k] for line in range(len(rows))]

    def embed(self, queries: Sequence[Query], gap_correction: bool | None = None) -> Array:
        """The unit vectors (q, d) of questions; each tower is called once. Arguments and errors: `search_many`."""
        corrected = self.index.gap_corrected if gap_correction is None else gap_correction
        parts = list(dict.fromkeys(part for query in queries for part in query.parts))
        if self.index.gap_corrected:
            if any(part.kind == "text" for part in parts):
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
                rows = self.space.encode_image(values, name)
                rows = correct_gap(rows, self.space.image_mean(name)) if corrected else rows
            vectors |= zip(members, rows)
        return np.stack([query.combine(np.stack([vectors[part] for part in query.parts])) for query in queries])

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
        """At most k hits of one modality for each question, best first, without the items it names."""
        extra = max(map(len, own))
        found = self.index.search(rows, k + extra, replace(where or Where(), modality=(modality,)))
        calibrated, percentiles = self.calibration.calibrate_scores(rows, modality, found.scores)
        table = self.index.items(list(dict.fromkeys(name for line in found.ids for name in line)))
        kept = {line[KEY]: line for line in table.to_dict("records")}
        hits = []
        for number, ids in enumerate(found.ids):
            values = zip(ids, found.scores[number], calibrated[number], percentiles[number])
            hits.append([_hit(kept[name], *numbers) for name, *numbers in values if name not in own[number]][:k])
        return hits


def _check(k: int, rank: str) -> None:
    if k < 1:
        raise ConfigError(f"k is {k}; ask for at least one hit")
    if rank not in ("calibrated", "cosine"):
        raise UnknownNameError("rank", rank, ["calibrated", "cosine"])


def _hit(item: Mapping[Any, str], score: float, calibrated: float, percentile: float) -> Hit:
    """A hit from the metadata of its item."""
    rest = {str(name): value for name, value in item.items() if name not in (KEY, "modality", "path") and value}
    path = item.get("path", "")
    return Hit(float(score), float(calibrated), float(percentile), item[KEY], item["modality"], path, rest)


def search(space: Space, source: Source, query: Query | str, k: int = 10, where: Where | None = None) -> list[Hit]:
    """One question to an index or an encoded archive; for more, or with options, keep a `Searcher`."""
    return Searcher(space, source).search(query, k, where)


def searchable(source: Source) -> Index:
    """An index opened for reading; an encoded archive is searched exactly, as it lies there.

    Raises:
        SpaceError: neither of both, or damaged.
    """
    if isinstance(source, Index):
        return source
    if isinstance(source, Encoded) or (Path(source) / MARKER).is_file():
        from m3bind.index.archive import ArchiveIndex

        return ArchiveIndex(source if isinstance(source, Encoded) else open_encoded(source))
    return open_index(source)
