"""Values and gradients of two losses on the same inputs."""

import torch
from torch import Tensor


def unit_rows(rows: int, dim: int, seed: int, count: int | None = None):
    """Random float64 unit rows that want a gradient: one (rows, dim) tensor, or a list of `count` of them."""
    generator = torch.Generator().manual_seed(seed)
    tensors = [
        torch.nn.functional.normalize(torch.randn(rows, dim, dtype=torch.float64, generator=generator), dim=1)
        for _ in range(count or 1)
    ]
    for tensor in tensors:
        tensor.requires_grad_()
    return tensors if count else tensors[0]


def assert_same(ours, oracle, inputs: list[Tensor], tolerance: float = 1e-6) -> None:
    """Both functions (no arguments, over `inputs`) give one value and one gradient per input, to `tolerance`."""
    value, expected = ours(), oracle()
    assert value.dtype == torch.float64
    torch.testing.assert_close(value, expected, rtol=tolerance, atol=tolerance)
    got = torch.autograd.grad(value, inputs, allow_unused=True, materialize_grads=True)
    wanted = torch.autograd.grad(expected, inputs, allow_unused=True, materialize_grads=True)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)
