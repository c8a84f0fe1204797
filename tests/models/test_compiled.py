"""The option `compute.compile`: compiled towers compute the same, with LoRA, recomputed activations, halved weights."""

import copy
from typing import Any

import pytest
import torch
import torch._dynamo
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from m3bind.core.device import Compute, maybe_compile
from m3bind.models.frozen import halve
from m3bind.models.layers.bert import BertTrunk
from m3bind.models.layers.bert_padded import Padded
from models.test_bert import NO_DROPOUT, batch, gradients, trunk, with_lora
from models.test_frozen import Images

TRAINED = ("lora", "halved_lora", "trainable")


@pytest.fixture(params=["frozen", "images", *(pytest.param(kind, marks=pytest.mark.whole) for kind in TRAINED)])
def tower(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, tuple[Tensor, ...], bool]:
    """A tower on the CPU that computes as on a GPU, its inputs, and whether it runs in half precision."""
    torch._dynamo.reset()
    if request.param == "images":
        return Images().eval(), (torch.rand(3, 3, 16, 16),), False
    monkeypatch.setattr(BertTrunk, "_layouts", lambda self, real: [(None, Padded(real))])
    model = trunk(**NO_DROPOUT)
    if "lora" in request.param:
        with_lora(model)
    if "halved" in request.param:
        halve(model)
    if "lora" not in request.param:
        model.requires_grad_(request.param != "frozen")
    return model, batch(), "halved" in request.param


def test_a_compiled_tower_is_the_same_module(tower: tuple[Any, tuple[Tensor, ...], bool]) -> None:
    model, inputs, half = tower
    graphs: list[int] = []

    def backend(graph: Any, _: object) -> Any:
        graphs.append(1)
        return graph.forward

    maybe_compile(Compute(compiled=False), model, backend=backend)
    keys, trains = list(model.state_dict()), any(p.requires_grad for p in model.parameters())
    with torch.autocast("cpu", torch.bfloat16, half):
        plain = model(*inputs).float()
        wanted = gradients(model, plain) if trains else {}
        assert not graphs
        maybe_compile(Compute(compiled=True), model, backend=backend)
        compiled = checkpoint(model, *inputs, use_reentrant=False).float()
        assert torch.equal(compiled, plain) and len(graphs) == 1  # one graph: nothing breaks it
        for name, gradient in (gradients(model, compiled) if trains else {}).items():
            assert torch.equal(gradient, wanted[name]), name
        for rows in (2, 1):
            model(*(tensor[:rows] for tensor in inputs))
    assert list(model.state_dict()) == keys
    assert torch.equal(copy.deepcopy(model).state_dict()[keys[0]], model.state_dict()[keys[0]])
