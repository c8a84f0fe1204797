"""The dtype in which this CPU multiplies matrices fastest.

* `compute_dtype`: bfloat16 if the instruction set has it, else float32. * `may_round`: whether bfloat16 is allowed.

M3BIND_BFLOAT16=off makes every automatic choice float32, on any processor and GPU, so that machines can be compared.
The dtype is detected, not timed: timings vary on a busy machine, and a resumed run must repeat the same arithmetic.
"""

import os
from functools import cache

import torch


def may_round() -> bool:
    """False if the environment sets M3BIND_BFLOAT16=off."""
    return os.environ.get("M3BIND_BFLOAT16") != "off"


@cache
def compute_dtype() -> torch.dtype:
    """torch.bfloat16 on CPUs with AMX tiles or AVX512-BF16, torch.float32 elsewhere (where bfloat16 is emulated)."""
    if not may_round():
        return torch.float32
    for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        supported = getattr(torch.cpu, name, None)
        if supported is not None and supported():
            return torch.bfloat16
    return torch.float32
