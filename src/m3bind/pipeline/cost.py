"""A part of a training step, timed: seconds, bytes of activations and operations of one image or text.

* `Side`: what is found. * `time_side`: of a tower's images or texts. * `time_volumes`: of deep volumes.
* `median_seconds`: of any call.

A step is timed as training computes it, in training mode (dropout and all): each part of a batch passes its tower once
without and once with gradients (see `training.pairs.in_parts`), then backwards.

Shapes: n items of a part, D slices.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

DEEP = (20, 60)  # slices at which a larger volume is timed
WORKSPACE = 1.25  # what operators need beside the activations they keep


@dataclass
class Side:
    """Cost of one item (an image, or a text of the usual length) of one tower."""

    forward: float = 0.0  # seconds, without gradients
    training: float = 0.0  # seconds: forward, forward with gradients, backward
    kept: float = 0.0  # bytes of activations kept for the backward pass
    flops: float = 0.0  # of one forward pass


def time_side(
    model: nn.Module, encode: Callable[[Any], Tensor], batch: Any, rows: int, trains: bool, again: bool = True
) -> Side:
    """Cost of one of the `rows` items in `batch`, which `encode`, a method of `model`, embeds.

    Args:
        model: left in eval mode; what it trains is what requires a gradient.
        encode: a batch -> (n, d).
        batch: what it takes.
        rows: items in it.
        trains: whether gradients flow through it.
        again: the forward pass runs twice in training.
    """
    from torch.utils.flop_counter import FlopCounterMode

    model.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        encode(batch)  # also the warm-up

    def forward() -> None:
        with torch.no_grad():
            encode(batch)

    seconds = median_seconds(forward)
    side = Side(seconds / rows, 0.0, 0.0, counter.get_total_flops() / rows)
    if trains:
        model.train()
        with _kept_bytes() as kept:
            encode(batch)
        grown = _growth(lambda: _forward_and_back(encode, batch, again)) / WORKSPACE
        side.kept = max(kept[0], grown) / rows
        side.training = median_seconds(lambda: _forward_and_back(encode, batch, again)) / rows
        model.eval()
    return side


def time_volumes(model: nn.Module, encode: Callable[[Any], Tensor], shape: tuple[int, ...], **how: bool) -> Side:
    """Cost of one volume of `shape` (C, D, H, W), by two flatter ones; `how` as in `time_side`."""
    low, high = (time_side(model, encode, torch.zeros(1, shape[0], slices, *shape[2:]), 1, **how) for slices in DEEP)
    share = (shape[1] - DEEP[1]) / (DEEP[1] - DEEP[0])
    figures = {key: value + (value - getattr(low, key)) * share for key, value in asdict(high).items()}
    return Side(**figures)


def _forward_and_back(encode: Callable[[Any], Tensor], batch: Any, again: bool) -> None:
    from torch.utils.checkpoint import checkpoint

    torch.manual_seed(0)
    out: Tensor = checkpoint(encode, batch, use_reentrant=False) if again else encode(batch)
    if out.requires_grad:
        out.sum().backward()  # type: ignore[no-untyped-call]


def median_seconds(call: Callable[[], None], budget: float = 4.0) -> float:
    """Median of up to three calls, as long as they fit into `budget` seconds."""
    found: list[float] = []
    while not found or (len(found) < 3 and sum(found) + found[-1] < budget):
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return median(found)


def _growth(call: Callable[[], None]) -> float:
    """Bytes by which this process grew at most during `call`; 0 where the system does not tell (not Linux)."""
    status, clear = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    try:
        clear.write_text("5", encoding="ascii")  # the peak starts at what is used now
        before = _status(status, "VmRSS")
        call()
        return max(0.0, _status(status, "VmHWM") - before)
    except OSError:
        return 0.0


def _status(path: Path, name: str) -> float:
    line = next(line for line in path.read_text(encoding="ascii").splitlines() if line.startswith(name))
    return 1024.0 * float(line.split()[1])


@contextmanager
def _kept_bytes() -> Iterator[list[float]]:
    """Counts the bytes that the graph built inside keeps for its backward pass, parameters excluded."""
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
