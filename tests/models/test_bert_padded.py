"""The padded way of BertTrunk, which a GPU takes: equal to the packed way, few operations, no wait for the host."""

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import BertConfig

from m3bind.errors import ConfigError
from m3bind.models.layers.bert import POOLINGS, BertTrunk
from m3bind.models.layers.bert_padded import Padded
from models.test_bert import NO_DROPOUT, batch, gradients, trunk, with_lora
from pretend.device import DEVICE, Log, pretend_device

WAYS = ["trainable", "frozen", "lora", "lora_all"]
STATES: list[dict[str, Any]] = [{}, {"states": (1, 2, 3)}, {"states": (0, -2), "combine": "sum"}]


def made(pooling: str, way: str, **options: Any) -> BertTrunk:
    model = trunk(pooling, **NO_DROPOUT, **options)
    if way.startswith("lora"):
        with_lora(model, targets=("query", "key", "value") if way == "lora_all" else ("query", "value"))
    return model.requires_grad_(False) if way == "frozen" else model


def padded(model: BertTrunk, ids: Tensor, mask: Tensor) -> Tensor:
    return model._pooled(ids, Padded(mask.bool()))


@pytest.mark.parametrize("states", STATES, ids=["last", "several", "sum"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("pooling", [name for name in POOLINGS if name != "padded"])
def test_equals_the_packed_way(pooling: str, way: str, states: dict[str, Any]) -> None:
    model, (ids, mask) = made(pooling, way, **states).double().train(), batch()
    mask[0, 1:3] = 0  # a hole
    packed, other = model(ids, mask), padded(model, ids, mask)
    torch.testing.assert_close(other, packed, atol=1e-12, rtol=0)
    if way != "frozen":
        a, b = gradients(model, other), gradients(model, packed)
        assert a.keys() == b.keys() and a
        for name in a:
            torch.testing.assert_close(a[name], b[name], atol=1e-11, rtol=1e-9, msg=name)
    model.float().eval()
    torch.testing.assert_close(padded(model, ids, mask), model(ids, mask), atol=2e-6, rtol=1e-6)


@pytest.mark.parametrize("way", ["lora", "frozen"])
def test_half_precision_stays_near(way: str) -> None:
    model, (ids, mask) = made("mean", way), batch()
    exact = padded(model, ids, mask)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = padded(model, ids, mask)
    assert rounded.dtype == torch.bfloat16
    assert torch.cosine_similarity(rounded.float(), exact).min() >= 0.999


def test_hidden_states_and_adapter_dropout() -> None:
    model, (ids, mask) = made("mean", "lora"), batch()
    layout = Padded(mask.bool())
    torch.testing.assert_close(layout.spread(model._tokens(ids, layout)), model.hidden(ids, mask), atol=2e-6, rtol=0)
    dropped = with_lora(trunk(**NO_DROPOUT), dropout=0.3).train()
    assert not torch.equal(padded(dropped, ids, mask), padded(dropped, ids, mask))


def test_a_text_without_tokens_is_nan_and_the_others_are_not() -> None:
    for pooling in POOLINGS:
        model, (ids, mask) = made(pooling, "frozen"), batch(4)
        mask[1] = 0
        finite = padded(model, ids, mask).isfinite().all(1)
        assert finite.tolist() == [True, False, True, True], pooling
    with pytest.raises(ConfigError, match="41 tokens for a BERT of 40"):
        trunk("padded")(torch.ones(1, 41, dtype=torch.long), torch.tensor([[1, 1] + [0] * 39]))


VIEWS = (
    "t",
    "view",
    "permute",
    "unbind",
    "transpose",
    "expand",
    "slice",
    "select",
    "unsqueeze",
    "detach",
    "split",
    "alias",
)


@contextlib.contextmanager
def attention_as_one(log: Log) -> Iterator[None]:
    """Count attention as the one operation that it is on a GPU; the pretend device computes it in steps."""
    attention = F.scaled_dot_product_attention

    def one(*args: Any, **options: Any) -> Tensor:
        before = log.operations.copy()
        out = attention(*args, **options)
        log.operations.clear()
        log.operations.update(before + Counter(attention=1))
        return out

    with patch.object(F, "scaled_dot_product_attention", one):
        yield


@pytest.mark.parametrize(
    ("way", "most", "kernels"), [("frozen", 300, 170), ("lora", 400, 230), ("trainable", 400, 190)]
)
def test_few_operations_and_no_wait_for_the_host(way: str, most: int, kernels: int) -> None:
    torch.manual_seed(0)
    small = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 100}
    model = BertTrunk(BertConfig(num_hidden_layers=12, **small, **NO_DROPOUT)).eval()
    if way == "lora":
        with_lora(model)
    if way == "frozen":
        model.requires_grad_(False)
    mask = (torch.arange(120) < torch.linspace(10, 120, 136)[:, None]).long()
    ids = torch.randint(1, 100, mask.shape) * mask
    with torch.no_grad():
        packed = model(ids, mask)
    with pretend_device() as log:
        model.to(DEVICE)
        there = ids.to(DEVICE), mask.to(DEVICE)
        with torch.no_grad():
            model(*there)  # makes the copies of frozen weights
        log.clear()
        with attention_as_one(log):
            out = model(*there)
        names = Counter(name.split(".")[1] if "." in name else name for name in log.operations.elements())
        launched = sum(count for name, count in names.items() if name not in VIEWS)
        assert names.total() <= most and launched <= kernels
        if way != "frozen":
            out.square().sum().backward()
        assert not log.syncs and not log.uploads
        torch.testing.assert_close(out.detach().cpu(), packed, atol=2e-6, rtol=1e-6)
