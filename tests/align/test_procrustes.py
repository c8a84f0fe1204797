import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from m3bind.align.procrustes import Bridge, identity_map, orthonormal_map, procrustes
from m3bind.errors import ConfigError
from reference import procrustes as oracle

TIGHT = {"iterations": 3000, "tol": 1e-14}


def noisy_towers(seed, dims, texts=80, noise=0.4):
    """Unit rows of several towers that see one hidden configuration, each rotated, cut to its width and disturbed."""
    random = np.random.default_rng(seed)
    widest = max(dims)
    hidden = random.standard_normal((texts, widest)) * np.arange(1, widest + 1) ** -0.5 + 0.3
    return [
        oracle.unit((hidden @ oracle.rotation(random, widest))[:, :dim] + noise * random.standard_normal((texts, dim)))
        for dim in dims
    ]


def cosines(rows):
    return oracle.unit(rows) @ oracle.unit(rows).T


@pytest.mark.parametrize("make", [identity_map, orthonormal_map])
@pytest.mark.parametrize(("source", "dim"), [(4, 4), (3, 7), (8, 5), (1, 1)])
def test_starting_maps_are_orthonormal(make, source, dim):
    weight = make(source, dim)
    assert weight.shape == (source, dim)
    small = weight @ weight.T if source <= dim else weight.T @ weight
    torch.testing.assert_close(small, torch.eye(min(source, dim), dtype=torch.float64))
    with pytest.raises(ConfigError, match="at least 1"):
        make(0, 3)


def test_orthonormal_map_is_seeded():
    assert torch.equal(orthonormal_map(4, 6, 1), orthonormal_map(4, 6, 1))
    assert not torch.allclose(orthonormal_map(4, 6, 1), orthonormal_map(4, 6, 2))


def test_bridge_is_a_linear_map_with_unit_rows():
    weight = orthonormal_map(5, 8)
    bridge, rows = Bridge(weight), torch.randn(6, 5)
    out = bridge(rows)
    torch.testing.assert_close(out.norm(dim=1), torch.ones(6))
    torch.testing.assert_close(bridge(3 * rows), out)  # cosines have no scale
    torch.testing.assert_close(out, torch.nn.functional.normalize(rows @ weight.float(), dim=1))
    np.testing.assert_allclose(cosines(out.detach().numpy()), cosines(rows.numpy()), atol=1e-6)
    assert list(bridge.state_dict()) == ["weight"]
    assert bridge.weight.requires_grad
    assert "5 -> 8" in repr(bridge)
    with pytest.raises(ConfigError, match=r"expected \(d_m, d\)"):
        Bridge(torch.ones(3))


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize(("dims", "dim"), [((6,), 6), ((4, 4), 4), ((6, 3, 5), 8), ((7, 7, 7, 7), 9), ((5, 12), 16)])
def test_within_modality_cosines_stay(dims, dim, center):
    towers = noisy_towers(0, dims)
    for rows, weight in zip(towers, procrustes(towers, dim, center=center)):
        assert weight.shape == (rows.shape[1], dim)
        np.testing.assert_allclose(weight @ weight.T, np.eye(len(weight)), atol=1e-12)
        np.testing.assert_allclose(cosines(rows @ weight.numpy()), cosines(rows), atol=1e-6)
        stored = Bridge(weight)(torch.from_numpy(rows).float()).detach().numpy()
        np.testing.assert_allclose(cosines(stored), cosines(rows), atol=1e-6)


@pytest.mark.parametrize("towers", [2, 3, 5])
def test_planted_rotations_are_recovered(towers):
    random = np.random.default_rng(towers)
    hidden = oracle.unit(random.standard_normal((60, 6)) * np.arange(1, 7) ** -1.0)
    turned = [hidden @ oracle.rotation(random, 6) for _ in range(towers)]
    maps = procrustes(turned, 6)
    bound = [rows @ weight.numpy() for rows, weight in zip(turned, maps)]
    for other in bound[1:]:
        np.testing.assert_allclose(other, bound[0], atol=1e-6)
    np.testing.assert_allclose(bound[0] @ bound[0].T, hidden @ hidden.T, atol=1e-6)


def test_planted_rotations_of_padded_towers_are_recovered():
    random = np.random.default_rng(3)
    hidden = oracle.unit(random.standard_normal((60, 4)))
    turned = [hidden @ oracle.rotation(random, width)[:4] for width in (4, 6, 5)]
    bound = [rows @ weight.numpy() for rows, weight in zip(turned, procrustes(turned, 8, **TIGHT))]
    for other in bound[1:]:
        np.testing.assert_allclose(other, bound[0], atol=1e-5)


