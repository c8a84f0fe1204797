"""Which number format this CPU multiplies matrices fastest in.

* `compute_dtype`: bfloat16 where the instruction set has it, else float32.

Detected from the instruction set, not timed: a timing on a busy machine could differ between two starts of the same
run, and a resumed run must compute what the first one did.
"""

from functools import cache

import torch


@cache
def compute_dtype() -> torch.dtype:
    """torch.bfloat16 on CPUs with AMX tiles or AVX512-BF16, torch.float32 elsewhere (where bfloat16 is emulated)."""
    for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        supported = getattr(torch.cpu, name, None)
        if supported is not None and supported():
            return torch.bfloat16
    return torch.float32
