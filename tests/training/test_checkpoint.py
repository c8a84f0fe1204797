"""The optimiser's state comes back where the optimiser needs it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from m3bind.training.checkpoint import load_state, pack_optimizer, save_state, unpack_optimizer
from pretend.device import DEVICE, pretend_device


@pytest.fixture(params=["cpu", DEVICE])
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    with pretend_device():
        yield request.param


def stepped(module: nn.Module, optimizer: torch.optim.Optimizer, device: str, steps: int) -> None:
    for step in range(steps):
        optimizer.zero_grad()
        module(torch.full((2, 3), 1.0 + step, device=device)).square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize("fused", [False, True])
def test_a_resumed_optimiser_continues_on_its_device(tmp_path: Path, device: str, fused: bool) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).to(device)
    parameters = dict(module.named_parameters())
    names = {id(parameter): name for name, parameter in parameters.items()}
    groups = [{"params": list(part.parameters()), "lr": 0.1} for part in (module[0], module[2])]
    first, second = (torch.optim.AdamW(groups, fused=fused) for _ in range(2))
    stepped(module, first, device, 2)
    save_state(tmp_path / "state", pack_optimizer(first, names), {"step": 2})
    weights = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    stepped(module, first, device, 2)
    expected = [parameter.detach().cpu().clone() for parameter in parameters.values()]
    module.load_state_dict(weights)
    unpack_optimizer(second, parameters, load_state(tmp_path / "state")[0])
    for parameter in parameters.values():
        places = {key: tensor.device.type for key, tensor in second.state[parameter].items()}
        there = torch.device(device).type
        assert places == {"exp_avg": there, "exp_avg_sq": there, "step": there if fused else "cpu"}
    stepped(module, second, device, 2)
    for parameter, value in zip(parameters.values(), expected, strict=True):
        assert torch.equal(parameter.detach().cpu(), value)
