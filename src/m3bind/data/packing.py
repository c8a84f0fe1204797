"""Inputs of a model in the smallest type that gives the same numbers.

* `pack`: one float32 input -> `PackedInput`. * `expand`: packed inputs -> float32, on any device.
* `collate`: packed inputs of one batch together.

Forms:
    level   uint8 or int16 numbers of the levels that a model states (`DualEncoder.levels`): 8-bit images, whole HU.
            Exact.
    step    int16 between an input's lowest and highest value: large inputs without levels (1 MB or more), where the
            disk limits. An element differs by at most `STEP_ERROR` of that range; the lowest value is exact.
    value   float32.

Shapes: n inputs, C first axis of an input (channels), L levels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Form = Literal["level", "step", "value"]
Floats = NDArray[np.float32]
LARGE = 1 << 20  # bytes of a float32 input
STEP_ERROR = 2.0**-16
_STEPS = 65535  # between the lowest and the highest value
_BLOCK = 1 << 16  # elements packed at a time


@dataclass(frozen=True)
class PackedInput:
    """One input: its elements in a small type, and of the form "step" its lowest value and step (2,)."""

    form: Form
    array: NDArray[np.uint8] | NDArray[np.int16] | Floats
    scale: Floats | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the elements."""
        return self.array.nbytes


def pack(row: Floats, levels: Floats | None) -> PackedInput:
    """The smallest form of one input; `levels` (C, L) or (1, L)."""
    if levels is not None and (numbers := _numbers(row, levels)) is not None:
        return PackedInput("level", numbers)
    if row.nbytes >= LARGE and (stepped := _stepped(row)) is not None:
        return stepped
    return PackedInput("value", row)


def _numbers(row: Floats, levels: Floats) -> NDArray[np.uint8] | NDArray[np.int16] | None:
    """The number of the level of each element; None unless every element equals its level bit by bit."""
    channels, count = levels.shape
    if row.ndim == 0 or channels not in (1, len(row)) or not 1 < count <= 1 << 15:
        return None
    flat = row.reshape(channels, -1)
    numbers = np.empty(flat.shape, np.uint8 if count <= 256 else np.int16)
    for values, table, out in zip(flat, levels, numbers, strict=True):
        low, high = table[0], table[-1]
        if not high > low:
            return None
        scale = np.float32((count - 1) / (float(high) - float(low)))
        for at in range(0, len(values), _BLOCK):
            block = values[at : at + _BLOCK]
            near = np.rint((block - low) * scale)
            index = np.clip(near, 0, count - 1, out=near).astype(numbers.dtype)
            if not np.array_equal(table[index].view(np.int32), block.view(np.int32)):
                return None
            out[at : at + _BLOCK] = index
    return numbers.reshape(row.shape)


def _stepped(row: Floats) -> PackedInput | None:
    """16-bit steps between the lowest and the highest value; None if an element would differ by more than allowed."""
    flat = row.reshape(-1)
    low, high = flat.min(), flat.max()
    spread = float(high) - float(low)
    step = np.float32(spread / _STEPS)
    if step <= 0 or spread > float(np.finfo(np.float32).max):
        return None
    codes = np.empty(flat.shape, np.int16)
    for at in range(0, len(flat), _BLOCK):
        block = flat[at : at + _BLOCK]
        number = np.clip(np.rint((block - low) / step), 0, _STEPS)
        if np.abs(number * step + low - block).max() > STEP_ERROR * spread:
            return None
        codes[at : at + _BLOCK] = (number - 32768).astype(np.int16)
    return PackedInput("step", codes.reshape(row.shape), np.array([low, step], np.float32))


def collate(form: Form, array: NDArray[np.generic], scale: Floats | None, levels: Floats | None) -> dict[str, Tensor]:
    """(n, ...) packed elements of one form as the tensors that `expand` takes."""
    tensors: dict[str, Tensor] = {form: torch.from_numpy(array)}
    if form == "level":
        assert levels is not None
        tensors["levels"] = torch.from_numpy(levels)
    if form == "step":
        assert scale is not None
        tensors["scale"] = torch.from_numpy(scale)
    return tensors


def together(rows: Sequence[PackedInput], levels: Floats | None) -> dict[str, Tensor]:
    """Packed inputs of a batch as tensors; inputs of different forms become float32."""
    forms = {row.form for row in rows}
    if len(forms) == 1:
        scale = np.stack([row.scale for row in rows if row.scale is not None]) if forms == {"step"} else None
        return collate(rows[0].form, np.stack([row.array for row in rows]), scale, levels)
    return {"value": torch.cat([expand(together([row], levels)) for row in rows])}


def expand(packed: Mapping[str, Tensor]) -> Tensor:
    """Packed inputs of a batch -> (n, ...) float32, on their device."""
    if "value" in packed:
        return packed["value"]
    if "step" in packed:
        codes = packed["step"]
        low, step = packed["scale"].view(-1, 2, *[1] * (codes.ndim - 1)).unbind(1)
        return (codes.float() + 32768) * step + low
    numbers, levels = packed["level"], packed["levels"]
    index = numbers.int()
    if len(levels) > 1:  # each channel has its own table
        first = torch.arange(len(levels), dtype=torch.int32, device=levels.device) * levels.shape[1]
        index += first.view(-1, *[1] * (numbers.ndim - 2))
    return levels.flatten().index_select(0, index.flatten()).view(numbers.shape)
