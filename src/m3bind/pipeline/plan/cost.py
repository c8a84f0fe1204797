"""Times a part of a training step: seconds, bytes of activations and operations of one image or text.

* `Side`: the result. * `time_side`: for a tower's images or texts. * `time_volumes`: for deep volumes.
* `median_seconds`: time of a call.

A step is timed in training mode, including dropout: each part of a batch passes its tower once without and once with
gradients (see `training.pairs.in_parts`), then backwards.

Shapes: n items of a part, D slices.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from m3bind.core.device import release_memory

T = TypeVar("T")

DEEP = (20, 60)  # numbers of slices at which larger volumes are timed
WORKSPACE = 1.25  # memory of operators in training, as a multiple of the stored activations


@dataclass
class Side:
    """Cost of one item (an image, or a text of the usual length) of one tower."""

    forward: float = 0.0  # seconds, without gradients
    training: float = 0.0  # seconds: forward, forward with gradients, backward
    stored: float = 0.0  # bytes of activations stored for the backward pass
    peak: float = 0.0  # bytes: them and the operators' workspace, forward and backward
    flops: float = 0.0  # operations of one forward pass
    training_flops: float = 0.0  # operations in training


def time_side(
    model: nn.Module, encode: Callable[[Any], Tensor], batch: Any, rows: int, trains: bool, again: bool = True
) -> Side:
    """Cost of one of the `rows` items in `batch`, embedded by `encode`, a method of `model`.

    Args:
        model: left in eval mode; parameters that require a gradient are trained.
        encode: a batch -> (n, d).
        batch: its argument.
        rows: number of items in the batch.
        trains: whether gradients are computed.
        again: whether the forward pass runs twice in training.
    """
    from torch.utils.flop_counter import FlopCounterMode

    model.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        encode(batch)  # also the warm-up

    def forward() -> None:  # passes over frozen towers are float32 on a CPU (`models.frozen`)
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            encode(batch)

    seconds = median_seconds(forward)
    side = Side(seconds / rows, flops=counter.get_total_flops() / rows)
    if trains:
        model.train()
        with _stored_bytes() as saved:
            encode(batch)
        with FlopCounterMode(display=False) as counter:
            held, peak = _growth(partial(_forward, encode, batch, again), _backward)
        side.stored, side.peak = max(saved[0], held) / rows, max(WORKSPACE * saved[0], held, peak) / rows
        side.training_flops = counter.get_total_flops() / rows
        side.training = median_seconds(lambda: _backward(_forward(encode, batch, again))) / rows
        model.eval()
    return side


def time_volumes(model: nn.Module, encode: Callable[[Any], Tensor], shape: tuple[int, ...], **how: bool) -> Side:
    """Cost of one volume of `shape` (C, D, H, W), extrapolated from two flatter ones; `how` as in `time_side`."""
    low, high = (time_side(model, encode, torch.zeros(1, shape[0], slices, *shape[2:]), 1, **how) for slices in DEEP)
    share = (shape[1] - DEEP[1]) / (DEEP[1] - DEEP[0])
    return Side(**{key: value + (value - getattr(low, key)) * share for key, value in asdict(high).items()})


def _forward(encode: Callable[[Any], Tensor], batch: Any, again: bool) -> Tensor:
    from torch.utils.checkpoint import checkpoint

    torch.manual_seed(0)
    out: Tensor = checkpoint(encode, batch, use_reentrant=False) if again else encode(batch)
    return out


def _backward(out: Tensor) -> None:
    if out.requires_grad:
        out.sum().backward()  # type: ignore[no-untyped-call]


def median_seconds(call: Callable[[], object], budget: float = 4.0) -> float:
    """Median of up to three calls, as long as they fit into `budget` seconds."""
    seconds: list[float] = []
    while not seconds or (len(seconds) < 3 and sum(seconds) + seconds[-1] < budget):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return median(seconds)


def _growth(first: Callable[[], T], second: Callable[[T], None]) -> tuple[float, float]:
    """Growth of this process after `first`, and the maximum in both, in bytes; 0 if not reported (not on Linux).

    Freed memory is returned to the system before, since memory taken from it would not be growth.
    """
    status, clear = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    try:
        release_memory()
        clear.write_text("5", encoding="ascii")  # resets the peak to the present size
        before = _status(status, "VmRSS")
        result = first()
        highest = _status(status, "VmHWM")
        release_memory()
        held = _status(status, "VmRSS")
        second(result)
        return max(0.0, held - before), max(0.0, max(highest, _status(status, "VmHWM")) - before)
    except OSError:
        return 0.0, 0.0


def _status(path: Path, name: str) -> float:
    line = next(line for line in path.read_text(encoding="ascii").splitlines() if line.startswith(name))
    return 1024.0 * float(line.split()[1])


@contextmanager
def _stored_bytes() -> Iterator[list[float]]:
    """Counts the bytes that the graph built inside stores for its backward pass, without parameters."""
    seen: dict[int, int] = {}
    total = [0.0]

    def pack(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            storage = tensor.untyped_storage()
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield total
    total[0] = float(sum(seen.values()))
