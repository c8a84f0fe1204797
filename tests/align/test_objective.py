import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from m3bind.align import objective
from m3bind.align.balance import loss_weights
from m3bind.align.objective import text_contrastive, text_mse, total
from m3bind.errors import ConfigError
from m3bind.training import contrastive
from reference import losses as oracle
from reference.compare import assert_same, unit_rows

WEIGHTS = [0.8, 2.25, 0.92, 0.55, 0.49, 0.0]


def test_one_info_nce_for_all_stages():
    assert objective.clip_loss is contrastive.clip_loss


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("towers", range(1, 7))
@pytest.mark.parametrize(("n", "d"), [(1, 1), (4, 3), (6, 8)])
def test_text_mse_equals_the_sum_over_pairs(n, d, towers, reduction, weighted):
    embeddings = unit_rows(n, d, seed=towers, count=towers)
    weights = WEIGHTS[:towers] if weighted else None
    assert_same(
        lambda: text_mse(embeddings, weights, reduction),
        lambda: oracle.text_mse(embeddings, weights, reduction),
        embeddings,
    )


def test_text_mse_with_duplicated_texts_and_literal_weights():
    distinct = unit_rows(3, 4, seed=9, count=3)
    index = torch.tensor([0, 0, 2, 1, 2])
    weights = loss_weights([377110, 47149, 284660], literal=True)

    def scaled(loss):  # products of literal weights are near 1e-6, below the tolerance
        return 1e6 * loss([tower[index] for tower in distinct], weights)

    assert_same(lambda: scaled(text_mse), lambda: scaled(oracle.text_mse), distinct)


