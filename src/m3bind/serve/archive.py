"""The index as it is now: opened anew, beside running requests, when another process changed it.

* `Archive`: gives the current `ArchiveState` to readers.
* `ArchiveState`: a `Searcher` with what is asked of it again and again.

Readers hold a lease; a state that was replaced is closed when its last reader is done. Whether something changed is
seen by the stamp of one small file (of Milvus: by what it keeps about the index), at most once a second.
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
from m3bind.search.zero_shot import ZeroShotClassifier, labels_of
from m3bind.space.bundle import Space

log = logging.getLogger("m3bind.serve")
LOOKED_AT = 64  # items that say whether an index keeps paths


@dataclass
class ArchiveState:
    """The index at one moment."""

    searcher: Searcher
    mark: str  # what it was like on disk; names the state
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
        """The most frequent labels of each modality, sorted; none where the index keeps no labels."""
        return labels_of(self.index)

    @property
    def classifier(self) -> ZeroShotClassifier:
        """What tells labels apart."""
        return ZeroShotClassifier(self.searcher.space, self.index, self.searcher.calibration, self.labels)

    @cached_property
    def pictures(self) -> bool:
        """Whether items have files to draw pictures from."""
        if "path" not in self.index.columns:
            return False
        ids, _ = self.index.sample(LOOKED_AT)
        return bool(ids) and bool((self.index.items(ids)["path"] != "").any())


class Archive:
    """A space's index, shared by threads."""

    def __init__(self, space: Space, source: Source, check_seconds: float = 1.0) -> None:
        """Open it.

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
        """The current state, which stays open meanwhile."""
        self._look()
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
        """Items per modality, without looking at the disk."""
        return self._now.counts

    @property
    def stale(self) -> bool:
        """Whether the index changed and cannot be opened any more: the last good state still answers."""
        return bool(self._tried)

    def mark(self, index: Index | None) -> str:
        """What the index is like now, in microseconds (Milvus: milliseconds); "" where that cannot be told."""
        if isinstance(index, MilvusIndex):
            return index.mark
        source = index.uri if index is not None else self._source
        if not isinstance(source, str | Path):
            return ""
        for name in (CURRENT, MARKER):
            try:
                found = os.stat(Path(source) / name)
            except OSError:
                continue
            return f"{found.st_ino}-{found.st_mtime_ns}-{found.st_size}"
        return ""

    def close(self) -> None:
        """Close the index; requests must be over."""
        self._close(self._now)

    def _look(self) -> None:
        """Begin to open the index anew if it changed, looking once a second at most; the old one is used until then."""
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
            log.warning("cannot look at the index (%s)", type(error).__name__)
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
        """Compute what requests would wait for."""
        _ = state.counts, state.labels, state.pictures

    def _close(self, state: ArchiveState) -> None:
        if state.index is not self._now.index or state is self._now:
            state.index.close()
