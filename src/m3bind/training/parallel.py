"""Several processes that together compute the same as one process.

Every process knows the whole (global) batch, encodes its slice of it, and gathers the embeddings with their gradient,
so each computes the loss over all negatives. The average of the parameters' gradients over the processes is then the
gradient of the single-process loss: the gather's backward sums over processes, which the average compensates for
parameters used on slices; parameters used after the gather have the full gradient on every process.

Shapes: n global items, s = ceil(n / world) items of a slice, d embedding dimension.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def world() -> tuple[int, int]:
    """(rank of this process, number of processes)."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


class _Gather(torch.autograd.Function):
    """All slices one after the other, (s, d) -> (world * s, d); backward sums the gradient over processes."""

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


def encode_sharded(encode: Callable[[Tensor], Tensor], items: Tensor) -> Tensor:
    """`encode(items)` with the work divided among the processes: (n,) indices -> (n, d), with gradient.

    The last slice is filled with repeated items so that all have equal length; their results are discarded.
    """
    rank, size = world()
    if size == 1:
        return encode(items)
    rows = -(-len(items) // size)
    padded = items[torch.arange(rows * size, device=items.device) % len(items)]
    gathered: Tensor = _Gather.apply(encode(padded[rank * rows : (rank + 1) * rows]))
    return gathered[: len(items)]


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Mean of the gradients over all processes, in place, in one message; a missing gradient counts as zero."""
    _, size = world()
    if size == 1:
        return
    trained = [p for p in parameters if p.requires_grad]
    if not trained:
        return
    for parameter in trained:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    flat = torch.cat([p.grad.reshape(-1) for p in trained if p.grad is not None])
    dist.all_reduce(flat)
    for parameter, mean in zip(trained, torch.split(flat / size, [p.numel() for p in trained]), strict=True):
        parameter.grad = mean.view_as(parameter)
