"""The current index: opened again, beside running requests, when another process changed it.

* `ServedIndex`: gives the current `ArchiveState` to readers.
* `ArchiveState`: a `Searcher` with cached facts about the index.

Readers hold a lease; a replaced state is closed when its last reader is done. Changes are detected by the stamp of one
small file (of Milvus: by its metadata of the index), at most once a second.
"""

import contextlib
import logging
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from m3bind.encode.encoded import MARKER
from m3bind.index.base import Index
from m3bind.index.milvus import MilvusIndex
from m3bind.index.store import CURRENT
from m3bind.search.searcher import Searcher, Source
from m3bind.search.zero_shot_classifier import ZeroShotClassifier, labels_of
from m3bind.space.bundle import Space

log = logging.getLogger("m3bind.serve")
CHECKED = 64  # items by which it is decided whether an index stores paths


@dataclass
class ArchiveState:
    """The index at one moment."""

    searcher: Searcher
    mark: str  # of its files on disk; identifies the state
    readers: int = 0
    replaced: bool = False

    @property
    def index(self) -> Index:
        """The opened index."""
        return self.searcher.index

    @cached_property
    def counts(self) -> dict[str, int]:
        """Items per modality."""
        return self.index.counts()

    @cached_property
    def labels(self) -> dict[str, list[str]]:
        """The most frequent labels of each modality, sorted; empty if the index stores no labels."""
        return labels_of(self.index)

    @property
    def classifier(self) -> ZeroShotClassifier:
        """The zero-shot classifier of this state."""
        return ZeroShotClassifier(self.searcher.space, self.index, self.labels)

    @cached_property
    def pictures(self) -> bool:
        """Whether items have files to draw images from."""
        if "path" not in self.index.columns:
            return False
        ids, _ = self.index.sample(CHECKED)
        return bool(ids) and bool((self.index.items(ids)["path"] != "").any())


class ServedIndex:
    """A space's index, shared by threads."""

    def __init__(self, space: Space, source: Source, check_seconds: float = 1.0) -> None:
        """Open the index.

        Raises:
            SpaceError: the index is of another space, or cannot be opened.
        """
        self.space, self._source, self._every = space, source, check_seconds
        self._lock = threading.Lock()
        self._opening = False
        self._tried = ""  # the mark that could not be opened
        self._checked = time.monotonic()
        mark = self.mark(None)
        self._now = ArchiveState(Searcher(space, source), mark)
        self._now.mark = mark or self.mark(self._now.index)
        self._warm(self._now)

    @contextlib.contextmanager
    def lease(self) -> Iterator[ArchiveState]:
        """The current state, which stays open in the context."""
        self._check()
        with self._lock:
            state = self._now
            state.readers += 1
        try:
            yield state
        finally:
            with self._lock:
                state.readers -= 1
                over = state.replaced and not state.readers
            if over:
                self._close(state)

    @property
    def items(self) -> dict[str, int]:
        """Items per modality, without access to the disk."""
        return self._now.counts

    @property
    def stale(self) -> bool:
        """Whether the index changed and can no longer be opened: the last good state still answers."""
        return bool(self._tried)

    def mark(self, index: Index | None) -> str:
        """A mark of the index on disk, in microseconds (Milvus: milliseconds); "" if there is none."""
        if isinstance(index, MilvusIndex):
            return index.mark
        source = index.uri if index is not None else self._source
        if not isinstance(source, str | Path):
            return ""
        for name in (CURRENT, MARKER):
            try:
                status = os.stat(Path(source) / name)
            except OSError:
                continue
            return f"{status.st_ino}-{status.st_mtime_ns}-{status.st_size}"
        return ""

    def close(self) -> None:
        """Close the index; requests must be over."""
        self._close(self._now)

    def _check(self) -> None:
        """Start to open the index again if it changed, at most once a second; the old one is used until then."""
        with self._lock:
            now = time.monotonic()
            if self._opening or now - self._checked < self._every:
                return
            self._checked = now
            self._opening = True
        try:
            mark = self.mark(self._now.index)
            changed = mark not in ("", self._now.mark, self._tried)
        except Exception as error:
            log.warning("cannot check the index (%s)", type(error).__name__)
            changed = False
        if changed:
            threading.Thread(target=self._reopen, args=(mark,), name="reopen", daemon=True).start()
        else:
            self._opening = False

    def _reopen(self, mark: str) -> None:
        try:
            source: Source = self._now.index.uri
            if isinstance(self._now.index, MilvusIndex):
                source = self._now.index
                source.refresh()
            state = ArchiveState(Searcher(self.space, source), mark)
            self._warm(state)
        except Exception as error:
            log.warning("the index changed and cannot be opened (%s); the last state answers", type(error).__name__)
            self._tried = mark
            return
        else:
            self._tried = ""
            with self._lock:
                old, self._now = self._now, state
                old.replaced = True
                over = not old.readers
            if over:
                self._close(old)
        finally:
            self._opening = False

    def _warm(self, state: ArchiveState) -> None:
        """Compute the facts that requests would wait for."""
        _ = state.counts, state.labels, state.pictures

    def _close(self, state: ArchiveState) -> None:
        if state.index is not self._now.index or state is self._now:
            state.index.close()
