"""The losses of trained heads against their definitions, item by item."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from m3bind.align.heads import aggregate, perturb, star_info_nce, weighted_info_nce
from m3bind.align.methods.cmcr import cmcr_loss
from m3bind.align.methods.exmcr import dense_loss
from m3bind.align.methods.textme import hard_negative_loss
from m3bind.align.objective import text_contrastive
from m3bind.training.contrastive import identical_positives
from reference import binding as oracle
from reference.compare import assert_same, unit_rows


def weights(n: int, seed: int) -> torch.Tensor:
    return torch.rand(n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("ids", [None, [0, 1, 0, 2, 1]])
@pytest.mark.parametrize("weighted", [False, True])
def test_weighted_info_nce_is_its_definition(ids, weighted):
    a, b = unit_rows(5, 4, seed=0, count=2)
    w = weights(5, 1) if weighted else None
    same = None if ids is None else identical_positives(torch.tensor(ids))
    assert_same(
        lambda: weighted_info_nce(a, b, 9.0, w, same), lambda: oracle.weighted_info_nce(a, b, 9.0, w, ids), [a, b]
    )


@pytest.mark.parametrize("weighted", [False, True])
def test_star_compares_each_tower_with_the_mean_of_the_others(weighted):
    towers = unit_rows(4, 5, seed=2, count=3)
    w = [weights(4, s) for s in range(3)] if weighted else None
    assert_same(lambda: star_info_nce(towers, 7.0, w), lambda: oracle.star_info_nce(towers, 7.0, w), towers)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 5), st.integers(2, 6), st.integers(0, 10**6))
def test_unweighted_star_is_the_text_contrastive_loss_of_stage_1(m, n, seed):
    towers = unit_rows(n, 4, seed=seed, count=m)
    ids = torch.randint(0, n, (n,), generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(
        star_info_nce(towers, 5.0, None, identical_positives(ids)), text_contrastive(towers, 5.0, None, ids)
    )


def test_rows_without_weight_count_neither_as_anchors_nor_in_the_mean_of_others():
    towers = [t.detach() for t in unit_rows(4, 5, seed=3, count=3)]
    w = [torch.ones(4, dtype=torch.float64) for _ in range(3)]
    w[2] = torch.zeros(4, dtype=torch.float64)
    with_third = star_info_nce(towers, 7.0, w)
    two = [weighted_info_nce(towers[0], towers[1], 7.0), weighted_info_nce(towers[1], towers[0], 7.0)]
    torch.testing.assert_close(with_third, sum(two) / 3)


def test_aggregate_is_a_soft_search_of_images_with_the_entropy_as_doubt():
    texts, images = (t.detach() for t in (unit_rows(3, 4, seed=4), unit_rows(6, 4, seed=5)))
    got, sure = aggregate(texts, images, 0.1, chunk=2)
    for i in range(3):
        powers = [math.exp(float(texts[i] @ images[k]) / 0.1) for k in range(6)]
        shares = [p / sum(powers) for p in powers]
        mean = sum(shares[k] * images[k] for k in range(6))
        torch.testing.assert_close(got[i], mean / mean.norm())
        assert float(sure[i]) == pytest.approx(1 + sum(p * math.log(p) for p in shares) / math.log(6))
    assert float(aggregate(texts, images, 1e-4)[1].min()) > 0.99
    assert float(aggregate(texts, images[:1].repeat(5, 1), 0.1)[1].max()) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("dim", [16, 256])
def test_noise_is_as_strong_in_every_dimension(dim):
    torch.manual_seed(0)
    x = torch.nn.functional.normalize(torch.randn(4000, dim), dim=1)
    moved = perturb(x, 2.0)
    assert float((moved * x).sum(1).mean()) == pytest.approx(1 / math.sqrt(3), abs=0.03)  # |x + e|^2 = 3 on average
    assert perturb(x, 0.0) is x


@pytest.mark.parametrize("weighted", [False, True])
def test_cmcr_is_its_three_terms(weighted):
    texts, images = unit_rows(4, 5, seed=6, count=3), unit_rows(4, 5, seed=7, count=3)
    sure = [weights(4, s) for s in range(3)] if weighted else None
    assert_same(
        lambda: cmcr_loss(texts, images, 6.0, 0.3, sure)["loss"],
        lambda: oracle.cmcr_loss(texts, images, 6.0, 0.3, sure),
        [*texts, *images],
    )


@pytest.mark.parametrize("weighted", [False, True])
def test_dense_is_the_mean_of_four_contrasts(weighted):
    x, v, big_x, big_v = unit_rows(5, 4, seed=8, count=4)
    sure = (weights(5, 1), weights(5, 2)) if weighted else (None, None)
    assert_same(
        lambda: dense_loss((x, v, sure[0]), (big_x, big_v, sure[1]), 6.0),
        lambda: oracle.dense_loss((x, v, sure[0]), (big_x, big_v, sure[1]), 6.0),
        [x, v, big_x, big_v],
    )


@pytest.mark.parametrize("ids", [None, [0, 1, 0, 2, 1, 3]])
def test_hard_negatives_are_those_inside_the_interval(ids):
    rows, target = unit_rows(6, 3, seed=9, count=2)
    with torch.no_grad():
        target.copy_(torch.nn.functional.normalize(rows + 0.6 * target, dim=1))  # so that most s_ii are positive
    same = None if ids is None else identical_positives(torch.tensor(ids))
    assert_same(
        lambda: hard_negative_loss(rows, target, 8.0, same),
        lambda: oracle.hard_negative_loss(rows, target, 8.0, ids),
        [rows, target],
    )
    assert float(hard_negative_loss(rows, -rows, 8.0)) == pytest.approx(0)  # s_ii < 0: an empty interval
