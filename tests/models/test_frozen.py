"""Frozen towers: chosen precision, storage in bfloat16 and back, batches that fit the memory."""

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from m3bind.models import frozen
from m3bind.models.frozen import FrozenPass, agreement, halve
from models.test_bert import batch, gradients, trunk, with_lora
from pretend.device import DEVICE, pretend_device

CPU = torch.device("cpu")


class Images(nn.Module):
    """Convolution, class token, attention and LayerNorm, as in a ViT."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patches, self.token = nn.Conv2d(3, 16, 4, 4), nn.Parameter(torch.randn(1, 1, 16))
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True, norm_first=True)
        self.head = nn.Linear(16, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        return self.head(self.layer(torch.cat([self.token.expand(len(x), 1, 16), x], 1))[:, 0])


def rounded(model: nn.Module, *inputs: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return model(*inputs).float()


@pytest.mark.parametrize("kind", ["bert", "lora", "plain_lora", "images", "images_lora"])
def test_halved_weights_compute_what_autocast_computes_and_come_back(kind: str) -> None:
    inputs: tuple[Tensor, ...] = (torch.rand(3, 3, 16, 16),)
    model: Any = Images().eval().requires_grad_(False)
    if kind == "images_lora":  # an adapter around a whole attention
        settings = LoraConfig(r=2, target_modules=["self_attn"], init_lora_weights=False)
        inject_adapter_in_model(settings, model)
        model.layer.activation_relu_or_gelu = 0  # the fast path bypasses adapters
        model.eval()
    if "images" not in kind:
        model, inputs = with_lora(trunk()) if "lora" in kind else trunk().requires_grad_(False), batch()
    if kind == "plain_lora":  # each module called, as peft does
        model.bert.encoder.layer[1].attention.self.query.register_forward_hook(lambda *_: None)
    before = copy.deepcopy(model.state_dict())
    exact, expected = model(*inputs), rounded(model, *inputs)
    wanted = gradients(model, expected) if "lora" in kind else {}
    restore = halve(model)
    kinds = {name: p.dtype for name, p in model.named_parameters()}
    assert torch.bfloat16 in kinds.values()
    assert all(d == torch.float32 for name, d in kinds.items() if "lora_" in name or "orm" in name or "token" in name)
    got = rounded(model, *inputs)
    assert torch.equal(got, expected) and agreement(exact, got).smallest >= 0.999
    for name, gradient in (gradients(model, got) if wanted else {}).items():
        assert torch.equal(gradient, wanted[name]), name
    restore()
    off = 1e-6 if kind == "images_lora" else 0  # the adapter itself adds to the weights and subtracts again
    torch.testing.assert_close(model.state_dict(), before, atol=off, rtol=0)
    torch.testing.assert_close(model(*inputs), exact, atol=10 * off, rtol=0)


def test_on_a_cpu_nothing_is_rounded() -> None:
    model = Images().eval()
    x = torch.rand(4, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(FrozenPass(model, CPU)(x), model(x))


@pytest.mark.parametrize("close", [True, False])
def test_a_device_rounds_what_stays_close(
    close: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(frozen, "compute_dtype", lambda device: torch.bfloat16)

    def encode(x: Tensor) -> Tensor:
        half = torch.is_autocast_enabled("pretend")
        return x.flip(1) if half and not close else x * 1.001 if half else x

    x = torch.rand(5, 8)
    with pretend_device():
        there = torch.device(DEVICE)
        rows = FrozenPass(encode, there, name="the tower of grey")(x)
        assert ("the tower of grey computes in float32: in torch.bfloat16" in caplog.text) == (not close)
        assert rows.device == CPU and torch.equal(rows, x * 1.001 if close else x)
        assert torch.equal(FrozenPass(encode, there, torch.float32)(x), x)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("MPS backend out of memory (MPS allocated: 1.00 GB, max allowed: 2.00 GB)"),
        RuntimeError("XPU out of memory. Tried to allocate 2.00 GiB."),
    ],
)
def test_a_batch_that_does_not_fit_is_computed_in_parts(error: RuntimeError) -> None:
    sizes: list[int] = []

    def encode(tokens: dict[str, Tensor]) -> Tensor:
        sizes.append(len(tokens["ids"]))
        if tokens["ids"].numel() > 30:
            raise error
        return tokens["ids"].float() * 2

    run = FrozenPass(encode, CPU)
    ids = torch.arange(80).view(20, 4)
    assert torch.equal(run({"ids": ids}), ids * 2.0) and sizes == [20, 10, 5, 5, 5, 5]
    sizes.clear()
    wide = torch.arange(64).view(4, 16)  # the limit is remembered as elements
    assert torch.equal(run({"ids": wide}), wide * 2.0) and sizes == [1, 1, 1, 1]
    with pytest.raises(RuntimeError, match="out of memory"):
        run({"ids": torch.zeros(2, 40)})
    with pytest.raises(RuntimeError, match="shapes"):
        FrozenPass(lambda x: (_ for _ in ()).throw(RuntimeError("shapes differ")), CPU)(ids)


def test_what_is_moved_to_the_device_is_loaded_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frozen, "compute_dtype", lambda device: torch.bfloat16)
    stored, loaded = torch.randint(0, 255, (6, 4), dtype=torch.uint8), []

    def load(at: Tensor) -> dict[str, Tensor]:
        loaded.append(at.tolist())
        return {"code": stored[at], "table": torch.linspace(0, 1, 256)}  # a table has other rows than the batch

    def encode(packed: dict[str, Tensor]) -> Tensor:
        if len(packed["code"]) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return packed["table"][packed["code"].int()]

    expected = torch.linspace(0, 1, 256)[stored[[5, 0, 1, 2]].int()]
    host = FrozenPass(encode, CPU, load=load)
    assert torch.equal(host(torch.tensor([5, 0, 1, 2])), expected) and loaded == [[5, 0, 1, 2], [5, 0], [1, 2]]
    assert (host.kind, host.times) == ("", 1)
    with pretend_device():
        there = FrozenPass(encode, torch.device(DEVICE), load=load)
        assert torch.equal(there(torch.tensor([5, 0, 1, 2])), expected)
        assert there.kind == "/bfloat16" and there.times > 1
