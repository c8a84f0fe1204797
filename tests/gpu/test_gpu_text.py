"""BERT on the device: padded texts equal the CPU's packed ones, whatever the padding, mask, precision and kernel."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import BertConfig

from m3bind.align.lora import lora_parameters
from m3bind.models.layers.bert import POOLINGS, BertTrunk
from m3bind.models.weights.reference import generated
from models.generated_models import filled

LENGTHS = (1, 2, 7, 8, 9, 16, 31, 64, 65, 120)
CPU = torch.device("cpu")


def trunk(pooling: str, dropout: float = 0.0) -> BertTrunk:
    """Three layers of BERT-base's width, filled, in eval mode."""
    probabilities = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    config = BertConfig(vocab_size=500, num_hidden_layers=3, max_position_embeddings=160, **probabilities)
    model = BertTrunk(config, pooling)  # type: ignore[arg-type]
    filled(model)
    return model.eval().requires_grad_(False)


def texts(extra: int = 0) -> tuple[Tensor, Tensor]:
    """Tokens and mask (n, L): one text of each length, `extra` columns of padding after the longest."""
    columns = torch.arange(max(LENGTHS) + extra)
    mask = (columns < torch.tensor(LENGTHS)[:, None]).long()
    ids = torch.randint(5, 500, (len(LENGTHS), max(LENGTHS)), generator=torch.Generator().manual_seed(0))
    return F.pad(ids, (0, extra)) * mask, mask


def adapted(model: BertTrunk) -> BertTrunk:
    from peft import LoraConfig, inject_adapter_in_model

    inject_adapter_in_model(LoraConfig(r=8, lora_alpha=8, target_modules=["query", "value"]), model)
    with torch.no_grad():
        for name, parameter in lora_parameters(model).items():
            parameter.copy_(0.2 * generated(name, parameter))
    return model.eval()


def run(model: BertTrunk, device: torch.device, extra: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
    """Pooled states on the host, and the adapters' gradients."""
    ids, mask = (value.to(device) for value in texts(extra))
    model.to(device)
    out = model(ids, mask)
    parameters = lora_parameters(model)
    if parameters:
        (out.float() * generated("direction", torch.zeros(out.shape)).to(device)).sum().backward()
    gradients = {name: p.grad.cpu() for name, p in parameters.items() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return out.detach().float().cpu(), gradients


@pytest.mark.parametrize("pooling", POOLINGS)
def test_every_pooling_with_adapters(device: torch.device, pooling: str) -> None:
    model = adapted(trunk(pooling))
    (wanted, gradients), (found, others) = run(model, CPU), run(model, device)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    assert gradients.keys() == others.keys() and gradients
    for name, value in gradients.items():
        assert float((others[name] - value).norm()) <= 1e-3 * float(value.norm()), name


@pytest.mark.parametrize("pooling", [pooling for pooling in POOLINGS if pooling != "padded"])
def test_padding_does_not_matter(device: torch.device, pooling: str) -> None:
    """Lengths that are no multiple of a kernel's tile, and many columns of padding."""
    model = trunk(pooling)
    wanted = run(model, CPU)[0]
    for extra in (0, 1, 8, 33):
        torch.testing.assert_close(run(model, device, extra)[0], wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_bfloat16_is_close(device: torch.device, pooling: str) -> None:
    model = adapted(trunk(pooling))
    wanted, gradients = run(model, CPU)
    with torch.autocast(device.type, torch.bfloat16):
        found, others = run(model, device)
    assert float(F.cosine_similarity(found, wanted).min()) >= 0.999
    flat, other = (torch.cat([value.flatten() for value in all_.values()]) for all_ in (gradients, others))
    assert float(F.cosine_similarity(flat, other, dim=0)) >= 0.99


def test_dropout_and_recomputation(device: torch.device) -> None:
    """A step in train mode, recomputed in the backward pass, has the gradients of one that stores everything."""
    from torch.utils.checkpoint import checkpoint

    model = adapted(trunk("cls", dropout=0.1)).train().to(device)
    ids, mask = (value.to(device) for value in texts())
    found = []
    for recompute in (False, True):
        torch.manual_seed(3)
        out = checkpoint(model, ids, mask, use_reentrant=False) if recompute else model(ids, mask)
        (out * generated("direction", torch.zeros(out.shape)).to(device)).sum().backward()
        found.append({name: p.grad.cpu().clone() for name, p in lora_parameters(model).items() if p.grad is not None})
        model.zero_grad(set_to_none=True)
    first, second = found
    for name, value in first.items():
        assert float((second[name] - value).norm()) <= 1e-4 * float(value.norm()), name


def test_a_compiled_trunk(device: torch.device) -> None:
    """torch.compile with shapes that vary gives the same."""
    if device.type not in ("cpu", "cuda"):
        pytest.skip(f"torch.compile has no code for {device.type}")
    model = trunk("cls")
    wanted = [run(model, CPU, extra)[0] for extra in (0, 9)]
    compiled = torch.compile(model.to(device), dynamic=True)
    with torch.inference_mode():
        for extra, value in zip((0, 9), wanted):
            ids, mask = (part.to(device) for part in texts(extra))
            torch.testing.assert_close(compiled(ids, mask).cpu(), value, atol=1e-4, rtol=1e-4)
