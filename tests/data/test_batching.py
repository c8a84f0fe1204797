"""Batches are functions of (seed, step): laws of the samplers and of the length buckets."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from m3bind.data.batching import EpochSampler, PoolSampler, distinct_ids, length_buckets, rng


@given(st.integers(1, 60), st.integers(1, 70), st.integers(0, 5), st.integers(0, 40))
def test_a_batch_depends_on_seed_and_step_alone(n, size, seed, step):
    fresh = EpochSampler(n, size, seed, "x").batch(step)
    walked = EpochSampler(n, size, seed, "x")
    for earlier in range(max(step - 5, 0), step):
        walked.batch(earlier)
    assert np.array_equal(fresh, walked.batch(step))
    assert len(fresh) == min(n, size) == len(set(fresh.tolist()))


@given(st.integers(2, 50), st.integers(1, 20))
def test_an_epoch_shows_each_item_at_most_once(n, size):
    sampler = EpochSampler(n, size, 0)
    per_epoch = n // min(n, size)
    seen = np.concatenate([sampler.batch(step) for step in range(per_epoch)])
    assert len(seen) == len(set(seen.tolist())) > n - min(n, size)


def test_seeds_and_names_give_different_batches():
    batches = [EpochSampler(50, 10, seed, name).batch(0) for seed in (0, 1) for name in ("a", "b")]
    assert len({tuple(b) for b in batches}) == 4


def test_the_pool_is_drawn_by_probability_then_uniformly():
    pools = [np.arange(10), np.arange(10, 1000), np.array([2000])]
    sampler = PoolSampler(pools, [0.5, 0.3, 0.2], batch=500, seed=1)
    drawn = [sampler.batch(step) for step in range(40)]
    ids, source = (np.concatenate(part) for part in zip(*drawn))
    shares = np.bincount(source) / len(source)
    np.testing.assert_allclose(shares, [0.5, 0.3, 0.2], atol=0.01)
    for m, pool in enumerate(pools):
        assert set(ids[source == m]) <= set(pool)
    counts = np.bincount(ids[source == 0], minlength=10) / (source == 0).sum()
    np.testing.assert_allclose(counts, 0.1, atol=0.01)
    again = PoolSampler(pools, [0.5, 0.3, 0.2], batch=500, seed=1).batch(7)
    assert np.array_equal(again[0], drawn[7][0])


@given(st.lists(st.integers(1, 300), max_size=80), st.integers(1, 600))
def test_buckets_hold_every_index_once_within_the_budget(lengths, budget):
    groups = length_buckets(lengths, budget)
    everything = [int(i) for group in groups for i in group]
    assert sorted(everything) == list(range(len(lengths)))
    for group in groups:
        longest = max(lengths[i] for i in group)
        assert len(group) == 1 or len(group) * longest <= budget
    assert [lengths[i] for i in everything] == sorted(lengths, reverse=True)


def test_generators_with_other_names_are_independent():
    assert rng(0, "a").random() != rng(0, "b").random() != rng(1, "a").random()
    assert rng(0, "a", 1).random() == rng(0, "a", 1).random()


@given(st.lists(st.lists(st.integers(-5, 5), max_size=9), max_size=3), st.sampled_from([np.int64, np.int32]))
def test_distinct_ids_are_sorted(parts, dtype):
    values = distinct_ids(*(np.array(part, dtype) for part in parts))
    assert values.dtype == np.int64 and values.tolist() == sorted({value for part in parts for value in part})
