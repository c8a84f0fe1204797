"""What a GPU gives: rates, embedding passes, texts, training steps of every stage, and how long a step waits for data.

    python benchmarks/gpu.py --out runs/gpu/gpu.json            at most --seconds (280) on one GPU, no network
    python benchmarks/gpu.py --tiny --device cpu                every section once, as a test of the script

Weights and files are generated. Each section has its share of the time and is guarded: one that fails is reported in
the JSON and by the exit code, and the others are measured. `tools/make_speed.py` writes docs/speed.md from the JSON.
"""

import argparse
import json
import logging
import os
import platform
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import accelerate
import peft
import torch
import transformers

import _gpu_data
import _gpu_stages
import _gpu_towers
from _gpu_measure import Bench, Row
from m3bind.core.device import pick

Section = Callable[[Bench], list[Row]]


def rates(bench: Bench) -> list[Row]:
    """The device's own rate of square matrix products of random numbers."""
    size = 256 if bench.tiny else 8192
    names = {"bfloat16": "bfloat16"} | ({"float32": "float32 (TF32)"} if bench.device.type == "cuda" else {})
    rows = []
    for dtype, name in names.items():
        bench.rates[dtype] = bench.matrix_rate(dtype, size)
        rows.append({"form": name, "tflops": bench.rates[dtype] / 1e12})
    return rows


# section: (function, seconds of measuring one of its forms)
SECTIONS: Mapping[str, tuple[Section, float]] = {
    "rates": (rates, 1.0),
    "clip_step": (_gpu_stages.clip_step, 4.0),
    "paper_step": (_gpu_stages.paper_step, 6.0),
    "pretrain_step": (_gpu_stages.pretrain_step, 3.0),
    "distill_step": (_gpu_stages.distill_step, 3.0),
    "data": (_gpu_data.waiting, 6.0),
    "image_embedding": (_gpu_towers.image_embedding, 1.0),
    "text_embedding": (_gpu_towers.text_embedding, 1.0),
    "text_layouts": (_gpu_towers.text_layouts, 1.0),
    "attention_kernels": (_gpu_towers.attention_kernels, 1.0),
    "recomputation": (_gpu_towers.recomputation, 1.0),
    "optimisers": (_gpu_towers.optimisers, 0.5),
}


def conditions(device: torch.device) -> dict[str, Any]:
    """Device, libraries and date."""
    found: dict[str, Any] = {"date": date.today().isoformat(), "python": platform.python_version()}
    found |= {module.__name__: module.__version__ for module in (torch, transformers, peft, accelerate)}
    found["device"], found["cores"] = str(device), len(os.sched_getaffinity(0))
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found["gpu"] = properties.name
        found["gpu_gb"] = properties.total_memory / 1e9
        found["cuda"], found["cudnn"] = torch.version.cuda, torch.backends.cudnn.version()
    return found


def measure(bench: Bench, names: list[str], limit: float, report: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """All sections in turn while time is left; `report` gets the result after each."""
    result: dict[str, Any] = {"conditions": conditions(bench.device), "tiny": bench.tiny, "sections": {}, "failed": []}
    start = time.monotonic()
    scale = 0.0 if bench.tiny else 1.0
    for name in names:
        run, seconds = SECTIONS[name]
        began = time.monotonic()
        if began - start > limit:
            result["failed"].append(f"{name}: no time left")
            continue
        bench.seconds, bench.failed = seconds * scale, []
        try:
            rows = run(bench)
        except Exception as error:
            traceback.print_exc()
            rows, bench.failed = [], [f"{type(error).__name__}: {str(error)[:300]}"]
        bench.release()
        result["failed"] += [f"{name}: {failure}" for failure in bench.failed]
        took = round(time.monotonic() - began, 1)
        result["sections"][name] = {"about": run.__doc__, "rows": rows, "seconds": took}
        print(f"\n{name} ({took} s): {(run.__doc__ or '').splitlines()[0]}")
        for row in rows:
            print("  " + ", ".join(f"{key} {_short(value)}" for key, value in row.items()), flush=True)
        report(result)
    return result


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small networks, each form a few times")
    parser.add_argument("--seconds", type=float, default=280, help="no section starts later than this")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu/gpu.json"))
    parser.add_argument("--sections", nargs="*", choices=list(SECTIONS), default=list(SECTIONS))
    options = parser.parse_args()
    logging.getLogger("torch._inductor").setLevel(logging.ERROR)
    compute = pick(options.device)
    options.out.parent.mkdir(parents=True, exist_ok=True)

    def report(result: dict[str, Any]) -> None:
        options.out.write_text(json.dumps(result, indent=1))

    result = measure(Bench(compute.device, 0.0, options.tiny), options.sections, options.seconds, report)
    report(result)
    for failure in result["failed"]:
        print(f"FAILED {failure}", file=sys.stderr)
    return 1 if result["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
