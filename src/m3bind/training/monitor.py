"""What a stage reports while it trains: TensorBoard, W&B or MLflow, the pace, and a profile.

* `Trackers`: losses to the trackers of the settings. * `check_trackers`: whether their packages are installed.
* `Pace`: items per second, waiting, GPU memory for the progress line.
* `profiler`: a trace of a few steps for chrome://tracing or Perfetto.

W&B and MLflow are reached through accelerate's interface. They may send what they get to a server, so m3bind hands them
the losses and the settings of the loop, but neither paths nor texts. What they record on their own is theirs to set.
"""

import contextlib
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.utils.tensorboard import SummaryWriter

from m3bind.config import TrainConfig
from m3bind.core.device import Compute, memory
from m3bind.core.progress import memory_text
from m3bind.errors import ConfigError

T = TypeVar("T")
WAIT, WARM_UP, ACTIVE = 3, 2, 4  # steps before a profile, of its warm-up, and in the trace
SHOWN = 0.05  # share of waiting for data above which the progress line shows it


class Trackers:
    """The trackers of one stage, on the first process."""

    def __init__(self, compute: Compute, stage: str, folder: Path, settings: TrainConfig, step: int) -> None:
        """`step` after which an interrupted run resumes; later entries of it are discarded.

        Raises:
            ConfigError: the package of a tracker is not installed.
        """
        self.stage = stage
        self._board, self._others = None, []
        for name in compute.trackers:
            if name == "tensorboard":
                self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step)
            else:
                self._others.append(_tracker(name, stage, folder))
                self._others[-1].store_init_configuration({"stage": stage, **settings.model_dump(mode="json")})

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Named values after `step` steps."""
        named = {f"{self.stage}/{key}": value for key, value in values.items()}
        if self._board is not None:
            for key, value in named.items():
                self._board.add_scalar(key, value, step)
        for tracker in self._others:
            tracker.log(named, step)

    def close(self) -> None:
        """Write what is buffered."""
        if self._board is not None:
            self._board.close()
        for tracker in self._others:
            tracker.finish()


def check_trackers(names: Iterable[str]) -> None:
    """Raise ConfigError if the package of a tracker is not installed."""
    from accelerate import tracking

    available = {"wandb": tracking.is_wandb_available, "mlflow": tracking.is_mlflow_available}
    for name in names:
        if name in available and not available[name]():
            raise ConfigError(
                f"compute.trackers: {name} is not installed; pip install {name}, or remove it from the list"
            )


def _tracker(name: str, stage: str, folder: Path) -> Any:
    from accelerate import tracking

    check_trackers([name])
    if name == "wandb":
        tracker: Any = tracking.WandBTracker("m3bind", name=stage, dir=str(folder))
    else:
        tracker = tracking.MLflowTracker("m3bind", run_name=stage)  # where: MLFLOW_TRACKING_URI
    if hasattr(tracker, "start"):
        tracker.start()
    return tracker


class Pace:
    """Counts items and time."""

    def __init__(self, compute: Compute) -> None:
        self._device, self._start = compute.device, time.monotonic()
        self.items, self.waited = 0, 0.0

    def timed(self, batches: Iterator[T]) -> Iterator[T]:
        """The same batches; the time until each is there counts as waiting."""
        while True:
            before = time.monotonic()
            try:
                batch = next(batches)
            except StopIteration:
                return
            self.waited += time.monotonic() - before
            yield batch

    @property
    def seconds(self) -> float:
        """Since the start."""
        return max(time.monotonic() - self._start, 1e-9)

    def values(self) -> dict[str, float]:
        """Items per second, share of time spent waiting for data, and peak memory in GB on a GPU."""
        used = memory(self._device)
        values = {"items_per_second": self.items / self.seconds, "waiting": self.waited / self.seconds}
        return values if used is None else {**values, "memory_gb": used[0] / 1e9}

    def note(self) -> str:
        """For the progress line."""
        used, values = memory(self._device), self.values()
        pieces = [f"{values['items_per_second']:,.0f} items/s"] if self.items else []
        if values["waiting"] > SHOWN:
            pieces.append(f"waiting for data {values['waiting']:.0%}")
        if used is not None:
            pieces.append(memory_text(used))
        return ", ".join(pieces)


@contextlib.contextmanager
def profiler(compute: Compute, folder: Path) -> Iterator[Any]:
    """A torch.profiler whose `step()` is called after each step and which writes folder/trace.json, or None."""
    if not compute.profile:
        yield None
        return
    from torch import profiler as torch_profiler

    path = folder / "trace.json"

    def write(profile: Any) -> None:
        temporary = path.with_suffix(".tmp")
        profile.export_chrome_trace(str(temporary))
        os.replace(temporary, path)

    activities = [torch_profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch_profiler.ProfilerActivity.CUDA)
    schedule = torch_profiler.schedule(wait=WAIT, warmup=WARM_UP, active=ACTIVE, repeat=1)
    with torch_profiler.profile(activities=activities, schedule=schedule, on_trace_ready=write) as profile:
        yield profile
