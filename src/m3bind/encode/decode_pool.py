"""Files -> inputs of the towers, prefetched and in order.

* `prepare`: one file, decoded in an isolated child process (`formats.isolation`) and preprocessed by its model.
* `ahead`: a stream of files, by several threads with a child process each.

An input is what the modality's model takes, without the batch axis. A slide or a long recording has several.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from m3bind import modalities
from m3bind.data import prefetch
from m3bind.encode.items import Row
from m3bind.errors import M3BindError, ReadError, in_words
from m3bind.modalities import Cut, Sample
from m3bind.modalities.base import Modality, get
from m3bind.modalities.formats.detect import candidates, recognise
from m3bind.space.bundle import Space

P = TypeVar("P")  # place of a row


@dataclass
class DecodedItem:
    """The inputs of a file, or the reason why there are none."""

    modality: str
    inputs: list[Tensor] = field(default_factory=list)
    places: list[list[float]] | None = None  # of each input, if the file has parts
    reason: str = ""
    doubts: list[str] = field(default_factory=list)  # of the reader and of the model

    @property
    def nbytes(self) -> int:
        """Bytes of the inputs."""
        return sum(value.nbytes for value in self.inputs)


def prepare(space: Space, row: Row, cut: Cut) -> DecodedItem:
    """Decode and preprocess one file. Errors of any kind become `reason`: decoders raise many."""
    if row["fault"]:
        return DecodedItem(row["modality"], reason=row["fault"])
    modality = row["modality"]
    try:
        sample = _decode(Path(row["path"]), modality, space.modalities, cut)
        modality = sample.modality
        model = space.model(modality)
        parts = sample.parts()
        doubts = list(dict.fromkeys([*sample.warnings, *chain.from_iterable(map(model.doubts, parts))]))
        return DecodedItem(modality, [model.preprocess(part) for part in parts], sample.places, doubts=doubts)
    except Exception as error:
        return DecodedItem(modality, reason=reason_of(error))


def _decode(path: Path, modality: str, known: tuple[str, ...], cut: Cut) -> Sample:
    """The sample, in parts if it is larger than one input; its modality is recognised if `modality` is ""."""
    if not modality:
        if not path.exists() and not path.with_name(f"{path.name}.hea").exists():
            raise ReadError(path, "no such file", "check the path")
        names = [name for name in candidates(path) if name in known]
        if not names:
            raise ReadError(path, "of no modality that this space holds", "give --modality if it is one")
        modality = names[0]
        if len(names) > 1:
            sample = recognise(path, names)
            modality = sample.modality
            if type(get(modality)).decode_parts is Modality.decode_parts:
                return sample
    return modalities.decode_parts(modality, path, cut)


def reason_of(error: Exception) -> str:
    """The reason why a file is unusable, in one line, without its path."""
    if isinstance(error, ReadError):
        text = error.reason
    else:
        readable = isinstance(error, M3BindError | ValueError | RuntimeError) and str(error)
        text = str(error) if readable else f"its model cannot take it: {in_words(error)}"
    return " ".join(text.split())[:300]


def ahead(
    space: Space, rows: Iterable[tuple[P, Row]], cut: Cut, workers: int, limit: int
) -> Iterator[tuple[P, DecodedItem]]:
    """(place, `prepare` of its row) for every (place, row), in order, prefetched by `workers` threads."""

    def call(placed: tuple[P, Row]) -> tuple[P, DecodedItem]:
        return placed[0], prepare(space, placed[1], cut)

    return prefetch.ahead(call, rows, workers, limit, lambda result: result[1].nbytes)
