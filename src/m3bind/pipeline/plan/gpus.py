"""Published rates of GPUs, for estimates; `GPUS`: by name.

Rates are dense (without structured sparsity) bfloat16 products with float32 accumulation, in TFLOP/s; V100: float16.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """One device."""

    tflops: float  # TFLOP/s
    memory: float  # GB
    bandwidth: float  # of its memory, GB/s


GPUS = {  # from the makers' data sheets; where they state the rate with sparsity, half of it
    "v100-32gb": Gpu(125.0, 32, 900),  # NVIDIA V100 (SXM2) data sheet
    "rtx3090": Gpu(71.0, 24, 936),  # NVIDIA GA102 white paper
    "rtx4090": Gpu(165.2, 24, 1008),  # NVIDIA Ada white paper
    "rtx5090": Gpu(209.5, 32, 1792),  # NVIDIA RTX Blackwell white paper: 419 with float16 accumulation
    "a10g": Gpu(70.0, 24, 600),  # NVIDIA A10G data sheet
    "l4": Gpu(121.0, 24, 300),  # NVIDIA L4 data sheet
    "l40s": Gpu(362.0, 48, 864),  # NVIDIA L40S data sheet
    "a100-40gb": Gpu(312.0, 40, 1555),  # NVIDIA A100 data sheet
    "a100-80gb": Gpu(312.0, 80, 2039),  # NVIDIA A100 (SXM) data sheet
    "h100-80gb": Gpu(989.0, 80, 3350),  # NVIDIA H100 (SXM) data sheet
    "h200": Gpu(989.0, 141, 4800),  # NVIDIA H200 (SXM) data sheet
    "b200": Gpu(2250.0, 180, 8000),  # NVIDIA DGX B200 data sheet, an eighth
    "mi300x": Gpu(1307.0, 192, 5300),  # AMD Instinct MI300X data sheet
}
