"""BertTrunk: equal to transformers' own network, independent of padding and other rows, LoRA gradients as in peft."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from transformers import BertConfig

from m3bind.align.lora import merge
from m3bind.errors import ConfigError
from m3bind.models.layers.bert import BertTrunk, distinct, micro_batches
from m3bind.models.layers.bert_layer import Casts, _adapted, _project

SIZE = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 128}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def trunk(
    pooling: str = "mean", budget: int = 60, states: Any = (-1,), combine: Any = "mean", **config: Any
) -> BertTrunk:
    torch.manual_seed(0)
    bert = BertConfig(vocab_size=100, max_position_embeddings=40, **SIZE, **config)
    return BertTrunk(bert, pooling, budget, states, combine).eval()


def with_lora(model: BertTrunk, dropout: float = 0.0, targets: tuple[str, ...] = ("query", "value")) -> BertTrunk:
    model.requires_grad_(False)
    inject_adapter_in_model(LoraConfig(r=4, lora_alpha=8, lora_dropout=dropout, target_modules=list(targets)), model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.2)
    return model.eval()  # peft's dropout starts in train mode


def batch(n: int = 19, longest: int = 30, width: int = 33) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(1, longest, (n,), generator=generator)
    mask = (torch.arange(width) < lengths[:, None]).long()
    return torch.randint(1, 100, (n, width), generator=generator) * mask, mask


def reference(model: BertTrunk, ids: Tensor, mask: Tensor) -> Tensor:
    hidden = model.bert(input_ids=ids, attention_mask=mask).last_hidden_state
    if model.pooling == "cls":
        return hidden[:, 0]
    return (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


def gradients(model: BertTrunk, out: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("way", ["trainable", "frozen", "lora", "lora_all", "no_grad"])
def test_equals_transformers(pooling: str, way: str) -> None:
    model, (ids, mask) = trunk(pooling), batch()
    if way == "frozen":
        model.requires_grad_(False)
    if way.startswith("lora"):
        with_lora(model, targets=("query", "key", "value") if way == "lora_all" else ("query", "value"))
    with torch.set_grad_enabled(way != "no_grad"):
        ours, theirs = model(ids, mask), reference(model, ids, mask)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    if way == "trainable" or way.startswith("lora"):
        a, b = gradients(model, ours), gradients(model, theirs)
        assert a.keys() == b.keys() and len(a) == len([p for p in model.parameters() if p.requires_grad])
        for name in a:
            torch.testing.assert_close(a[name], b[name], atol=2e-4, rtol=1e-4, msg=name)
    else:
        assert not ours.requires_grad


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_gradients_in_float64_are_exact(pooling: str) -> None:
    model, (ids, mask) = with_lora(trunk(pooling)).double(), batch(6)
    a, b = gradients(model, model(ids, mask)), gradients(model, reference(model, ids, mask))
    assert len(a) == 2 * 2 * 3
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=1e-11, rtol=1e-9, msg=name)


@pytest.mark.parametrize("way", ["trainable", "lora"])
def test_a_text_depends_neither_on_padding_nor_on_neighbours(way: str) -> None:
    model, (ids, mask) = trunk(), batch()
    if way == "lora":
        with_lora(model)
    with torch.no_grad():
        together = model(ids, mask)
        wider = model(torch.nn.functional.pad(ids, (0, 100), value=7), torch.nn.functional.pad(mask, (0, 100)))
        alone = torch.cat([model(ids[i : i + 1, : mask[i].sum()], mask[i : i + 1, : mask[i].sum()]) for i in range(19)])
    assert torch.equal(together, wider)
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_masks_with_holes_and_other_state() -> None:
    model, (ids, mask) = trunk(), batch()
    mask[0, 1:3] = 0
    mask[1] = torch.arange(33) >= 20
    torch.testing.assert_close(model(ids, mask), reference(model, ids, mask), atol=1e-5, rtol=0)
    assert all(key.startswith("bert.") for key in model.state_dict())
    assert copy.deepcopy(model)(ids, mask).equal(model(ids, mask))


def test_unequal_activation_and_hooks_are_respected() -> None:
    model, (ids, mask) = with_lora(trunk(hidden_act="relu")), batch(5)
    torch.testing.assert_close(model(ids, mask), reference(model, ids, mask), atol=1e-5, rtol=0)
    seen: list[int] = []
    model.bert.encoder.layer[1].attention.self.query.register_forward_hook(lambda *_: seen.append(1))
    model(ids, mask)
    assert seen


def test_merged_and_disabled_adapters_are_respected() -> None:
    model, (ids, mask) = with_lora(trunk()), batch(5)
    adapted = model(ids, mask)
    layers = [module for module in model.modules() if hasattr(module, "lora_A")]
    for layer in layers:
        layer.enable_adapters(False)
    plain = model(ids, mask)
    torch.testing.assert_close(plain, trunk()(ids, mask), atol=1e-5, rtol=0)
    for layer in layers:
        layer.enable_adapters(True)
        layer.merge()
    torch.testing.assert_close(model(ids, mask), adapted, atol=1e-5, rtol=0)
    assert (adapted - plain).abs().max() > 1e-3


def test_adapter_dropout_is_unbiased() -> None:
    model = with_lora(trunk(), dropout=0.3)
    layer, x, casts = model.bert.encoder.layer[0], torch.randn(5, 64), Casts()
    with torch.no_grad():
        expected = torch.cat(_project(_adapted(layer), x, casts, False), 1)
        layer.train()
        draws = torch.stack([torch.cat(_project(_adapted(layer), x, casts, False), 1) for _ in range(1000)])
    query, key, value = ((draws.mean(0) - expected).abs() / (draws.std(0) / 1000**0.5 + 1e-6)).chunk(3, 1)
    assert draws[..., :64].std(0).min() > 1e-3 and key.max() < 1  # the key has no adapter, so no noise
    for z in (query, value):
        assert z.mean() < 1.2 and z.max() < 6  # |z| of a standard normal: mean 0.8


def test_gradient_through_adapter_dropout() -> None:
    ids, mask = batch(4)
    model = with_lora(trunk(**NO_DROPOUT), dropout=0.3).double().train()

    def loss() -> Tensor:
        torch.manual_seed(5)
        return model(ids, mask).square().sum()

    model.zero_grad()
    loss().backward()
    weight = dict(model.named_parameters())["bert.encoder.layer.0.attention.self.value.lora_A.default.weight"]
    with torch.no_grad():
        weight[1, 2] += 1e-5
        up = loss()
        weight[1, 2] -= 2e-5
        down = loss()
    torch.testing.assert_close((up - down) / 2e-5, weight.grad[1, 2], atol=1e-6, rtol=1e-5)


def test_training_mode_draws_the_networks_own_dropout() -> None:
    ids, mask = batch(4)
    for model in (trunk(), with_lora(trunk())):
        model.train()
        assert not torch.equal(model(ids, mask), model(ids, mask))


def test_bfloat16_stays_near_and_follows_changed_weights() -> None:
    model, (ids, mask) = with_lora(trunk()), batch(5)
    for factor in (1.0, 1.5):
        with torch.no_grad():
            model.bert.encoder.layer[0].output.dense.weight.mul_(factor)
        exact = model(ids, mask)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = model(ids, mask)
        assert (rounded.float() - exact).abs().max() < 0.1
        a, b = gradients(model, rounded.float()), gradients(model, exact)
        for name in b:
            assert a[name].dtype == torch.float32
            assert torch.cosine_similarity(a[name].flatten(), b[name].flatten(), dim=0) > 0.99, name


def test_an_embedding_pass_does_not_hinder_training_after_it() -> None:
    """Copies of weights made in inference mode could not be saved for a backward pass."""
    model = with_lora(trunk("cls"))
    ids, mask = batch()
    with torch.autocast("cpu", torch.bfloat16):
        with torch.inference_mode():
            model(ids, mask)
        model(ids, mask).float().square().sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_copies_of_weights_are_made_again_after_merging() -> None:
    """peft adds an adapter to `weight.data`, which does not change the weight's version."""
    model = with_lora(trunk("cls"))
    ids, mask = batch()
    holder = nn.ModuleDict({"trunk": model})

    def rounded() -> Tensor:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            return model(ids, mask).float()

    before = rounded()
    assert merge(holder) == 6
    assert F.cosine_similarity(before, rounded()).min() > 0.999


