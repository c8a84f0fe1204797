"""Measuring on a device: steps per second, floating point operations, memory, and the device's own matrix rate."""

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

Row = dict[str, Any]


@dataclass
class Bench:
    """A device, a time limit for one form, and the rates of its matrix products."""

    device: torch.device
    seconds: float  # of measuring one form
    tiny: bool
    rates: dict[str, float] = field(default_factory=dict)  # operations per second, by dtype
    failed: list[str] = field(default_factory=list)

    def guarded(self, name: str, run: Callable[[], Row]) -> Row:
        """The row of one form, with its error instead if it failed, so that the others are still measured."""
        try:
            return {"form": name} | run()
        except Exception as error:
            self.failed.append(f"{name}: {type(error).__name__}")
            return {"form": name, "error": f"{type(error).__name__}: {str(error)[:300]}"}
        finally:
            self.release()

    def synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def autocast(self, dtype: torch.dtype = torch.bfloat16) -> Any:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16)

    def measure(
        self,
        run: Callable[[], object],
        items: int = 0,
        warm: int = 2,
        dtype: str = "bfloat16",
        flop: float | None = None,
    ) -> Row:
        """Median seconds of `run`, items per second, share of the matrix rate, peak memory in GB.

        `flop`: operations of one call if they cannot be counted (compiled code), 0 if they are of no interest.
        """
        self.release()
        flop = float(operations(run)) if flop is None else flop
        for _ in range(warm):
            run()
        self.synchronise()
        seconds, end = [], time.perf_counter() + self.seconds
        while len(seconds) < 3 or (time.perf_counter() < end and len(seconds) < 200):
            start = time.perf_counter()
            run()
            self.synchronise()
            seconds.append(time.perf_counter() - start)
        middle = statistics.median(seconds)
        row: Row = {"ms": 1e3 * middle, "ms_min": 1e3 * min(seconds), "ms_max": 1e3 * max(seconds), "n": len(seconds)}
        if items:
            row["items_per_s"] = items / middle
        if flop:
            row["gflop"] = flop / 1e9
        if flop and dtype in self.rates:
            row["share_of_rate"] = flop / middle / self.rates[dtype]
        if self.device.type == "cuda":
            row["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
        return row

    def release(self) -> None:
        """Free what earlier forms left, and start counting the peak of memory."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def matrix_rate(self, dtype: str, size: int) -> float:
        """Operations per second of a square product of random numbers."""
        kind = torch.bfloat16 if dtype == "bfloat16" else torch.float32
        a, b = (torch.randn(size, size, device=self.device, dtype=kind) for _ in range(2))
        for _ in range(3):
            a @ b
        self.synchronise()
        start, count = time.perf_counter(), 0
        while count < 10 or time.perf_counter() - start < min(self.seconds, 1.0):
            a @ b
            count += 1
            if count % 10 == 0:
                self.synchronise()
        self.synchronise()
        return 2 * size**3 * count / (time.perf_counter() - start)


def operations(run: Callable[[], object]) -> int:
    """Additions and multiplications of matrix products, convolutions and attention in one call of `run`."""
    with FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())


@torch.no_grad()
def randomise(module: nn.Module) -> nn.Module:
    """Random weights of the size that keeps activations near 1, drawn on the module's device."""
    for name, value in module.state_dict().items():
        if not value.is_floating_point() or value.numel() <= 1:
            continue
        last = name.rpartition(".")[2]
        if value.ndim == 1:
            one = last in ("weight", "gamma", "running_var") or last.endswith("scale")
            value.normal_(0, 0.02).add_(1.0 if one else 0.0)
            if last == "running_var":
                value.abs_()
        else:
            fan = value[0].numel()
            value.normal_(0, 0.02 if "embed" in name or "token" in name else fan**-0.5)
    return module


def report_lengths(count: int, longest: int = 236, seed: int = 1) -> Tensor:
    """Lengths of report-like texts in tokens: log-normal around 58, 8 to `longest`."""
    random = torch.Generator().manual_seed(seed)
    lengths = torch.exp(4.06 + 0.78 * torch.randn(count, generator=random))
    return lengths.round().clamp(8, longest).long()


def tokens_of(lengths: Tensor, vocabulary: int, columns: int = 0, seed: int = 2) -> dict[str, Tensor]:
    """Random ids (n, L) and their mask, padded to the longest, or to `columns`."""
    mask = (torch.arange(columns or int(lengths.max())) < lengths[:, None]).long()
    random = torch.Generator().manual_seed(seed)
    ids = torch.randint(min(1000, vocabulary // 2), min(vocabulary, 21000), mask.shape, generator=random)
    return {"input_ids": ids * mask, "attention_mask": mask}


def chunks(count: int, size: int) -> Iterator[slice]:
    for start in range(0, count, size):
        yield slice(start, min(count, start + size))
