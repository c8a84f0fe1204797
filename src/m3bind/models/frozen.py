"""Frozen towers: half precision where it is close enough, and batches that fit the device's memory.

* `FrozenPass`: an encoder applied to batches without gradient, as every pass that only embeds does.
* `halve`: store frozen weights in half precision, and back.
* `agreement`: cosines of rounded rows to exact ones; `MIN_COSINE` is the smallest that is accepted.

Autocast converts a frozen float32 weight again at every use (it remembers only the conversion of trainable ones), so
weights stored in bfloat16 save that and half of their memory. Only what autocast would convert is stored so, hence
under autocast the result is the same to the bit; and without autocast, a halved tower must not be used.
"""

import logging
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from m3bind.core.device import compute_dtype, out_of_memory, to_device

log = logging.getLogger(__name__)
MIN_COSINE = 0.999  # of half precision to float32, below which float32 is used
TOGETHER = 8  # times as many items as on a CPU, whose caches are smaller


class Agreement(NamedTuple):
    """Cosines of rounded rows to exact ones."""

    mean: float
    smallest: float


def agreement(exact: Tensor, rounded: Tensor) -> Agreement:
    """Of rows (n, ...); NaN if a row is not finite."""
    a, b = (F.normalize(rows.detach().cpu().double().flatten(1), dim=1) for rows in (exact, rounded))
    cosines = (a * b).sum(1)
    return Agreement(float(cosines.mean()), float(cosines.min()))


class FrozenPass:
    """Applies an encoder to batches, without gradient, and returns the rows to the host in float32.

    A batch is a tensor, or a structure of tensors (tokens), with one row per item.
    """

    def __init__(
        self,
        encode: Callable[[Any], Tensor],
        device: torch.device,
        dtype: torch.dtype | None = None,
        load: Callable[[Any], Any] | None = None,
        name: str = "a tower",
        compared: int | None = None,
    ) -> None:
        """`encode` maps n items to rows (n, ...), each independent of the others, on `device`.

        Args:
            encode: gets the tensors of a batch, or of a part of it, on `device`.
            device: of the encoder.
            dtype: of matrix products. None: float32 on a CPU; elsewhere what the device computes fastest, if the rows
                of the first batch are close to those of float32.
            load: from (a part of) a batch to the host tensors that `encode` gets; by default the batch itself.
            name: of the encoder, for log lines.
            compared: leading columns of the rows that are compared; None: all.
        """
        self._encode, self._load, self.device, self._name = encode, load or (lambda batch: batch), device, name
        self._dtype = torch.float32 if dtype is None and device.type == "cpu" else dtype
        self._compared = slice(compared)
        self._limit = 0  # elements of a part, once the memory has run out
        half = str(self._dtype or compute_dtype(device)).removeprefix("torch.")
        self.kind = "" if half == "float32" else f"/{half}"  # for keys of stored rows: how they may be rounded
        self.times = 1 if device.type == "cpu" else TOGETHER  # a batch may have so many times the items

    def __call__(self, batch: Any) -> Tensor:
        """(n, ...) float32 rows on the host. A batch that does not fit the device's memory is computed in parts.

        Raises:
            RuntimeError: the memory does not hold a single item.
        """
        if self._dtype is None:
            self._dtype = self._chosen(batch)
        return self._rows(batch, self._dtype)

    def _chosen(self, batch: Any) -> torch.dtype:
        half = compute_dtype(self.device)
        if half == torch.float32:
            return half
        cosines = agreement(*(self._rows(batch, dtype)[:, self._compared] for dtype in (torch.float32, half)))
        if cosines.smallest >= MIN_COSINE:
            return half
        log.warning("%s computes in float32: in %s its cosine to it is %.6f", self._name, half, cosines.smallest)
        return torch.float32

    def _rows(self, batch: Any, dtype: torch.dtype) -> Tensor:
        tensors = tree_leaves(batch)
        count = max(len(tensors[0]), 1)
        each = max(sum(tensor.numel() for tensor in tensors) // count, 1)  # elements
        size = min(count, max(self._limit // each, 1)) if self._limit else count
        while True:
            try:
                return torch.cat([self._computed(part, dtype) for part in _split(batch, size, count)])
            except RuntimeError as error:
                if size == 1 or not _memory_ran_out(error):
                    raise
            size //= 2
            self._limit = size * each
            log.info("the memory of %s is full: %d of %d items together", self.device, size, count)

    def _computed(self, part: Any, dtype: torch.dtype) -> Tensor:
        there = tree_map(lambda tensor: to_device(tensor, self.device), self._load(part))
        with torch.no_grad(), torch.autocast(self.device.type, torch.bfloat16, dtype != torch.float32):
            return self._encode(there).float().cpu()


def _split(batch: Any, size: int, count: int) -> Iterable[Any]:
    if size == count:
        return [batch]
    tensors, form = tree_flatten(batch)
    return [tree_unflatten(parts, form) for parts in zip(*(torch.split(tensor, size) for tensor in tensors))]


def _memory_ran_out(error: RuntimeError) -> bool:
    """Whether memory ran out, of any device that accelerate knows; its unused blocks are then given back.

    The search is ours: accelerate's `find_executable_batch_size` collects garbage at every call, takes a tenth off at a
    time, and ends with an error that no longer names the memory.
    """
    from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

    if not (out_of_memory(error) or should_reduce_batch_size(error)):  # it does not know the message of MPS
        return False
    clear_device_cache(garbage_collection=True)
    return True


def halve(part: nn.Module, dtype: torch.dtype = torch.bfloat16) -> Callable[[], None]:
    """Store the frozen weights of a tower's linear, convolution and attention layers in `dtype`, in place.

    Adapters, normalisations, embeddings and everything else that autocast does not convert stay float32, and so do the
    weights of an attention with an adapter around it, which adds to them before they are converted. The exact weights
    wait on the host; the function returned puts them back. Before that, the tower runs under autocast only, and is
    neither saved, nor merged with its adapters, nor hashed.
    """
    exact: list[tuple[nn.Parameter, Tensor]] = []
    adapted: list[Any] = [module for module in part.modules() if hasattr(module, "lora_A")]
    bases = [adapter.get_base_layer() for adapter in adapted]
    summed = {child for base in bases if isinstance(base, nn.MultiheadAttention) for child in base.modules()}
    for module in part.modules():
        if isinstance(module, nn.Linear | _ConvNd | nn.MultiheadAttention) and module not in summed:
            for parameter in module.parameters(recurse=False):
                if not parameter.requires_grad and parameter.dtype == torch.float32:
                    exact.append((parameter, parameter.detach().cpu()))
                    parameter.data = parameter.detach().to(dtype)

    def restore() -> None:
        for parameter, values in exact:
            parameter.data = values.to(parameter.device)

    return restore
