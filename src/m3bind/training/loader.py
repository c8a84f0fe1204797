"""The batches of a stage, prepared ahead of the training step in worker processes.

* `batches`: an iterator over `stage.batch(step)`. * `worker_count`, `fitted`: by how many processes.

A batch is a pure function of the step, so the workers' number does not change it and a resumed run continues with the
same batches. Workers read files and rows, pad tokens, draw augmentation and build masks; they never touch the device.
Where nothing has to be read or decoded and the towers compute on the CPU, workers would only take cores from the
towers: the training thread then prepares the batches itself.
"""

import logging
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import psutil
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, Dataset

from m3bind.core.device import Compute
from m3bind.errors import M3BindError

log = logging.getLogger(__name__)
SHARED = "/dev/shm"  # where the batches of workers wait


class Batches(Protocol):
    """The part of a stage that the workers use."""

    def batch(self, step: int) -> Any:
        """A nested structure of host tensors, a pure function of `step` (0-based)."""


@dataclass(frozen=True)
class _Failure:
    """An error on its way out of a worker; its constructor may take other arguments than pickle would give it."""

    kind: type[M3BindError]
    args: tuple[Any, ...]
    content: dict[str, Any]

    def error(self) -> M3BindError:
        error = self.kind.__new__(self.kind, *self.args)
        vars(error).update(self.content)
        return error


class _Steps(Dataset[Any]):
    """Dataset whose item `step` is the batch of that step, or the error that prevented it."""

    def __init__(self, stage: Batches, stop: int) -> None:
        self.stage, self.stop = stage, stop

    def __len__(self) -> int:
        return self.stop

    def __getitem__(self, step: int) -> Any:
        try:
            return self.stage.batch(step)
        except M3BindError as error:
            return _Failure(type(error), error.args, vars(error))


def _same(batch: Any) -> Any:
    return batch


def worker_count(stage: Batches, compute: Compute) -> int:
    """Processes that prepare batches; 0: the training thread."""
    if sys.platform != "linux" or (compute.device.type == "cpu" and not getattr(stage, "reads_files", False)):
        return 0  # elsewhere workers would receive a copy of the networks
    return compute.workers


def fitted(workers: int, prefetch: int, size: int, room: float) -> tuple[int, int]:
    """(workers, prefetch) whose batches of `size` bytes fit into `room` bytes; (0, 0) if not even two do."""
    ahead = int(room // max(size, 1))
    if ahead < 2 or not workers:
        return 0, 0
    workers = min(workers, ahead)
    return workers, max(1, min(prefetch, ahead // workers))


def _room() -> float:
    """Bytes for batches that wait: half of the free memory, and what is free where processes share it."""
    free = float(psutil.virtual_memory().available) / 2
    if os.path.isdir(SHARED):
        stat = os.statvfs(SHARED)
        free = min(free, stat.f_bavail * stat.f_frsize * 0.9)
    return free


def batches(stage: Batches, start: int, stop: int, compute: Compute) -> Iterator[Any]:
    """`stage.batch(step)` for start <= step < stop, on the host, in pinned memory if the device is a GPU.

    The first one is prepared in this process; its size limits how many may wait.

    Raises:
        M3BindError: of `stage.batch`, or a worker ended.
    """
    if start >= stop:
        return
    workers = worker_count(stage, compute)
    first = stage.batch(start)
    size = sum(tensor.nbytes for tensor in tree_leaves(first) if isinstance(tensor, Tensor))
    count, prefetch = fitted(workers, compute.prefetch, size, _room()) if workers else (0, 0)
    if (count, prefetch) != (workers, compute.prefetch if workers else 0):
        log.warning(
            "batches of %.0f MB: %d instead of %d processes prepare them, %d each ahead, since more do not fit into %s "
            "(docker run --shm-size=16g enlarges it) or memory",
            size / 1e6, count, workers, prefetch, SHARED,
        )  # fmt: skip
    yield first
    loader = DataLoader(
        _Steps(stage, stop),
        batch_size=None,
        sampler=range(start + 1, stop),
        num_workers=count,
        prefetch_factor=prefetch or None,
        multiprocessing_context="fork" if count else None,
        collate_fn=_same,
        pin_memory=compute.device.type == "cuda",
    )
    found = iter(loader)
    while True:
        try:
            batch = next(found)
        except StopIteration:
            return
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise M3BindError(
                f"a process that prepares batches ended ({str(error).splitlines()[0]}): not enough memory or not "
                f"enough of {SHARED}; lower compute.workers or compute.prefetch, then run the same command"
            ) from error
        if isinstance(batch, _Failure):
            raise batch.error()
        yield batch
