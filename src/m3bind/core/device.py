"""Where and how to compute: device, precision, TF32, worker processes. Decided here, once for a process.

* `pick`: the `Compute` of a run or command from its settings, all "auto" by default.
* `Compute`: device, dtype of the towers, workers, prefetching, compilation; its `autocast`.
* `device_of`: the device of a module. * `moved`: a batch on a device. * `to_device`: one host tensor.
* `memory`: of a GPU. * `out_of_memory`: whether an error is that of a full one.
* `release_memory`: freed memory goes back to the system. * `bound_heap`: the same, only where the process grew a lot.
* `float32_arithmetic`: another TF32 policy inside a block.
* `unused_accelerator`: why a visible one is not used.
* `maybe_compile`: modules through torch.compile, an option that is measured by benchmarks/gpu.py.
* `compute_dtype`: bfloat16 if the device computes it natively, else float32. * `may_round`: whether it is allowed.

M3BIND_BFLOAT16=off makes every automatic choice float32, on any processor and GPU, so that machines can be compared.
The dtype is detected, not timed: timings vary on a busy machine, and a resumed run must repeat the same arithmetic.

TF32: on a GPU, float32 products and convolutions run in TF32 (10 bits of mantissa) if the precision is "auto", and in
exact float32 if "float32" was asked for. Losses and closed forms are always computed in float32 or wider.
"""

import contextlib
import ctypes
import gc
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from m3bind.core.children import usable_cores
from m3bind.core.launcher import local_rank
from m3bind.errors import ConfigError

log = logging.getLogger(__name__)
CPU = torch.device("cpu")
PRECISIONS = ("auto", "float32", "bfloat16")
HEAP_GROWTH = 2 * 2**30
_released = 0  # bytes of this process after memory was last released
_exact: set[str] = set()  # types of devices on which this process was asked to compute in float32
_NODES = {"/dev/nvidia0": "an NVIDIA GPU", "/dev/kfd": "an AMD GPU"}  # files of the GPUs' kernel drivers


def may_round() -> bool:
    """False if the environment sets M3BIND_BFLOAT16=off."""
    return os.environ.get("M3BIND_BFLOAT16") != "off"


def compute_dtype(device: torch.device = CPU) -> torch.dtype:
    """torch.bfloat16 on devices that multiply matrices in it natively, torch.float32 elsewhere.

    Natively: CPUs with AMX tiles or AVX512-BF16, NVIDIA GPUs since Ampere; elsewhere bfloat16 is emulated, and slower.
    Also torch.float32 on a device for which the last `pick` asked for it.
    """
    exact = not may_round() or device.type in _exact
    return torch.float32 if exact else _native_dtype(device.type, device.index)


@cache
def _native_dtype(kind: str, index: int | None) -> torch.dtype:
    if kind == "cpu":
        tests = [getattr(torch.cpu, name, None) for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported")]
        return torch.bfloat16 if any(test is not None and test() for test in tests) else torch.float32
    if kind == "cuda":
        with torch.cuda.device(index or 0):
            return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    return torch.float32


@dataclass(frozen=True)
class Compute:
    """How a run or a command computes."""

    device: torch.device = CPU
    dtype: torch.dtype = torch.float32  # of matrix products in the towers
    workers: int = 1  # processes that read and preprocess files
    prefetch: int = 2  # batches that each worker prepares ahead of the training step
    compiled: bool = False  # towers pass torch.compile
    trackers: tuple[str, ...] = ("tensorboard",)  # that receive the losses
    profile: bool = False  # write a trace of a few training steps

    def autocast(self, dtype: torch.dtype | None = None) -> AbstractContextManager[Any]:
        """Mixed precision of the towers, by default in `dtype`."""
        dtype = dtype or self.dtype
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=dtype != torch.float32)


def moved(batch: Any, device: torch.device) -> Any:
    """A nested structure with all its tensors on `device`; transfers from pinned memory are asynchronous."""
    return tree_map(lambda x: x.to(device, non_blocking=True) if isinstance(x, Tensor) else x, batch)


def out_of_memory(error: BaseException) -> bool:
    """Whether a device is full; CUDA and ROCm raise `torch.OutOfMemoryError`, MPS and XPU a RuntimeError."""
    return "out of memory" in str(error)


def device_of(module: nn.Module) -> torch.device:
    """The device of a module's parameters and buffers; the CPU if it has none."""
    first = next(chain(module.parameters(), module.buffers()), None)
    return CPU if first is None else first.device


def to_device(value: Tensor, device: torch.device) -> Tensor:
    """A host tensor on `device`; copied to a GPU from pinned memory, so that the host does not wait."""
    if device.type == "cuda":
        return value.pin_memory().to(device, non_blocking=True)
    return value.to(device)


def _set_tf32(allowed: bool) -> None:
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed


