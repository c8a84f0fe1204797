"""Tests of the measure of inputs that are unlike the training data."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from m3bind.errors import SpaceError
from m3bind.space.input_statistics import STATISTICS, degradations, input_statistics, statistics_of, thinned
from m3bind.space.unlike import FIELDS, UnlikeMeasure, fit_unlike

SHAPES = {"image": (3, 32, 32), "grey": (1, 32, 32), "volume": (1, 6, 24, 24), "signal": (12, 200), "numbers": (300,)}


def usual(shape: tuple[int, ...], count: int, seed: int) -> Tensor:
    """Smooth random inputs with detail, within 0..1 (signals around 0)."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(count, *shape))
    blurred = np.stack(
        [gaussian_filter(row, (0,) * (len(shape) > 1) + (1.2,) * max(1, len(shape) - 1)) for row in rows]
    )
    blurred = blurred / blurred.reshape(count, -1).std(1).reshape(-1, *[1] * len(shape)) + 0.1 * rows
    scale = rng.uniform(0.12, 0.18, count).reshape(-1, *[1] * len(shape))
    return torch.from_numpy((blurred * scale + (0.5 if len(shape) > 2 else 0)).astype(np.float32))


def features_of(inputs: Tensor) -> np.ndarray:
    """Features (n, 24) as of a random network."""
    flat = inputs.flatten(1)
    weights = torch.randn(flat.shape[1], 24, generator=torch.Generator().manual_seed(1)) / flat.shape[1] ** 0.5
    return np.asarray(torch.relu(flat @ weights).numpy())


def fitted(shape: tuple[int, ...]) -> UnlikeMeasure:
    train, held = usual(shape, 200, 0), usual(shape, 150, 1)
    parts = [part for inputs in (train, held) for part in (features_of(inputs), input_statistics(inputs))]
    measure = fit_unlike(*parts, train[:50])
    assert measure is not None
    return measure


def reasons(measure: UnlikeMeasure, inputs: Tensor) -> list[str]:
    distances = measure.feature_distances(torch.from_numpy(features_of(inputs))).numpy()
    return measure.reasons(distances, input_statistics(inputs))


@pytest.mark.parametrize("kind", SHAPES)
def test_degraded_inputs_are_found_and_usual_ones_are_not(kind: str) -> None:
    shape = SHAPES[kind]
    measure, new = fitted(shape), usual(shape, 150, 2)
    assert np.mean([bool(reason) for reason in reasons(measure, new)]) <= 0.05
    for number, changed in degradations(new[:40]):
        if number in (0, 5):  # half the resolution of these smooth inputs, and their mirrored copies, are nearly usual
            continue
        found = reasons(measure, changed[:, 0] if len(shape) == 1 else changed)
        assert np.mean([bool(reason) for reason in found]) >= 0.9, number
    coarse = dict(degradations(new[:40]))[1]
    assert any("resolution" in reason for reason in reasons(measure, coarse[:, 0] if len(shape) == 1 else coarse))


@pytest.mark.parametrize("kind", SHAPES)
def test_a_blank_input_is_called_blank(kind: str) -> None:
    shape = SHAPES[kind]
    blank = torch.stack([torch.full(shape, value) for value in (0.0, 0.5, 1.0)])
    assert reasons(fitted(shape), blank) == ["blank: all values are equal"] * 3


@pytest.mark.parametrize("kind", ["image", "volume"])
def test_the_empty_border_changes_only_the_extents(kind: str) -> None:
    inputs = usual(SHAPES[kind], 3, 0) + 1  # nothing is 0
    padded = torch.nn.functional.pad(inputs, (4, 4, 2, 2))
    before, after = input_statistics(inputs), input_statistics(padded)
    extents = before.shape[1] - len(STATISTICS)
    np.testing.assert_allclose(after[:, extents:], before[:, extents:], atol=1e-5)
    assert (after[:, extents - 2 : extents] < 0).all() and (before[:, :extents] == 0).all()
    assert len(statistics_of(before.shape[1])) == before.shape[1]


def test_other_features_are_found_though_the_statistics_are_usual() -> None:
    measure, new = fitted(SHAPES["image"]), usual(SHAPES["image"], 20, 2)
    distances = measure.feature_distances(torch.from_numpy(features_of(new)) * 20).numpy()
    found = measure.reasons(distances, input_statistics(new))
    assert all("distance" in reason for reason in found)


def test_too_few_inputs_give_no_measure_and_damaged_ones_are_refused() -> None:
    train = usual(SHAPES["grey"], 30, 0)
    features, statistics = features_of(train), input_statistics(train)
    assert fit_unlike(features[:19], statistics[:19], features, statistics, train) is None
    assert fit_unlike(features, statistics, features[:4], statistics[:4], train) is None
    measure = fit_unlike(features, statistics, features[:6], statistics[:6], train)
    assert measure is not None
    state = measure.state_dict()
    assert set(state) == set(FIELDS)
    for name in FIELDS:
        with pytest.raises(SpaceError, match="damaged"):
            UnlikeMeasure(**{key: value for key, value in state.items() if key != name})
        with pytest.raises(SpaceError, match="damaged"):
            UnlikeMeasure(**{**state, name: state[name] * torch.nan})
        with pytest.raises(SpaceError, match="damaged"):
            UnlikeMeasure(**{**state, name: torch.zeros(7, 7, 7)})


SEEN = [
    ((2, 1, 60, 12, 12), (2, 1, 16, 12, 12)),
    ((2, 40, 3, 9, 9), (2, 16, 3, 9, 9)),
    ((2, 3, 50, 50), (2, 3, 50, 50)),
    ((2, 12, 90), (2, 12, 90)),
    ((2, 30), (2, 1, 30)),
]


@pytest.mark.parametrize(("shape", "seen"), SEEN)
def test_some_slices_of_deep_volumes_are_inspected(shape, seen):
    inputs = torch.rand(shape)
    some = thinned(inputs)
    assert tuple(some.shape) == seen and next(tuple(v.shape) for _, v in degradations(inputs)) == seen
    np.testing.assert_array_equal(input_statistics(inputs), input_statistics(some))
    assert torch.equal(some.reshape(2, -1)[:, 0], inputs.reshape(2, -1)[:, 0]), "the first slice is among them"
    assert torch.equal(some.reshape(2, -1)[:, -1], inputs.reshape(2, -1)[:, -1]), "and the last"
