"""Files that people bring, for a while and in memory only: their embedding and what can be seen of them.

* `Upload`: one. * `Uploads`: those that are kept: a bounded number and bytes, the least recently used go first.
* `decode`, `embed`: files -> an upload, in two steps: the decoders' and the tower's.
"""

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from m3bind import modalities
from m3bind.errors import M3BindError
from m3bind.modalities import Sample
from m3bind.modalities.formats.recognise import recognise
from m3bind.models.embedding import Array
from m3bind.serve.errors import Refusal
from m3bind.serve.previews import Preview
from m3bind.space.bundle import Space

VOLUME_BYTES = 32 << 20  # of the preview of an upload
SHOWN = 20  # steps and warnings that are passed on


@dataclass(frozen=True)
class Upload:
    """What is kept of a file: its embedding (d,), what was done to it, and what can be seen of it."""

    modality: str
    row: Array
    steps: list[str]
    warnings: list[str]
    preview: Preview

    @property
    def nbytes(self) -> int:
        """Memory it takes."""
        return self.preview.nbytes + int(self.row.nbytes)


class Uploads:
    """Uploads by their ids, which nobody can guess. Thread-safe."""

    def __init__(self, most: int, memory: int, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._most, self._memory, self._seconds, self._clock = most, memory, seconds, clock
        self._kept: OrderedDict[str, tuple[float, Upload]] = OrderedDict()
        self._lock = threading.Lock()
        self.nbytes = 0

    def __len__(self) -> int:
        with self._lock:
            self._expire()
            return len(self._kept)

    def add(self, upload: Upload) -> str:
        """Keep one; returns its id.

        Raises:
            Refusal: it alone is larger than all may be.
        """
        if upload.nbytes > self._memory:
            raise Refusal(413, "too_large", "This file takes too much memory to be kept.")
        name = f"u_{secrets.token_urlsafe(16)}"
        with self._lock:
            self._expire()
            self._kept[name] = self._clock(), upload
            self.nbytes += upload.nbytes
            while len(self._kept) > self._most or self.nbytes > self._memory:
                self._drop(next(iter(self._kept)))
        return name

    def get(self, name: str) -> Upload:
        """One of them.

        Raises:
            Refusal: it is not there any more.
        """
        with self._lock:
            self._expire()
            if name not in self._kept:
                raise Refusal(404, "no_upload", "This upload is not kept any more; bring the file again.")
            upload = self._kept[name][1]
            self._kept[name] = self._clock(), upload
            self._kept.move_to_end(name)
            return upload

    def _expire(self) -> None:
        limit = self._clock() - self._seconds
        while self._kept and next(iter(self._kept.values()))[0] < limit:
            self._drop(next(iter(self._kept)))

    def _drop(self, name: str) -> None:
        self.nbytes -= self._kept.pop(name)[1].nbytes


@dataclass(frozen=True)
class Decoded:
    """A file between its decoder and the tower."""

    sample: Sample
    tower_input: torch.Tensor
    preview: Preview


def decode(space: Space, files: Sequence[Path], modality: str | None) -> Decoded:
    """Read files that are one thing: a file, the slices of a series, or the files of a WFDB record.

    Raises:
        ReadError: nothing that a modality of the space reads.
        Refusal: the model refuses what was read.
    """
    path = _one_path(files)
    sample = modalities.read(modality, path) if modality else recognise(path, space.modalities)
    try:
        value = space.model(sample.modality).preprocess(sample)
    except M3BindError:
        raise
    except Exception:  # models raise anything; their words may quote the file
        reason = "The model cannot take this file; is it what it should be?"
        raise Refusal(422, "unreadable", reason) from None
    return Decoded(sample, value, Preview.of(sample, VOLUME_BYTES))


def embed(space: Space, decoded: Decoded) -> Upload:
    """The tower's part."""
    sample = decoded.sample
    row = space.encode_inputs([decoded.tower_input], sample.modality)[0]
    return Upload(sample.modality, row, sample.steps[:SHOWN], sample.warnings[:SHOWN], decoded.preview)


def _one_path(files: Sequence[Path]) -> Path:
    """What to read of several files in a folder of their own."""
    headers = [path for path in files if path.suffix.lower() == ".hea"]
    if headers:
        return headers[0]
    return files[0] if len(files) == 1 else files[0].parent