@contextlib.contextmanager
def float32_arithmetic(tf32: bool = False) -> Iterator[None]:
    """Products and convolutions of float32 inside: exact, or on GPUs in TF32; the policy before is restored."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    _set_tf32(tf32)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def pick(
    device: str = "auto",
    precision: str = "auto",
    workers: int | str = "auto",
    prefetch: int = 2,
    compiled: bool = False,
    trackers: Sequence[str] = ("tensorboard",),
    profile: bool = False,
    warn: bool = True,
) -> Compute:
    """The device and its arithmetic; sets the TF32 policy if it is a GPU, and warns of an accelerator not used.

    Args:
        device: "auto" (CUDA or ROCm if available, else the CPU) or a name of torch: "cpu", "cuda", "cuda:1", "mps".
            Under a launcher of several processes, "auto" and "cuda" are the GPU of the process's local rank.
        precision: of the towers: "auto" (bfloat16 if native), "float32" (on a GPU without TF32), or "bfloat16".
        workers: processes that read files; "auto": one per usable core.
        prefetch: batches per worker that are prepared ahead.
        compiled: pass towers through torch.compile.
        trackers: that receive the losses: "tensorboard", "wandb", "mlflow".
        profile: write a trace of a few training steps.
        warn: False if the user did not choose: a CPU by the caller's own default, or a device chosen before.

    Raises:
        ConfigError: an unknown or unavailable device, an unknown precision, or workers below 1.
    """
    if precision not in PRECISIONS:
        raise ConfigError(f"compute.precision={precision!r}: use one of {', '.join(PRECISIONS)}")
    count = usable_cores() if workers == "auto" else workers
    if not isinstance(count, int) or count < 1:
        raise ConfigError(f"compute.workers={workers!r}: use auto or a number of processes, 1 or more")
    chosen = _device(device)
    if warn and (reason := unused_accelerator(chosen, device)):
        _warn(f"computing on {chosen.type}: {reason}")
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
        exact = precision == "float32" or not may_round()
        _set_tf32(not exact)
        log.info("%s: float32 products in %s", chosen, "float32" if exact else "TF32")
    (_exact.add if precision == "float32" else _exact.discard)(chosen.type)
    dtype = torch.bfloat16 if precision == "bfloat16" else compute_dtype(chosen)
    return Compute(chosen, dtype, count, prefetch, compiled, tuple(trackers), profile)


@cache
def _warn(text: str) -> None:
    """Log a warning, once in a process."""
    log.warning("%s", text)


def _device(name: str) -> torch.device:
    """The device called `name`, with its index."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"compute.device={name!r} is not a device; use auto, cpu, cuda, cuda:N or mps") from None
    if device.type == "cpu":
        return CPU
    module = getattr(torch, device.type, None)
    available = getattr(module, "is_available", None)
    if available is None or not available():
        reason = _no_cuda() if device.type == "cuda" else f"torch {torch.__version__} reports none on this machine"
        raise ConfigError(f"compute.device={name}: not available: {reason}; use auto or cpu")
    index = device.index if device.index is not None else local_rank()
    count = getattr(module, "device_count", lambda: index + 1)()
    if index >= count:
        raise ConfigError(f"compute.device={device.type}:{index}: this machine has {count} (numbered from 0)")
    return torch.device(device.type, index)


def _no_cuda() -> str:
    """Why torch finds no GPU."""
    if torch.version.cuda is None and torch.version.hip is None:
        return f"torch {torch.__version__} is built for the CPU only; install a build for your GPU from pytorch.org"
    if os.environ.get("CUDA_VISIBLE_DEVICES", "all").split(",")[0].strip() in ("", "-1"):  # CUDA ends the list there
        return "CUDA_VISIBLE_DEVICES hides all GPUs"
    return f"torch {torch.__version__} finds no usable driver; compare nvidia-smi (or rocm-smi) with its CUDA version"


def maybe_compile(compute: Compute, *modules: nn.Module, backend: str | Callable[..., Any] = "inductor") -> None:
    """Let modules run through torch.compile, in place, if `compute.compiled`; to be called after adapters are injected.

    The modules stay what they are: names, state-dict keys and copies do not change. Each is compiled at its first call,
    which takes up to minutes, and once more for inputs of any length when a second shape arrives.
    """
    if compute.compiled:
        for module in modules:
            module.compile(backend=backend)


def unused_accelerator(device: torch.device, asked: str = "auto") -> str | None:
    """The reason why `device` is the CPU although an accelerator is visible; None if nothing is left unused."""
    if device.type != "cpu":
        return None
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name(0)} is not used, since the device was set to {asked!r}"
    if torch.backends.mps.is_available():
        return None if asked == "cpu" else "the Apple GPU is only used if asked for: --device mps"
    seen = [name for node, name in _NODES.items() if Path(node).exists()]
    return f"{seen[0]} is visible but not used: {_no_cuda()}" if seen else None


def memory(device: torch.device) -> tuple[float, float] | None:
    """(peak bytes allocated by tensors, bytes of the device), None for the CPU and devices that do not report it."""
    if device.type != "cuda":
        return None
    return float(torch.cuda.max_memory_allocated(device)), float(torch.cuda.get_device_properties(device).total_memory)


def release_memory() -> None:
    """Return freed memory to the system, which glibc otherwise retains."""
    global _released
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    _released = own_memory()


def bound_heap(growth: int = HEAP_GROWTH) -> None:
    """`release_memory` if this process is `growth` bytes larger than after the last one; Linux only.

    For loops that allocate and free activations between small results that stay: glibc then retains most of what each
    pass frees (a ResNet in 10 parts: from 1.5 to 4 GB), and releasing at every pass costs a tenth of the time.
    """
    global _released
    now = own_memory()
    _released = min(_released or now, now)
    if now >= _released + growth:
        release_memory()


def own_memory() -> int:
    """Bytes of this process in memory that are no mapped files; 0 where the system does not say (not Linux)."""
    try:
        fields = Path("/proc/self/statm").read_text(encoding="ascii").split()
    except OSError:
        return 0
    return (int(fields[1]) - int(fields[2])) * os.sysconf("SC_PAGE_SIZE")
