"""Files -> inputs of the towers, some way ahead of them and in order.

* `prepare`: one file, decoded in an isolated child process (`modalities._isolation`) and prepared by its model.
* `ahead`: the same for a stream of files, by several threads with a child process each.

An input is what the modality's model takes, without the batch axis. A slide or a long recording has several.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from m3bind import modalities
from m3bind.encode.items import Row
from m3bind.errors import M3BindError, ReadError, in_words
from m3bind.modalities import Cut, Sample
from m3bind.modalities.base import Modality, get
from m3bind.modalities.formats.isolation import allow
from m3bind.modalities.formats.recognise import candidates, recognise
from m3bind.space.bundle import Space

WAITING = 256 << 20  # bytes of inputs that may wait for the towers
P = TypeVar("P")  # where a row belongs


@dataclass
class DecodedItem:
    """What came of a file: its inputs, or the reason why there are none."""

    modality: str
    inputs: list[Tensor] = field(default_factory=list)
    places: list[list[float]] | None = None  # of each input, where there are several
    reason: str = ""
    doubts: list[str] = field(default_factory=list)  # of the reader and of the model

    @property
    def nbytes(self) -> int:
        """Memory it takes."""
        return sum(value.nbytes for value in self.inputs)


def prepare(space: Space, row: Row, cut: Cut) -> DecodedItem:
    """Decode and prepare one file. Nothing is raised: decoders of foreign formats raise anything."""
    if row["fault"]:
        return DecodedItem(row["modality"], reason=row["fault"])
    modality = row["modality"]
    try:
        sample = _decode(Path(row["path"]), modality, space.modalities, cut)
        modality = sample.modality
        model = space.model(modality)
        parts = sample.parts()
        doubts = list(dict.fromkeys([*sample.warnings, *(doubt for part in parts for doubt in model.doubts(part))]))
        return DecodedItem(modality, [model.preprocess(part) for part in parts], sample.places, doubts=doubts)
    except Exception as error:
        return DecodedItem(modality, reason=reason_of(error))


def _decode(path: Path, modality: str, known: tuple[str, ...], cut: Cut) -> Sample:
    """The sample, in parts where it is larger than one input; recognised where `modality` is ""."""
    if not modality:
        if not path.exists() and not path.with_name(f"{path.name}.hea").exists():
            raise ReadError(path, "no such file", "check the path")
        could = [name for name in candidates(path) if name in known]
        if len(could) != 1:
            if not could:
                raise ReadError(path, "of no modality that this space holds", "say --modality if it is one")
            sample = recognise(path, could)
            if type(get(sample.modality)).decode_parts is Modality.decode_parts:
                return sample
            could = [sample.modality]
        modality = could[0]
    return modalities.decode_parts(modality, path, cut)


def reason_of(error: Exception) -> str:
    """One line that says why a file cannot be used, without its path."""
    if isinstance(error, ReadError):
        text = error.reason
    else:
        spoken = isinstance(error, M3BindError | ValueError | RuntimeError) and str(error)
        text = str(error) if spoken else f"its model cannot take it: {in_words(error)}"
    return " ".join(text.split())[:300]


def ahead(
    space: Space, rows: Iterable[tuple[P, Row]], cut: Cut, workers: int, most: int
) -> Iterator[tuple[P, DecodedItem]]:
    """(place, `prepare` of its row) for every (place, row), in order.

    `workers` threads work ahead, at most `most` files or `WAITING` bytes of inputs.
    """
    allow(workers)
    waiting: deque[tuple[P, Future[DecodedItem]]] = deque()

    def first() -> tuple[P, DecodedItem]:
        place, future = waiting.popleft()
        return place, future.result()

    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    try:
        for place, row in rows:
            while len(waiting) >= most or (waiting and _bytes(future for _, future in waiting) > WAITING):
                yield first()
            waiting.append((place, pool.submit(prepare, space, row, cut)))
        while waiting:
            yield first()
    finally:
        pool.shutdown(cancel_futures=True)


def _bytes(futures: Iterable[Future[DecodedItem]]) -> int:
    return sum(future.result().nbytes for future in futures if future.done() and not future.cancelled())
