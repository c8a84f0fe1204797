"""The batches of a stage, prepared ahead of the training step in worker processes.

* `batches`: an iterator over `stage.batch(step)`.

A batch is a pure function of the step, so the workers' number does not change it and a resumed run continues with the
same batches. Workers read files and rows, pad tokens, draw augmentation and build masks; they never touch the device.
Where nothing has to be read or decoded and the towers compute on the CPU, workers would only take cores from the
towers: the training thread then prepares the batches itself.
"""

import logging
import os
import sys
from collections.abc import Iterator
from typing import Any, Protocol

from torch.utils.data import DataLoader, Dataset

from m3bind.core.device import Compute
from m3bind.errors import M3BindError

log = logging.getLogger(__name__)
SHARED = "/dev/shm"  # where the batches of workers wait
SMALL = 1 << 30  # bytes of it below which workers may fail


class Batches(Protocol):
    """The part of a stage that the workers use."""

    def batch(self, step: int) -> Any:
        """A nested structure of host tensors, a pure function of `step` (0-based)."""


class _Steps(Dataset[Any]):
    """Dataset whose item `step` is the batch of that step, or the error that prevented it."""

    def __init__(self, stage: Batches, stop: int) -> None:
        self.stage, self.stop = stage, stop

    def __len__(self) -> int:
        return self.stop

    def __getitem__(self, step: int) -> Any:
        try:
            return self.stage.batch(step)
        except M3BindError as error:  # DataLoader would replace an error whose constructor takes more than a text
            return error


def _same(batch: Any) -> Any:
    return batch


def worker_count(stage: Batches, compute: Compute) -> int:
    """Processes that prepare batches; 0: the training thread."""
    if sys.platform != "linux" or (compute.device.type == "cpu" and not getattr(stage, "reads_files", False)):
        return 0  # elsewhere workers would receive a copy of the networks
    free = os.statvfs(SHARED).f_bavail * os.statvfs(SHARED).f_frsize if os.path.isdir(SHARED) else SMALL
    if free < SMALL:
        log.warning(
            "%s has only %.0f MB for batches in preparation: if a worker ends with a bus error, enlarge it (docker run "
            "--shm-size=8g) or lower compute.workers and compute.prefetch",
            SHARED, free / 1e6,
        )  # fmt: skip
    return compute.workers


def batches(stage: Batches, start: int, stop: int, compute: Compute) -> Iterator[Any]:
    """`stage.batch(step)` for start <= step < stop, on the host, in pinned memory if the device is a GPU.

    Raises:
        M3BindError: of `stage.batch`, or a worker ended.
    """
    workers = worker_count(stage, compute)
    loader = DataLoader(
        _Steps(stage, stop),
        batch_size=None,
        sampler=range(start, stop),
        num_workers=workers,
        prefetch_factor=compute.prefetch if workers else None,
        multiprocessing_context="fork" if workers else None,
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
        if isinstance(batch, M3BindError):
            raise batch
        yield batch
