"""The padded way of BertTrunk, which a GPU takes: equal to the packed way, few operations, no wait for the host."""

from typing import Any

import pytest
import torch
from torch import Tensor

from m3bind.errors import ConfigError
from m3bind.models.layers.bert import POOLINGS, BertTrunk
from m3bind.models.layers.bert_padded import Padded
from models.test_bert import NO_DROPOUT, batch, gradients, trunk, with_lora

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
