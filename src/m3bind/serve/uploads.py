"""Uploaded files, for a while and in memory only: their embedding and preview.

* `Upload`: one of them. * `Uploads`: a bounded number and bytes; the least recently used are removed first.
* `decode`, `embed`: files -> an upload, in two steps (`Decoded` in between): the decoders' and the tower's.
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
from m3bind.modalities.formats.detect import recognise
from m3bind.models.embedding import Array
from m3bind.serve.errors import Refusal
from m3bind.serve.previews import Preview
from m3bind.space.bundle import Space

VOLUME_BYTES = 32 << 20  # of the preview of an upload
SHOWN = 20  # steps and warnings in an answer


@dataclass(frozen=True)
class Upload:
    """A file's embedding (d,), steps and warnings of its reading, and preview."""

    modality: str
    row: Array
    unlike: str  # why it is unlike the training data; "" if it is not
    steps: list[str]
    warnings: list[str]
    preview: Preview

    @property
    def nbytes(self) -> int:
        """Its memory."""
        return self.preview.nbytes + int(self.row.nbytes)


class Uploads:
    """Uploads by their random ids. Thread-safe."""

    def __init__(self, maximum: int, memory: int, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._maximum, self._memory, self._seconds, self._clock = maximum, memory, seconds, clock
        self._stored: OrderedDict[str, tuple[float, Upload]] = OrderedDict()
        self._lock = threading.Lock()
        self.nbytes = 0

    def __len__(self) -> int:
        with self._lock:
            self._expire()
            return len(self._stored)

    def add(self, upload: Upload) -> str:
        """Store one; returns its id.

        Raises:
            Refusal: it alone exceeds the memory of all.
        """
        if upload.nbytes > self._memory:
            raise Refusal(413, "too_large", "This file takes too much memory to be stored.")
        name = f"u_{secrets.token_urlsafe(16)}"
        with self._lock:
            self._expire()
            self._stored[name] = self._clock(), upload
            self.nbytes += upload.nbytes
            while len(self._stored) > self._maximum or self.nbytes > self._memory:
                self._drop_oldest()
        return name

    def get(self, name: str) -> Upload:
        """An upload by its id.

        Raises:
            Refusal: it is no longer stored.
        """
        with self._lock:
            self._expire()
            if name not in self._stored:
                raise Refusal(404, "no_upload", "This upload is no longer stored; upload the file again.")
            upload = self._stored[name][1]
            self._stored[name] = self._clock(), upload
            self._stored.move_to_end(name)
            return upload

    def _expire(self) -> None:
        limit = self._clock() - self._seconds
        while self._stored and next(iter(self._stored.values()))[0] < limit:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        self.nbytes -= self._stored.popitem(last=False)[1][1].nbytes


@dataclass(frozen=True)
class Decoded:
    """A file between its decoder and the tower."""

    sample: Sample
    tower_input: torch.Tensor
    preview: Preview


def decode(space: Space, files: Sequence[Path], modality: str | None) -> Decoded:
    """Read the files of one item: a file, the slices of a series, or the files of a WFDB record.

    Raises:
        ReadError: no modality of the space reads them.
        Refusal: the model refuses the sample.
    """
    headers = [path for path in files if path.suffix.lower() == ".hea"]
    path = headers[0] if headers else files[0] if len(files) == 1 else files[0].parent
    sample = modalities.read(modality, path) if modality else recognise(path, space.modalities)
    try:
        value = space.model(sample.modality).preprocess(sample)
    except M3BindError:
        raise
    except Exception:  # models raise anything; their messages may quote the file
        raise Refusal(422, "unreadable", "The model cannot process this file; check its content.") from None
    return Decoded(sample, value, Preview.of(sample, VOLUME_BYTES))


def embed(space: Space, decoded: Decoded) -> Upload:
    """The tower's part."""
    sample = decoded.sample
    rows, (unlike,) = space.examine_inputs([decoded.tower_input], sample.modality)
    warnings = [*([f"unusual: {unlike}"] if unlike else []), *sample.warnings]
    return Upload(sample.modality, rows[0], unlike, sample.steps[:SHOWN], warnings[:SHOWN], decoded.preview)