def test_what_cannot_be_encoded_is_reported() -> None:
    model, (ids, mask) = trunk(), batch(3)
    mask[1] = 0
    with pytest.raises(ConfigError, match="no token"):
        model(ids, mask)
    with pytest.raises(ConfigError, match="41 tokens for a BERT of 40"):
        model(torch.ones(1, 41, dtype=torch.long), torch.ones(1, 41, dtype=torch.long))
    with pytest.raises(ConfigError, match="pooling"):
        trunk("max")
    assert model(ids[:0], mask[:0]).shape == (0, 64)


@given(st.lists(st.integers(1, 50), max_size=30), st.integers(1, 120))
@settings(deadline=None)
def test_micro_batches_cover_each_row_once_within_budget(lengths: list[int], budget: int) -> None:
    parts = [part.tolist() for part in micro_batches(torch.tensor(lengths, dtype=torch.int64), budget)]
    assert sorted(i for part in parts for i in part) == list(range(len(lengths)))
    assert all(len(part) == 1 or sum(lengths[i] for i in part) <= budget for part in parts)
    ordered = [lengths[i] for part in parts for i in part]
    assert ordered == sorted(lengths, reverse=True)


@given(st.lists(st.sampled_from(["a", "b", "", "normal", "b "]), max_size=20))
def test_distinct_gives_the_texts_back(texts: list[str]) -> None:
    unique, index = distinct(texts)
    assert [unique[i] for i in index.tolist()] == texts
    assert unique == list(dict.fromkeys(texts))
