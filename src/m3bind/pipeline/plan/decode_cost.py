"""The cost of reading a file: hashing, decoding and preprocessing, measured on a few files as `fit` reads them.

* `DecodeCost`: core-seconds and bytes of one file of a modality. * `measure_decoding`: it, from files of the manifest,
  or from generated ones of the published data sets' size (`typical_files`), or from stated values.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

import numpy as np
import torch

from m3bind import modalities
from m3bind.data import packing
from m3bind.data.file_keys import file_key
from m3bind.data.records import Record
from m3bind.errors import M3BindError
from m3bind.modalities.base import Sample
from m3bind.models.base import DualEncoder
from m3bind.pipeline.plan.typical_files import write_typical
from m3bind.pipeline.stored_inputs import levels_of, rescaled

BUDGET = 3.0  # seconds of measuring per modality
STATED = {  # file bytes; seconds of hashing, decoding, preprocessing on one core of a server
    "xray": (1.6e6, 0.002, 0.088, 0.137),
    "retina": (0.5e6, 0.001, 0.033, 0.085),
    "ecg": (0.12e6, 0.001, 0.007, 0.002),
    "pathology": (0.4e6, 0.001, 0.003, 0.005),
    "ct": (108e6, 0.24, 2.5, 4.5),
}
UNKNOWN = (1e6, 0.002, 0.05, 0.05)  # of a modality of which nothing is known
Times = tuple[float, float, float, float, int]  # file bytes; seconds of hashing, decoding, preprocessing; stored bytes
T = TypeVar("T")


@dataclass
class DecodeCost:
    """One file of a modality, on one core."""

    file_bytes: float
    hashing: float  # seconds
    decoding: float
    preprocessing: float  # and packing
    source: str  # what was measured
    stored_bytes: int = 0  # of its input in its stored type; 0: not measured
    start: float = 0.0  # seconds that the first file takes beyond this: the isolated reader imports its libraries

    @property
    def seconds(self) -> float:
        """Core-seconds in all."""
        return self.hashing + self.decoding + self.preprocessing


def measure_decoding(m: str, model: DualEncoder, records: Sequence[Record], notes: list[str]) -> DecodeCost:
    """The cost of a file of modality `m` for `model`; `notes` receives what was assumed.

    `records`: some of the run's; files that are missing or cannot be read are skipped.
    """
    read = partial(_times, m, model, levels_of(model))
    with _one_thread():
        first, measured = _of_records(read, records)
        if measured:
            cost = _cost(_means(measured), f"{len(measured)} files of the manifest")
            return replace(cost, start=max(0.0, first - cost.seconds))
        if records:
            notes.append(f"{m}: none of {len(records)} files of the manifest can be read; decoding of typical ones")
        with tempfile.TemporaryDirectory() as folder:
            typical = write_typical(m, Path(folder))
            try:
                if typical is not None:
                    first = sum(read(typical.paths[0])[1:4])
                    every = [_best(read, path) for path in typical.paths]
                    cost = _cost(_whole(every, typical.sizes, typical.whole), f"generated {typical.title}")
                    return replace(cost, start=max(0.0, first - sum(every[0][1:4])))
            except M3BindError as error:
                notes.append(f"{m}: decoding could not be measured ({error})")
        return DecodeCost(*STATED.get(m, UNKNOWN), "stated values, not measured")


def _of_records(read: Callable[..., Times], records: Sequence[Record]) -> tuple[float, list[Times]]:
    """Seconds of the first file that can be read, which starts the reader, and the times of the others."""
    times: list[Times] = []
    first, end = 0.0, 0.0
    for record in records:
        try:
            measured = read(record.path, record.rescale)
        except (M3BindError, OSError):
            continue
        if first or len(records) == 1:
            times.append(measured)
        if not first:
            first, end = sum(measured[1:4]), time.monotonic() + BUDGET
        if times and time.monotonic() > end:
            break
    return first, times


def _best(read: Callable[..., Times], path: Path) -> Times:
    """The shortest times of a file that is read repeatedly."""
    end = time.monotonic() + BUDGET / 2
    every = [read(path)]
    while len(every) < 5 and time.monotonic() < end:
        every.append(read(path))
    size, hashing, decoding, preprocessing, stored = (min(column) for column in zip(*every, strict=True))
    return size, hashing, decoding, preprocessing, int(stored)


def _times(
    m: str, model: DualEncoder, levels: packing.Floats | None, path: Path, rescale: tuple[float, float] | None = None
) -> Times:
    """Raises: M3BindError: the file cannot be read, or the model does not take it."""
    _, hashing = _timed(lambda: file_key(path))
    sample, decoding = _timed(lambda: modalities.decode(m, path))
    packed, preprocessing = _timed(lambda: _packed(model, rescaled(sample, rescale), levels))
    return float(_bytes(path)), hashing, decoding, preprocessing, packed.nbytes


def _packed(model: DualEncoder, sample: Sample, levels: packing.Floats | None) -> packing.PackedInput:
    row = model.preprocess(sample).numpy().astype(np.float32, copy=False)
    return packing.pack(np.ascontiguousarray(row), levels)


def _timed(call: Callable[[], T]) -> tuple[T, float]:
    start = time.perf_counter()
    result = call()
    return result, time.perf_counter() - start


def _bytes(path: Path) -> int:
    """Of a file, of all files of a folder, or of a WFDB record named without its ending."""
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    parts = [path] if path.is_file() and path.suffix != ".hea" else path.parent.glob(f"{path.stem}.*")
    return sum(part.stat().st_size for part in parts)


def _cost(times: Times, source: str) -> DecodeCost:
    size, hashing, decoding, preprocessing, stored = times
    return DecodeCost(size, hashing, decoding, preprocessing, source, stored)


def _means(every: Sequence[Times]) -> Times:
    size, hashing, decoding, preprocessing, stored = (fmean(column) for column in zip(*every, strict=True))
    return size, hashing, decoding, preprocessing, round(stored)


def _whole(every: Sequence[Times], sizes: Sequence[float], whole: float) -> Times:
    """The mean of whole files, or of a file of size `whole` the linear extrapolation from the first and the last."""
    if not sizes:
        return _means(every)
    share = (whole - sizes[0]) / (sizes[-1] - sizes[0])
    extrapolated = (max(low + (high - low) * share, high) for low, high in zip(every[0], every[-1], strict=True))
    size, hashing, decoding, preprocessing, stored = extrapolated
    return size, hashing, decoding, preprocessing, int(stored)


@contextmanager
def _one_thread() -> Any:
    """Preprocessing on one core, since ingest uses the cores for different files."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
