"""Search by visit over galleries of several sizes, against a loop; and through text."""

import numpy as np
import pytest

from m3bind.errors import ConfigError
from m3bind.evaluate.cross_modal import pairs_of, through_text, visit_retrieval_rows
from m3bind.evaluate.results import Context


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def some(count: int, noise: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    left = unit(rng.normal(size=(count, 16)))
    return left, unit(left + noise * rng.normal(size=(count, 16)))


def visits(count: int) -> list[str]:
    return [f"v{i}" for i in range(count)]


def test_full_gallery_equals_a_loop() -> None:
    left, right = some(60, 0.6)
    rows = visit_retrieval_rows(
        left,
        right[::-1],
        (visits(60), visits(60)[::-1]),
        (visits(60), visits(60)),
        Context(),
        galleries=(0,),
        resamples=20,
    )
    found = {row.metric: row for row in rows}
    cosines = left @ right.T
    ranks = 1 + (cosines > np.diag(cosines)[:, None] + 1e-9).sum(1)
    for k in (1, 5, 10):
        assert found[f"R@{k}"].value == pytest.approx((ranks <= k).mean())
        assert found[f"R@{k}"].chance == pytest.approx(k / 60)
        assert found[f"R@{k}"].gallery == 60
    assert found["mrr"].value == pytest.approx((1 / ranks).mean(), abs=1e-6)


def test_smaller_galleries_are_easier_and_state_their_chance() -> None:
    left, right = some(300, 0.5)
    rows = visit_retrieval_rows(
        left, right, (visits(300), visits(300)), (visits(300), visits(300)), Context(), resamples=20
    )
    by = {(row.variant, row.metric): row for row in rows}
    assert by["gallery=72", "R@1"].n == 288
    assert by["gallery=128", "R@1"].n == 256
    assert by["gallery=72", "R@10"].chance == pytest.approx(10 / 72)
    assert by["gallery=72", "R@1"].value > by["gallery=128", "R@1"].value > by["gallery=all", "R@1"].value
    again = visit_retrieval_rows(
        left, right, (visits(300), visits(300)), (visits(300), visits(300)), Context(), resamples=20
    )
    assert [row.value for row in again] == [row.value for row in rows]


def test_unrelated_towers_are_at_chance() -> None:
    left, _ = some(640, 0.0)
    right, _ = some(640, 0.0, seed=1)
    rows = visit_retrieval_rows(
        left, right, (visits(640), visits(640)), (visits(640), visits(640)), Context(), (128,), resamples=200
    )
    row = next(row for row in rows if row.metric == "R@10")
    assert row.ci_low <= row.chance <= row.ci_high


def test_one_file_per_visit_enters_and_visits_of_one_side_are_left_out() -> None:
    pairs = pairs_of(["a", "a", "b", "", "c"], ["b", "a", "x", ""], seed=0)
    assert sorted((["a", "a", "b", "", "c"][i], ["b", "a", "x", ""][j]) for i, j in pairs) == [("a", "a"), ("b", "b")]
    with pytest.raises(ConfigError, match="1 visits have both"):
        visit_retrieval_rows(np.eye(2), np.eye(2), (["a", "b"], ["a", "c"]), (["p", "q"], ["p", "q"]), Context())


def test_gap_correction_subtracts_each_sides_mean() -> None:
    left, right = some(80, 0.5)
    means = left[:20].mean(0) + 0.3, right[:20].mean(0) - 0.2
    both = (visits(80), visits(80))
    rows = visit_retrieval_rows(left, right, both, (visits(80), visits(80)), Context(), (0,), means, resamples=20)
    by_hand = unit(left - means[0]), unit(right - means[1])
    expected = visit_retrieval_rows(*by_hand, both, (visits(80), visits(80)), Context(), (0,), resamples=20)
    assert rows[0].variant == "gallery=all, gap-corrected"
    assert [row.value for row in rows] == pytest.approx([row.value for row in expected])


def test_through_text_describes_an_image_by_its_nearest_texts() -> None:
    bank = np.eye(8)
    image = unit(np.array([[1.0, 0.1, 0, 0, 0, 0, 0, 0]]))
    said = through_text(image, bank, k=1)
    assert np.allclose(said, bank[:1])
    several = through_text(image, bank, k=3)
    assert several[0, 0] > several[0, 1] > 0
    assert np.linalg.norm(several) == pytest.approx(1)
