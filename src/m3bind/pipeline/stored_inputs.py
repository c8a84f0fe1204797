"""The model inputs of files: from shards on disk, or read from the files at every access.

* `StoredInputs`, `LiveInputs`: one interface: `len`, `shape`, `packed(positions)`, `expand(packed)`, and `[positions]`.
* `FileReader`: a file of one modality -> the packed input of one model. * `levels_of`: the levels of its inputs.

    inputs.packed([3, 7])   host tensors in the stored type (`data.packing`): images as uint8
    inputs.expand(packed)   (2, ...) float32, on the device of `packed`
    inputs[[3, 7]]          both, as an array

Shapes: N files, n positions.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from m3bind import modalities
from m3bind.data import packing
from m3bind.data.packing import Floats, Form, PackedInput
from m3bind.data.prefetch import ahead
from m3bind.data.records import Records
from m3bind.data.shards import ShardFolder
from m3bind.encode.decode_pool import reason_of
from m3bind.errors import M3BindError, NotFiniteError, ReadError, in_words, is_lasting
from m3bind.modalities.base import Sample
from m3bind.models.base import DualEncoder
from m3bind.privacy import redact_path


class BadFilesError(M3BindError):
    """Some files could not be read, or changed after the first reading; `failures` maps position to reason."""

    def __init__(self, failures: dict[int, str], paths: Sequence[str]) -> None:
        """`paths` of all positions; the first failure is named."""
        first = min(failures)
        more = f" (and {len(failures) - 1} more files)" if len(failures) > 1 else ""
        super().__init__(
            f"{redact_path(paths[first])}: {failures[first]}{more}; the same command reads changed files again, "
            "quarantines unreadable ones, and resumes"
        )
        self.failures = failures


def rescaled(sample: Sample, rescale: tuple[float, float] | None) -> Sample:
    """A CT whose stored values become slope * value + intercept; without `rescale`, the unchanged sample."""
    if rescale is None:
        return sample
    slope, intercept = rescale
    return replace(sample, array=sample.array * np.float32(slope) + np.float32(intercept))


def levels_of(model: DualEncoder) -> Floats | None:
    """`model.levels()` as an array."""
    levels = model.levels()
    return None if levels is None else levels.float().contiguous().numpy()


@dataclass(frozen=True)
class FileReader:
    """Files of one modality as inputs of one model.

    `preprocessing` names the model's preprocessing, `levels` (C, L) or (1, L) are those of its inputs (`levels_of`).
    """

    modality: str
    model: DualEncoder
    preprocessing: str
    levels: Floats | None

    @property
    def kind(self) -> str:
        """Name of everything that an input depends on beside its file."""
        version = modalities.get(self.modality).version
        levels = "" if self.levels is None else hashlib.sha256(self.levels.tobytes()).hexdigest()[:16]
        return f"{self.preprocessing}/read {version}/levels {levels}"

    def read(self, path: str, rescale: tuple[float, float] | None = None) -> PackedInput:
        """Decode, rescale, preprocess and pack one file.

        Raises:
            ReadError: it cannot be read, or not be preprocessed by this model.
        """
        try:
            sample = modalities.decode(modalities.get(self.modality), path)
            row = self.model.preprocess(rescaled(sample, rescale)).numpy().astype(np.float32, copy=False)
            if not np.isfinite(row).all():
                raise NotFiniteError("preprocessing gives NaN or infinity")
        except ReadError:
            raise
        except Exception as error:  # models refuse samples in many ways
            lasting = isinstance(error, M3BindError) and is_lasting(error)
            raise ReadError(path, reason_of(error), lasting=lasting) from error
        return packing.pack(np.ascontiguousarray(row), self.levels)


class StoredInputs:
    """N inputs in shards."""

    live = False

    def __init__(self, shards: ShardFolder, where: NDArray[np.int64], levels: Floats | None) -> None:
        """`where` (N, 2): shard and row of each, -1 for inputs that are not accessed."""
        self._shards, self._where, self._levels = shards, where, levels
        first = int(where[:, 0].max(initial=-1))
        shape = shards.shards[first].tensors["rows"][2][1:] if first >= 0 else (1,)
        self.shape: tuple[int, ...] = (len(where), *shape)

    def __len__(self) -> int:
        return len(self._where)

    def packed(self, positions: Any) -> dict[str, Tensor]:
        """Host tensors of the inputs at `positions`, for `expand`."""
        where = self._where[positions]
        forms = np.array([self._form(shard) for shard in where[:, 0].tolist()])
        different = sorted(set(forms.tolist()))
        if len(different) == 1:
            return self._read(where, different[0])
        out = torch.empty(len(where), *self.shape[1:])
        for form in different:
            at = np.flatnonzero(forms == form)
            out[torch.from_numpy(at)] = packing.expand(self._read(where[at], form))
        return {"value": out}

    def _form(self, shard: int) -> Form:
        tensors = self._shards.shards[shard].tensors
        if "scale" in tensors:
            return "step"
        return "value" if tensors["rows"][0] == np.float32 else "level"

    def _read(self, where: NDArray[np.int64], form: Form) -> dict[str, Tensor]:
        scale = self._shards.read(where, "scale") if form == "step" else None
        return packing.collate(form, self._shards.read(where), scale, self._levels)

    def expand(self, packed: Mapping[str, Tensor]) -> Tensor:
        """(n, ...) float32 of packed inputs, on their device."""
        return packing.expand(packed)

    def __getitem__(self, positions: Any) -> Floats:
        return _array(self, positions)


class LiveInputs:
    """N inputs, read from their files at every access.

    Raises (when accessed):
        BadFilesError: some files cannot be read, or their content is not that of the first reading.
    """

    live = True  # a loader has to decode

    def __init__(
        self,
        reader: FileReader,
        records: Records,
        shape: tuple[int, ...],
        workers: int,
        key_of: Callable[[str, tuple[float, float] | None], str],
        keys: Sequence[str | None],
    ) -> None:
        """`shape` of one input; `workers` threads decode, one within a worker of a DataLoader.

        `keys` of the contents when they were first read; `key_of` a path and its rescaling is the present one.
        """
        self._reader, self._workers, self._key_of, self._keys = reader, workers, key_of, keys
        self._paths, self._rescale = records.paths, records.rescale
        self.shape: tuple[int, ...] = (len(records), *shape)

    def __len__(self) -> int:
        return len(self._paths)

    def packed(self, positions: Any) -> dict[str, Tensor]:
        """Host tensors of the inputs at `positions`, for `expand`."""
        at = [int(position) for position in positions]
        rows = self._rows(at)
        failures = {position: row for position, row in zip(at, rows, strict=True) if isinstance(row, str)}
        if failures:
            raise BadFilesError(failures, self._paths)
        return packing.together([row for row in rows if not isinstance(row, str)], self._reader.levels)

    def _rows(self, positions: list[int]) -> list[PackedInput | str]:
        if self._workers == 1 or torch.utils.data.get_worker_info() is not None:
            return [self._row(position) for position in positions]
        return list(ahead(self._row, positions, self._workers, len(positions), lambda row: 0))

    def _row(self, position: int) -> PackedInput | str:
        try:
            path, rescale = self._paths[position], self._rescale[position]
            if self._key_of(path, rescale) != self._keys[position]:
                return "its content changed after the run had read it"
            return self._reader.read(path, rescale)
        except ReadError as error:
            return error.advice
        except OSError as error:
            return f"not readable: {in_words(error)}"

    def expand(self, packed: Mapping[str, Tensor]) -> Tensor:
        """(n, ...) float32 of packed inputs, on their device."""
        return packing.expand(packed)

    def __getitem__(self, positions: Any) -> Floats:
        return _array(self, positions)


Inputs = StoredInputs | LiveInputs


def _array(inputs: Inputs, positions: Any) -> Floats:
    at = np.arange(len(inputs))[positions]
    if at.ndim == 0:
        return np.asarray(_array(inputs, [at])[0])
    if not len(at):
        return np.zeros((0, *inputs.shape[1:]), np.float32)
    return inputs.expand(inputs.packed(at)).numpy()