@pytest.mark.parametrize("weights", [None, [0.8, 2.25, 0.92]])
@pytest.mark.parametrize(("dims", "dim"), [((6, 6, 6), 6), ((5, 3, 4), 5), ((4, 4, 4), 7)])
def test_no_small_rotation_of_any_tower_improves(dims, dim, weights):
    towers = noisy_towers(1, dims)
    maps = [weight.numpy() for weight in procrustes(towers, dim, weights=weights, **TIGHT)]
    best = oracle.distance(towers, maps, weights)
    random = np.random.default_rng(5)
    for angle in (1e-3, 1e-2, 0.3):
        for tower in range(len(maps)):
            for _ in range(30):
                tried = list(maps)
                tried[tower] = maps[tower] @ oracle.small_rotation(random, dim, angle)
                assert oracle.distance(towers, tried, weights) > best


def test_better_than_every_other_start():
    towers = noisy_towers(2, (6, 6, 6, 6), noise=0.2)
    found = oracle.distance(towers, [w.numpy() for w in procrustes(towers, 6, **TIGHT)])
    random = np.random.default_rng(0)
    for _ in range(10):
        maps = [oracle.rotation(random, 6) for _ in towers]
        for _ in range(300):
            for a in range(4):
                others = sum(towers[b] @ maps[b] for b in range(4) if b != a)
                u, _, vt = np.linalg.svd(towers[a].T @ others)
                maps[a] = u @ vt
        assert found <= oracle.distance(towers, maps) + 1e-9
    assert found < oracle.distance(towers, [np.eye(6)] * 4)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.permutations(range(4)))
def test_the_order_of_towers_does_not_matter(seed, order):
    towers = noisy_towers(seed, (5, 4, 5, 3), noise=0.2)
    maps = procrustes(towers, 5, **TIGHT)
    shuffled = procrustes([towers[i] for i in order], 5, **TIGHT)
    for position, tower in enumerate(order):
        torch.testing.assert_close(shuffled[position], maps[tower], rtol=0, atol=1e-4)


def test_each_sweep_improves_and_the_result_is_repeatable():
    towers = noisy_towers(4, (6, 6, 6), noise=1.0)
    values = [oracle.distance(towers, [w.numpy() for w in procrustes(towers, 6, n, 0.0)]) for n in range(8)]
    assert all(later <= earlier + 1e-12 for earlier, later in itertools.pairwise(values))
    assert values[-1] < values[0]
    for one, other in zip(procrustes(towers, 6), procrustes([torch.from_numpy(x) for x in towers], 6)):
        assert torch.equal(one, other)


def test_axes_of_the_space_are_principal_and_signed():
    towers = noisy_towers(5, (6, 5), noise=0.1)
    mean = sum(rows @ weight.numpy() for rows, weight in zip(towers, procrustes(towers, 6)))
    moment = mean.T @ mean
    np.testing.assert_allclose(moment, np.diag(np.diag(moment)), atol=1e-9 * moment.max())
    assert (np.diff(np.diag(moment)) <= 0).all()
    assert (mean.mean(0) >= -1e-12).all()


def test_a_wider_tower_is_projected_by_orthonormal_columns():
    towers = noisy_towers(6, (9, 4), noise=0.05)
    wide, narrow = procrustes(towers, 4, **TIGHT)
    np.testing.assert_allclose(wide.T @ wide, np.eye(4), atol=1e-12)
    np.testing.assert_allclose(narrow @ narrow.T, np.eye(4), atol=1e-12)
    best = ((towers[0] @ wide.numpy()) * (towers[1] @ narrow.numpy())).sum()
    random = np.random.default_rng(0)
    for _ in range(50):
        tried = oracle.small_rotation(random, 9, 0.05) @ wide.numpy()
        assert ((towers[0] @ tried) * (towers[1] @ narrow.numpy())).sum() < best


def test_towers_above_the_size_of_the_start_problem(monkeypatch):
    towers = noisy_towers(7, (8, 8, 8), noise=0.1)
    full = oracle.distance(towers, [w.numpy() for w in procrustes(towers, 8, **TIGHT)])
    monkeypatch.setattr("m3bind.align.procrustes._START_ROWS", 12)
    reduced = oracle.distance(towers, [w.numpy() for w in procrustes(towers, 8, **TIGHT)])
    assert reduced == pytest.approx(full, rel=1e-6)


def test_fewer_texts_than_dimensions():
    towers = noisy_towers(8, (12, 12, 9), texts=5)
    for rows, weight in zip(towers, procrustes(towers, 12)):
        np.testing.assert_allclose(cosines(rows @ weight.numpy()), cosines(rows), atol=1e-6)


def test_wrong_use():
    rows = torch.ones(3, 2)
    with pytest.raises(ConfigError, match="no towers"):
        procrustes([], 2)
    with pytest.raises(ConfigError, match="the same K"):
        procrustes([rows, torch.ones(4, 2)], 2)
    with pytest.raises(ConfigError, match="tower 1 has embeddings that are NaN"):
        procrustes([rows, rows * float("nan")], 2)
    with pytest.raises(ConfigError, match="do not fit 2 towers"):
        procrustes([rows, rows], 2, weights=[1.0])
