"""Several processes that together compute the same as one process.

Every process knows the whole (global) batch, loads and encodes its share of it, and gathers the embeddings with their
gradient, so each computes the loss over all negatives. The mean of the parameters' gradients over the processes, taken
by torch's DistributedDataParallel in buckets while the backward pass still runs, is then the gradient of the
single-process loss: the gather's backward sums over processes, which the mean compensates for parameters used on
shares; parameters used after the gather have the full gradient on every process.

DistributedDataParallel was chosen over averaging by hand: it overlaps, skips parameters without gradient (on which
AdamW would otherwise apply weight decay), and broadcasts the weights once when a stage starts.

* `join`: joins the process group that a launcher started. * `world`: rank and number of processes.
* `share`, `gather`: this process's items of a batch, and everyone's results. * `distributed`: a stage's losses.
* `wait`: until all processes are here, however long that takes. * `main_first`: the first process before the others.
* `agree`: refuses processes that were given different data. * `is_loss_of_process`: errors after another one's end.

Shapes: n global items, s = ceil(n / world) items of a share, d embedding dimension.
"""

import contextlib
import logging
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from m3bind.core.launcher import ALONE, meeting_point, processes
from m3bind.errors import ConfigError, M3BindError

log = logging.getLogger(__name__)
NOTICE = 30.0  # seconds after which a process reports that it waits for the others to start
LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited")  # gloo, NCCL
PATIENCE = timedelta(days=365)  # an evaluation by one process may take longer than any timeout of a collective


def join(device: torch.device) -> None:
    """Join the processes that accelerate or torchrun started; nothing for a process on its own.

    Raises:
        ConfigError: the launcher's variables are missing or invalid.
        M3BindError: the others cannot be reached.
    """
    rank, size = processes()
    if size == 1:
        return
    from accelerate import PartialState

    who = f"process {rank} of {size}, numbered from 0"
    place = meeting_point()
    notice = threading.Timer(NOTICE, log.warning, ("%s, still waits for the others at %s; if there are none: %s",
                                                   who, place, ALONE))  # fmt: skip
    notice.daemon = True
    notice.start()
    try:
        PartialState(cpu=device.type == "cpu")
        _patient_group()  # made by all together now: making it later, one after another, could time out
    except (RuntimeError, ValueError) as error:  # of the store and of the group
        raise M3BindError(
            f"{who}, cannot join the others at {place} ({str(error).splitlines()[0]}); if another program uses that "
            f"port, choose another (MASTER_PORT); each process needs its own RANK; {ALONE}"
        ) from error
    finally:
        notice.cancel()


def world() -> tuple[int, int]:
    """(rank of this process, number of processes)."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


@cache
def _patient_group() -> Any:
    return dist.new_group(backend="gloo", timeout=PATIENCE)


def wait() -> None:
    """Return when every process has called this; a process that died ends the others with an error."""
    if world()[1] > 1:
        dist.barrier(_patient_group())


@contextlib.contextmanager
def main_first() -> Iterator[bool]:
    """The first process runs the body before the others do; yields whether this is the first."""
    first = world()[0] == 0
    if not first:
        wait()
    yield first
    if first:
        wait()


def agree(name: str, value: Callable[[], str]) -> None:
    """Do nothing if `value` gives the same in all processes.

    Raises:
        ConfigError: they do not; names the processes that differ from the first.
    """
    size = world()[1]
    if size == 1:
        return
    values: list[Any] = [None] * size
    dist.all_gather_object(values, value(), _patient_group())
    if others := [str(rank) for rank, other in enumerate(values) if other != values[0]]:
        raise ConfigError(
            f"{name}: not the same in processes 0 and {', '.join(others)}; start all with the same command in the same "
            "folder, on a file system that all of them see"
        )


def is_loss_of_process(error: BaseException) -> bool:
    """Whether an operation of all processes failed, because another one ended."""
    if world()[1] == 1 or not isinstance(error, RuntimeError):
        return False
    return any(words in str(error) for words in LOST)


def share(items: NDArray[np.int64]) -> NDArray[np.int64]:
    """This process's share (s,) of a batch (n,); the last one is filled with repeated items to equal length."""
    rank, size = world()
    if size == 1:
        return items
    rows = -(-len(items) // size)
    return items[np.arange(rank * rows, (rank + 1) * rows) % len(items)]


class _Gather(torch.autograd.Function):
    """All shares one after the other, (s, d) -> (world * s, d); backward sums the gradient over processes."""

    @staticmethod
    def forward(context: Any, part: Tensor) -> Tensor:
        context.rank, size = world()
        context.rows = part.shape[0]
        parts = [torch.empty_like(part) for _ in range(size)]
        dist.all_gather(parts, part.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        gradient = gradients[0].contiguous()
        dist.all_reduce(gradient)
        return gradient[context.rank * context.rows : (context.rank + 1) * context.rows]


def gather(part: Tensor, count: int) -> Tensor:
    """The results (n, d) of a whole batch of `count` items from everyone's `share` (s, d), with gradient."""
    if world()[1] == 1:
        return part
    gathered: Tensor = _Gather.apply(part)
    return gathered[:count]


class _Forward(nn.Module):
    """A stage's losses as the forward pass of its modules."""

    def __init__(self, modules: Iterable[nn.Module], losses: Callable[[Any], dict[str, Tensor]]) -> None:
        super().__init__()
        self.parts, self.losses = nn.ModuleList(modules), losses

    def forward(self, batch: Any) -> dict[str, Tensor]:
        return self.losses(batch)


def distributed(
    modules: Iterable[nn.Module], losses: Callable[[Any], dict[str, Tensor]]
) -> Callable[[Any], dict[str, Tensor]]:
    """`losses`, whose backward pass gives every process the mean gradient of the trainable parameters of `modules`.

    The weights and buffers of the first process are sent to the others.
    """
    forward = _Forward(modules, losses)
    if world()[1] == 1 or not any(p.requires_grad for p in forward.parameters()):
        return losses
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # broadcast_buffers has another name in the newest torch only
        wrapped: Callable[[Any], dict[str, Tensor]] = nn.parallel.DistributedDataParallel(
            forward, broadcast_buffers=False, find_unused_parameters=True, gradient_as_bucket_view=True
        )
    return wrapped