@pytest.mark.parametrize("distance", [1e-2, 1e-4])
def test_text_mse_is_accurate_in_float32_when_towers_nearly_agree(distance):
    base = unit_rows(32, 512, seed=0).detach()
    towers = [(base + distance * noise.detach()).float() for noise in unit_rows(32, 512, seed=1, count=5)]
    wide = [tower.double() for tower in towers]
    exact = sum((wide[a] - wide[b]).square().sum(1).mean() for a in range(5) for b in range(a))
    assert text_mse(towers).double().item() == pytest.approx(exact.item(), rel=1e-5)
    plain = (5 * sum(t.square().sum(1) for t in towers) - sum(towers).square().sum(1)).mean()
    assert abs(plain.item() / exact.item() - 1) > 1e-5  # the uncentred identity would not pass


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 6), st.integers(1, 5), st.integers(0, 10**6), st.floats(0.1, 10))
def test_laws_of_text_mse(towers, n, seed, factor):
    embeddings = unit_rows(n, 4, seed=seed, count=towers)
    weights = torch.rand(towers, generator=torch.Generator().manual_seed(seed)).tolist()
    loss = text_mse(embeddings, weights)
    order = torch.randperm(towers, generator=torch.Generator().manual_seed(seed + 1)).tolist()
    permuted = text_mse([embeddings[i] for i in order], [weights[i] for i in order])
    torch.testing.assert_close(permuted, loss, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(
        text_mse([factor * x for x in embeddings], weights), factor**2 * loss, rtol=1e-9, atol=1e-12
    )
    torch.testing.assert_close(
        text_mse(embeddings, [factor * w for w in weights]), factor**2 * loss, rtol=1e-9, atol=1e-12
    )
    shift = torch.full((4,), factor, dtype=torch.float64)
    torch.testing.assert_close(text_mse([x + shift for x in embeddings], weights), loss, rtol=1e-9, atol=1e-12)
    assert loss >= 0
    assert text_mse([embeddings[0]] * towers, weights) == 0


@pytest.mark.parametrize("pairs", ["mean", "all"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("ids", [None, [3, 1, 3, 2], ["a"] * 4])
@pytest.mark.parametrize("towers", range(1, 7))
def test_text_contrastive_equals_oracle(towers, ids, weighted, pairs):
    embeddings = unit_rows(4, 3, seed=towers, count=towers)
    weights = WEIGHTS[:towers] if weighted else None
    assert_same(
        lambda: text_contrastive(embeddings, 14.29, weights, ids, pairs),
        lambda: oracle.text_contrastive(embeddings, 14.29, weights, ids, pairs),
        embeddings,
    )


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 5), st.integers(0, 10**6), st.floats(0.1, 10), st.sampled_from(["mean", "all"]))
def test_laws_of_text_contrastive(towers, seed, factor, pairs):
    embeddings = unit_rows(5, 4, seed=seed, count=towers)
    weights = (0.1 + torch.rand(towers, generator=torch.Generator().manual_seed(seed))).tolist()
    loss = text_contrastive(embeddings, 5.0, weights, pairs=pairs)
    order = torch.randperm(towers, generator=torch.Generator().manual_seed(seed + 1)).tolist()
    permuted = text_contrastive([embeddings[i] for i in order], 5.0, [weights[i] for i in order], pairs=pairs)
    torch.testing.assert_close(permuted, loss, rtol=1e-9, atol=1e-9)
    scaled = text_contrastive(embeddings, 5.0, [factor * w for w in weights], pairs=pairs)
    torch.testing.assert_close(scaled, loss, rtol=1e-9, atol=1e-9)


def test_two_towers_make_both_forms_of_text_contrastive_one():
    embeddings = unit_rows(6, 5, seed=2, count=2)
    mean, every = (text_contrastive(embeddings, 8.0, pairs=pairs) for pairs in ("mean", "all"))
    torch.testing.assert_close(mean, every)


def test_means_of_others_survive_a_dominant_weight_in_float32():
    towers = [x.detach().float() for x in unit_rows(4, 6, seed=3, count=3)]
    weights = [1e9, 1.0, 1.0]
    exact = text_contrastive([x.double() for x in towers], 5.0, weights)
    assert text_contrastive(towers, 5.0, weights).item() == pytest.approx(exact.item(), rel=1e-5)


@pytest.mark.parametrize("literal", [False, True])
def test_total_is_equation_6(literal):
    names, sizes = ("xray", "ct", "ecg"), {"xray": 900, "ct": 40, "ecg": 2500}
    weights = loss_weights(sizes, literal)
    form = {"direction": "i2t", "reduction": "sum"} if literal else {}
    pairs = {name: unit_rows(4, 3, seed=seed, count=2) for seed, name in enumerate(names)}
    shared = unit_rows(5, 3, seed=8, count=3)

    def ours():
        clip = {name: objective.clip_loss(*pairs[name], 10.0, **form) for name in names}
        mse = text_mse(shared, list(weights.values()))
        other = text_contrastive(shared, 14.29, list(weights.values()))
        named = total(clip, weights, mse, 10.0, other, 0.2)
        assert list(named) == ["clip/xray", "clip/ct", "clip/ecg", "mse", "text_contrastive", "loss"]
        assert named["clip/ct"] is clip["ct"]
        return named["loss"]

    def naive():
        w = list(weights.values())
        loss = 10.0 * oracle.text_mse(shared, w) + 0.2 * oracle.text_contrastive(shared, 14.29, w)
        return loss + sum(weights[name] * oracle.clip_loss(*pairs[name], 10.0, **form) for name in names)

    assert_same(ours, naive, [*shared, *(x for pair in pairs.values() for x in pair)])


def test_total_of_a_step_with_some_terms():
    one = torch.tensor(2.0)
    assert list(total({"ct": one}, {"ct": 3.0, "ecg": 1.0})) == ["clip/ct", "loss"]
    assert total({"ct": one}, {"ct": 3.0})["loss"] == 6
    assert total({}, {}, mse=one, lam=0.5)["loss"] == 1
    named = total({"ct": one, "ecg": one}, {"ct": 3.0, "ecg": 0.5}, drift={"ecg": one}, drift_weight=10.0)
    assert (named["consistency"], named["loss"]) == (0.5 * one, 3.5 * one + 5 * one)


def test_wrong_use():
    with pytest.raises(ConfigError, match="no loss weight for modality ct"):
        total({"ct": torch.tensor(1.0)}, {"xray": 1.0})
    with pytest.raises(ConfigError, match="both are missing"):
        total({}, {})
    with pytest.raises(ConfigError, match="unknown reduction 'max'"):
        text_mse([torch.ones(2, 3)], reduction="max")
    with pytest.raises(ConfigError, match="bridge them first"):
        text_mse([torch.ones(2, 3), torch.ones(2, 4)])
    with pytest.raises(ConfigError, match="do not fit 2 towers"):
        text_mse([torch.ones(2, 3)] * 2, [1.0])
    with pytest.raises(ConfigError, match="unknown pairs"):
        text_contrastive([torch.ones(2, 3)] * 2, 1.0, pairs="some")
    with pytest.raises(ConfigError, match="3 ids for 2 texts"):
        text_contrastive([torch.ones(2, 3)] * 2, 1.0, ids=[1, 2, 3])
