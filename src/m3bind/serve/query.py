"""Parts of a question -> one unit vector.

* `Questions`: asks the towers, the index and the uploads.

Shapes: d dimension of the space.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from m3bind.errors import ConfigError
from m3bind.models.embedding import Array, correct_gap
from m3bind.search import query
from m3bind.serve.archive import ArchiveState
from m3bind.serve.errors import Refusal
from m3bind.serve.schemas import QuestionPart, Source
from m3bind.serve.uploads import Uploads
from m3bind.space.bundle import STUDENT, Space

REMEMBERED = 1024  # texts whose vectors are kept


class Questions:
    """For threads: nothing here waits for the event loop."""

    def __init__(self, space: Space, uploads: Uploads) -> None:
        self.space, self._uploads = space, uploads
        self._tower = STUDENT if STUDENT in space.text_encoders else space.modalities[0]
        self.text = lru_cache(REMEMBERED)(self._text)

    def _text(self, text: str) -> Array:
        row: Array = self.texts([text])[0]
        row.setflags(write=False)
        return row

    def texts(self, texts: Sequence[str]) -> Array:
        """Texts -> (n, d), by the shared text encoder, or the first modality's own where there is none."""
        return self.space.encode_text(texts, self._tower)

    def vector(self, state: ArchiveState, parts: Sequence[QuestionPart]) -> Array:
        """The question (d,).

        Raises:
            Refusal: an upload that is gone, parts that cancel each other out, texts where they do not fit.
            UnknownNameError: an item that is not there.
        """
        rows = np.stack([self._row(state, part.kind, part.value) for part in parts])
        weighted = query.Query(tuple(query.QueryPart("item", "", part.weight) for part in parts))
        try:
            return weighted.combine(rows)
        except ConfigError:
            reason = "The parts cancel each other out, or more is avoided than looked for; change their weights."
            raise Refusal(400, "cancelled", reason) from None

    def source(self, state: ArchiveState, source: Source) -> tuple[Array, str]:
        """The vector (d,) of an item or upload, and its modality."""
        if source.kind == "upload":
            modality = self._uploads.get(source.value).modality
        else:
            modality = str(state.index.items([source.value])["modality"].iloc[0])
        return self._row(state, source.kind, source.value), modality

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
    """Refuse texts on an index without its modalities' means.

    Raises:
        Refusal: it is such a one.
    """
    if state.index.gap_corrected:
        reason = "This archive was encoded with gap correction, which texts do not fit; ask with items and files."
        raise Refusal(400, "gap_corrected", reason)
