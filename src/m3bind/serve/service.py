"""State that all routes share: the space, the current archive, queues, uploads, and caches of images.

* `Service`: created once per process. * `Seen`: an item with its file, if that may be shown.
"""

import logging
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from m3bind import modalities
from m3bind.errors import ReadError
from m3bind.evaluate.own_prompts import OwnClasses
from m3bind.index.base import KEY
from m3bind.index.calibration import FEW
from m3bind.index.roots import Roots
from m3bind.search.searcher import Source
from m3bind.serve import pictures
from m3bind.serve.errors import Refusal
from m3bind.serve.index_reload import ArchiveState, ServedIndex
from m3bind.serve.layout import MapLayout
from m3bind.serve.lru_cache import LruCache
from m3bind.serve.phrases import Vocabulary, phrases_for
from m3bind.serve.previews import Preview
from m3bind.serve.query import Questions
from m3bind.serve.queues import Queue
from m3bind.serve.schemas import QuestionPart
from m3bind.serve.settings import ServiceSettings
from m3bind.serve.uploads import Uploads
from m3bind.serve.zero_shot_answer import ZeroShotAnswers
from m3bind.space.bundle import Space

log = logging.getLogger("m3bind.serve")
T = TypeVar("T")
THUMBNAIL_BYTES = 32 << 20  # of cached small images
WARM_UP = "normal"
NO_PICTURE = (
    "There is no image of this item: the archive stores no files, or they lie outside the folders that may be shown "
    "(m3bind serve --files)."
)


@dataclass(frozen=True)
class Seen:
    """An item: its modality, its other columns, and its file ("" if missing or not shown)."""

    id: str
    modality: str
    fields: dict[str, str]
    path: str


class Service:
    """One space and one index, served."""

    def __init__(
        self,
        space: Space,
        source: Source,
        settings: ServiceSettings,
        texts: Sequence[str] = (),
        roots: Roots | None = None,
        classes: Sequence[OwnClasses] = (),
    ) -> None:
        """Open the index; `texts`: further phrases, `roots`: folders of files that may be shown (None: any).

        `classes`: of prompt files, offered for zero-shot classification.

        Raises:
            SpaceError: the index is of another space, or cannot be opened.
        """
        self.space, self.settings, self.classes = space, settings, classes
        self.roots = roots or Roots(None)
        self.archive = ServedIndex(space, source, settings.check_seconds)
        self.towers = Queue("towers", settings.workers, settings.waiting)
        self.files = Queue("files", settings.decoders, settings.waiting)
        self.uploads = Uploads(settings.uploads, settings.upload_memory, settings.upload_seconds)
        self.questions = Questions(space, self.uploads)
        self.previews: LruCache[Preview] = LruCache(settings.picture_memory, lambda preview: preview.nbytes)
        self.thumbnails: LruCache[bytes] = LruCache(THUMBNAIL_BYTES, len)
        self.phrases, self._texts = Vocabulary(), list(texts)
        self.zero_shot = ZeroShotAnswers(self.questions)
        self.layout = MapLayout(self.archive, settings.map_points)
        self.ready = self.stopping = False
        self._begun = False

    def begin(self) -> None:
        """Start the warm-up in the background."""
        if not self._begun:
            self._begun = True
            threading.Thread(target=self._warm_up, name="warm-up", daemon=True).start()

    def _warm_up(self) -> None:
        """The first text, then phrases, then the map."""
        try:
            self.questions.text(WARM_UP)
            self.ready = True
            with self.archive.lease() as state:
                phrases = phrases_for(self.space.modalities, state.labels, self._texts)
                rows = self.questions.texts(list(phrases))
                if not state.index.gap_corrected:
                    self.phrases = Vocabulary(phrases, rows)
                self.layout.allow(rows)
                self.layout.begin(state)
        except Exception as error:
            log.error("the warm-up failed (%s)", type(error).__name__)

    def close(self) -> None:
        """Start no further work."""
        self.stopping, self.ready = True, False
        for queue in (self.towers, self.files):
            queue.close()

    async def ask(self, work: Callable[[ArchiveState], T]) -> T:
        """`work` on the current state, in the queue of the towers."""
        return await self.towers.run(self._leased, work)

    async def see(self, work: Callable[[ArchiveState], T]) -> T:
        """`work` on the current state, in the queue of the decoders."""
        return await self.files.run(self._leased, work)

    def _leased(self, work: Callable[[ArchiveState], T]) -> T:
        with self.archive.lease() as state:
            return work(state)

    def near(self, state: ArchiveState, parts: Sequence[QuestionPart], k: int) -> list[dict[str, object]]:
        """The phrases nearest to a query; for an item or upload with items of its modality as reference."""
        row = self.questions.vectors(state, parts).rows[0]
        if len(parts) > 1 or parts[0].kind == "text":
            return self.phrases.near(row, k)
        modality = self.questions.modality(state, parts[0].kind, parts[0].value)
        rows = state.searcher.calibration.rows
        others = rows.get(modality)
        if others is None or len(others) < FEW:
            others = np.concatenate([np.empty((0, self.space.dim), np.float32), *rows.values()])
        return self.phrases.near(row, k, others, modality)

    def seen(self, state: ArchiveState, name: str) -> Seen:
        """An item of the index.

        Raises:
            UnknownNameError: it does not exist.
        """
        line = state.index.items([name]).iloc[0]
        rest = {str(key): str(value) for key, value in line.items() if key not in (KEY, "modality", "path") and value}
        path = str(line.get("path", ""))
        return Seen(name, str(line["modality"]), rest, path if self.roots.allow_all(path) else "")

    def preview(self, item: Seen) -> Preview:
        """The preview of an item's file.

        Raises:
            Refusal: the file is missing, or can no longer be read.
        """
        return self.previews.get(_key(item), lambda: Preview.of(_decoded(item)))

    def thumbnail(self, item: Seen, size: int) -> bytes:
        """A small PNG of an item; for it alone, a volume is not cached.

        Raises:
            Refusal: as `preview`.
        """

        def draw() -> bytes:
            kind = modalities.get(item.modality)
            return pictures.png(kind.thumbnail(_decoded(item), size))

        return self.thumbnails.get((*_key(item), size), draw)


def _key(item: Seen) -> tuple[str, str, int]:
    """The cache key of an item's file in its current state."""
    if not item.path:
        raise Refusal(404, "no_picture", NO_PICTURE)
    try:
        changed = os.stat(item.path).st_mtime_ns
    except OSError:
        changed = 0  # a record named without its suffix, or missing: the reader decides
    return item.modality, item.path, changed


def _decoded(item: Seen) -> modalities.Sample:
    try:
        return modalities.decode(item.modality, Path(item.path))
    except ReadError as error:
        raise Refusal(404, "no_picture", f"The file of this item can no longer be read: {error.reason}.") from None
