"""Parts of a query -> unit vectors.

* `Questions`: gets vectors from the towers, the index and the uploads. * `need_texts`: whether texts fit an index.

Shapes: d dimension of the space.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from m3bind.errors import ConfigError
from m3bind.models.embedding import Array, correct_gap
from m3bind.search import query
from m3bind.search.along import ConceptAxis
from m3bind.search.ranking import QueryVectors
from m3bind.search.zero_shot_classifier import unlike_items
from m3bind.serve.errors import Refusal
from m3bind.serve.index_reload import ArchiveState
from m3bind.serve.schemas import QuestionPart, Source
from m3bind.serve.uploads import Uploads
from m3bind.space.bundle import STUDENT, Space

CACHED = 1024  # texts whose vectors are cached


class Questions:
    """For threads: no method waits for the event loop."""

    def __init__(self, space: Space, uploads: Uploads) -> None:
        self.space, self._uploads = space, uploads
        self._tower = STUDENT if STUDENT in space.text_encoders else space.modalities[0]
        self.text = lru_cache(CACHED)(self._text)

    def _text(self, text: str) -> Array:
        row: Array = self.texts([text])[0]
        row.setflags(write=False)
        return row

    def texts(self, texts: Sequence[str]) -> Array:
        """Texts -> (n, d), by the shared text encoder if there is any, else by the first modality's own."""
        return self.space.encode_text(texts, self._tower)

    def vectors(
        self, state: ArchiveState, parts: Sequence[QuestionPart], along: tuple[str, str] | None = None
    ) -> QueryVectors:
        """The query and its parts; with `along` turned to its side of the axis between two wordings (`search.along`).

        Raises:
            Refusal: an upload that has expired, parts that cancel each other out, texts on a gap-corrected index.
            ConfigError: an axis of two equal wordings.
            UnknownNameError: a missing item.
        """
        axis = self._axis(state, along) if along else None
        rows = np.stack([self._row(state, part.kind, part.value) for part in parts])
        weighted = query.Query(tuple(query.QueryPart("item", "", part.weight) for part in parts))
        try:
            kinds = [self.modality(state, part.kind, part.value) for part in parts]
            row = axis.combine(weighted, rows, kinds) if axis else weighted.combine(rows)
        except ConfigError:
            reason = "The parts cancel each other out, or negative weights prevail; change the weights."
            raise Refusal(400, "cancelled", reason) from None
        return QueryVectors.stack([row], [weighted.by_kind(rows, kinds)])

    def source(self, state: ArchiveState, source: Source) -> tuple[Array, str, str]:
        """The vector (d,) of an item or upload, its modality, and why it is unlike the training data (or "")."""
        if source.kind == "upload":
            unlike = self._uploads.get(source.value).unlike
        else:
            unlike = unlike_items(state.index.items([source.value]))[0]
        modality = self.modality(state, source.kind, source.value)
        return self._row(state, source.kind, source.value), modality, unlike

    def _axis(self, state: ArchiveState, wordings: tuple[str, str]) -> ConceptAxis:
        need_texts(state)
        return ConceptAxis.between(np.stack([self.text(text) for text in wordings]), state.searcher.calibration.rows)

    def modality(self, state: ArchiveState, kind: str, value: str) -> str:
        """The modality of an item or upload, or `query.TEXT`."""
        if kind == "text":
            return query.TEXT
        if kind == "upload":
            return self._uploads.get(value).modality
        return str(state.index.items([value])["modality"].iloc[0])

    def _row(self, state: ArchiveState, kind: str, value: str) -> Array:
        if kind == "item":
            row: Array = state.index.vectors([value])[0]
            return row
        if kind == "text":
            need_texts(state)
            return self.text(value)
        upload = self._uploads.get(value)
        row = upload.row
        if state.index.gap_corrected:
            row = correct_gap(row[None], self.space.image_mean(upload.modality))[0]
        return row


def need_texts(state: ArchiveState) -> None:
    """Refuse texts on a gap-corrected index.

    Raises:
        Refusal: it is gap-corrected.
    """
    if state.index.gap_corrected:
        reason = "This archive was encoded with gap correction, which texts do not fit; search by items and files."
        raise Refusal(400, "gap_corrected", reason)
