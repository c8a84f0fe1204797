"""The gallery's part in intervals: against loops that leave every patient out, and finite differences."""

import numpy as np
import pytest
from tests.reference import intervals as naive

from m3bind.evaluate import instance_search, retrieval
from m3bind.evaluate.confidence import Resampling, resampled
from m3bind.evaluate.gallery_effect import GalleryEffect, crossed_estimate, resample_gallery
from m3bind.evaluate.instance_search import Search, cosines, search_estimates
from m3bind.evaluate.ranking import precision_effects, precision_values, rank_stats
from m3bind.evaluate.zero_shot import unit

RNG = np.random.default_rng(0)


def people(count: int, files: int) -> list[str]:
    return [f"p{i}" for i in range(count) for _ in range(files)]


def rank(name: str, scores: np.ndarray, right: np.ndarray):
    """A function (query, gallery) -> value of one query."""

    def value(query, gallery):
        stats = rank_stats(scores[query : query + 1, list(gallery)], right[query : query + 1, list(gallery)])
        return float(stats.reciprocal_rank()[0] if name == "mrr" else stats.hit_probability(int(name[2:]))[0])

    return value


@pytest.mark.parametrize("metric", ["R@1", "R@5", "mrr"])
@pytest.mark.parametrize("ties", [False, True])
def test_rank_effects_equal_a_loop_that_leaves_patients_out(metric, ties, monkeypatch):
    monkeypatch.setattr(instance_search, "_BLOCK", 7)  # several blocks, patients not cut apart
    queries, gallery = people(9, 2), people(9, 3)
    order = RNG.permutation(len(queries)), RNG.permutation(len(gallery))
    queries, gallery = [queries[i] for i in order[0]], [gallery[i] for i in order[1]]
    a, b = unit(RNG.normal(size=(18, 4))), unit(RNG.normal(size=(27, 4)))
    if ties:
        a, b = unit(np.round(a)), unit(np.round(b))
    search = Search(a, b, queries, gallery, queries, gallery)
    stats = instance_search.search_stats(a, b, np.array(queries), np.array(gallery))
    effect = instance_search._effects([search], stats, [metric])[metric]
    right = np.array(queries)[:, None] == np.array(gallery)
    changes = naive.left_out_changes(rank(metric, cosines(a, b), right), queries, gallery)
    np.testing.assert_allclose(effect.totals, changes.sum(0), atol=1e-12)
    np.testing.assert_allclose(effect.effects(), naive.main_effects(changes), atol=1e-12)


def test_effects_without_interaction_are_unchanged_and_pure_noise_vanishes():
    columns = RNG.normal(size=12)
    kept, noise = GalleryEffect(np.arange(12).astype(str)), GalleryEffect(np.arange(12).astype(str))
    kept.add(np.tile(columns, (30, 1)))
    np.testing.assert_allclose(kept.effects(), 30 * (columns - columns.mean()))
    shares = []
    for seed in range(40):
        noise = GalleryEffect(np.arange(12).astype(str))
        noise.add(np.random.default_rng(seed).normal(size=(30, 12)))
        shares.append((noise.effects() ** 2).sum() / ((noise.totals - noise.totals.mean()) ** 2).sum())
    assert np.mean(shares) < 0.2


def test_concept_auc_has_the_derivatives_of_the_weighted_auc(monkeypatch):
    y, z = np.array([0, 0, 1, 1, 1, 2, 2]), np.array([0, 1, 1, 2, 0, 2, 1, 0])
    a, b = unit(RNG.normal(size=(7, 3))), unit(np.round(RNG.normal(size=(8, 3)) * 2))
    found = {}

    def caught(value, chance, changes, *sides):
        found["changes"] = changes
        return crossed_estimate(value, chance, changes, *sides)

    monkeypatch.setattr(retrieval, "crossed_estimate", caught)
    value = retrieval.concept_auc(a, b, y, z, Resampling(resamples=2)).value
    scores, ones = cosines(a, b), (np.ones(7), np.ones(8))
    assert value == pytest.approx(naive.weighted_concept_auc(scores, y, z, *ones))
    step = 1e-6
    for side, size in enumerate((7, 8)):
        for i in range(size):
            weights = [part.copy() for part in ones]
            weights[side][i] += step
            slope = (naive.weighted_concept_auc(scores, y, z, *weights) - value) / step
            assert found["changes"].sum(1 - side)[i] == pytest.approx(slope, abs=1e-5)


def test_precision_effects_are_those_of_leaving_an_item_out():
    scores, right = RNG.normal(size=(6, 12)), RNG.random((6, 12)) < 0.4
    effects = precision_effects(scores, right, 5)
    whole = precision_values(scores, right, 5)
    for j in range(12):
        rest = np.arange(12) != j
        np.testing.assert_allclose(effects[:, j], whole - precision_values(scores[:, rest], right[:, rest], 5))
    assert not precision_effects(scores, right, 12).any()


def test_a_hub_in_the_gallery_widens_the_interval():
    """One gallery file that is the best hit of all queries of a class decides R@1 and P@1 of the class."""
    rng = np.random.default_rng(1)
    y = np.repeat([0, 1], 60)
    base = np.eye(2)[y] + 0.02 * rng.normal(size=(120, 2))
    gallery = unit(np.eye(2)[np.repeat([0, 1], 4)] + 0.8 * rng.normal(size=(8, 2)))
    z = np.repeat([0, 1], 4)
    draws = Resampling([f"q{i}" for i in range(120)]), Resampling([f"g{i}" for i in range(8)])
    both = retrieval.concept_auc(unit(base), gallery, y, z, *draws)
    scores = cosines(unit(base), gallery)
    alone = np.std([scores[rng.integers(0, 120, 120)].mean() for _ in range(50)])
    assert both.ci_high - both.ci_low > 0.1 > 4 * alone


def test_a_patient_on_both_sides_moves_jointly():
    """Queries and gallery items of a patient with equal effects double the patient's error; of others they add up."""
    effect = np.linspace(-1, 1, 21) * 0.001
    changes = np.add.outer(effect, effect)  # no interaction
    draw, others = Resampling([f"p{i}" for i in range(21)]), Resampling([f"o{i}" for i in range(21)])
    found = resampled(lambda weights: 0.5 + (weights - 1) @ changes.sum(1), 21, 0.5, draw)
    alone = np.std(found.replicates)
    together = np.std(resample_gallery(found, changes, draw, draw).replicates)
    separate = np.std(resample_gallery(found, changes, draw, others).replicates)
    assert together == pytest.approx(2 * alone)
    assert separate == pytest.approx(np.sqrt(2) * alone, rel=0.1)


def test_several_searches_of_one_patient_are_one_query_unit():
    a, b = unit(RNG.normal(size=(40, 4))), unit(RNG.normal(size=(40, 4)))
    keys, owners = np.arange(40), np.array(people(20, 2))
    halves = [Search(a[h], b[h], keys[h], keys[h], owners[h], owners[h]) for h in (slice(0, 20), slice(20, 40))]
    found = search_estimates(halves, ["R@5", "median_rank"], 300)
    assert found["R@5"].n == 40 and found["R@5"].patients == 20
    assert found["R@5"].ci_low < found["R@5"].value < found["R@5"].ci_high
    assert found["median_rank"].ci_low <= found["median_rank"].value <= found["median_rank"].ci_high
