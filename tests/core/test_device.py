"""Which number format is chosen, from the instruction set and the environment."""

import pytest
import torch

from m3bind.core import device


@pytest.fixture(autouse=True)
def _fresh():
    device.compute_dtype.cache_clear()
    yield
    device.compute_dtype.cache_clear()


@pytest.mark.parametrize(
    ("amx", "avx512", "expected"),
    [(True, False, torch.bfloat16), (False, True, torch.bfloat16), (False, False, torch.float32)],
)
def test_bfloat16_only_where_the_processor_multiplies_it(monkeypatch, amx, avx512, expected):
    monkeypatch.delenv("M3BIND_BFLOAT16", raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512, raising=False)
    assert device.compute_dtype() == expected


def test_the_environment_makes_every_choice_float32(monkeypatch):
    monkeypatch.setenv("M3BIND_BFLOAT16", "off")
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True, raising=False)
    assert device.compute_dtype() == torch.float32 and not device.may_round()
