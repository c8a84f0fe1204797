import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from m3bind.errors import ConfigError
from m3bind.training.contrastive import clip_loss, identical_positives, mixed_positives
from reference import losses as oracle
from reference.compare import assert_same, unit_rows

DIRECTIONS = ["both", "i2t", "t2i"]


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(("n", "d", "scale"), [(1, 3, 1.0), (2, 1, 14.0), (5, 4, 100.0), (7, 9, 3.0)])
def test_diagonal_equals_oracle(n, d, scale, direction, reduction):
    image, text = unit_rows(n, d, seed=n, count=2)
    temperature = torch.tensor(scale, dtype=torch.float64, requires_grad=True)
    assert_same(
        lambda: clip_loss(image, text, temperature, direction, None, reduction),
        lambda: oracle.clip_loss(image, text, temperature, direction, None, reduction),
        [image, text, temperature],
    )


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("ids", [["a", "a", "b", "c", "a"], ["x"] * 4, ["p", "q", "r"], ["u", "v", "u", "v", "w", "v"]])
def test_duplicates_equal_oracle_and_gathered_texts_equal_copies(ids, direction, reduction):
    distinct = sorted(set(ids))
    index = torch.tensor([distinct.index(name) for name in ids])
    image, texts = unit_rows(len(ids), 4, seed=1), unit_rows(len(distinct), 4, seed=2)
    positives = identical_positives(ids)
    assert positives.tolist() == [[a == b for b in ids] for a in ids]
    assert torch.equal(positives, identical_positives(index))
    assert_same(
        lambda: clip_loss(image, texts[index], 9.0, direction, positives, reduction),
        lambda: oracle.clip_loss(image, texts[index], 9.0, direction, positives, reduction),
        [image, texts],
    )


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize(("n", "k"), [(4, 4), (3, 6), (6, 2)])
def test_weights_rectangles_and_rows_without_positives(n, k, direction, reduction):
    image, text = unit_rows(n, 5, seed=3), unit_rows(k, 5, seed=4)
    weights = torch.rand(n, k, dtype=torch.float64, generator=torch.Generator().manual_seed(n))
    weights[weights < 0.4] = 0
    weights[0], weights[:, -1] = 0, 0
    assert_same(
        lambda: clip_loss(image, text, 6.0, direction, weights, reduction),
        lambda: oracle.clip_loss(image, text, 6.0, direction, weights, reduction),
        [image, text],
    )


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("with_positives", [False, True])
def test_ignored_pairs_leave_both_sums(direction, with_positives):
    image, text = unit_rows(5, 3, seed=5, count=2)
    ignore = torch.zeros(5, 5, dtype=torch.bool)
    ignore[0, 1] = ignore[1, 0] = ignore[2, 4] = True
    positives = torch.ones(5, 5) - 0.5 * torch.eye(5) if with_positives else None
    assert_same(
        lambda: clip_loss(image, text, 20.0, direction, positives, ignore=ignore),
        lambda: oracle.clip_loss(image, text, 20.0, direction, positives, ignore=ignore),
        [image, text],
    )


LABELS = st.lists(st.tuples(st.integers(0, 3), st.sampled_from([None, "x", "y"])), min_size=1, max_size=9)


@settings(max_examples=60, deadline=None)
@given(LABELS, st.sampled_from([0.0, 0.25, 0.5, 1.0]))
def test_mixed_positives_equal_oracle_and_are_doubly_stochastic(items, share):
    texts, labels = [text for text, _ in items], [label for _, label in items]
    targets = mixed_positives(texts, labels, share).double()
    torch.testing.assert_close(targets, oracle.mixed_positives(texts, labels, share), rtol=0, atol=1e-6)
    torch.testing.assert_close(targets, targets.T)
    torch.testing.assert_close(targets.sum(1), torch.ones(len(items), dtype=torch.float64), rtol=0, atol=1e-6)
    codes = torch.tensor([-1 if label is None else ord(label) for label in labels])
    assert torch.equal(targets.float(), mixed_positives(torch.tensor(texts), codes, share))


def test_mixed_positives_without_label_share_are_the_identical_ones():
    image, text = unit_rows(6, 4, seed=6, count=2)
    ids, labels = list("aabbcd"), list("xxxyyy")
    mixed = clip_loss(image, text, 5.0, positives=mixed_positives(ids, labels, 0.0))
    torch.testing.assert_close(
        mixed, clip_loss(image, text, 5.0, positives=identical_positives(ids)), rtol=1e-6, atol=0
    )


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 8), st.integers(0, 10**6), st.floats(0.01, 100), st.sampled_from(DIRECTIONS))
def test_laws(n, seed, factor, direction):
    image, text = unit_rows(n, 4, seed=seed, count=2)
    weights = torch.rand(n, n, generator=torch.Generator().manual_seed(seed)) + torch.eye(n)
    loss = clip_loss(image, text, 7.0, direction, weights)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed + 1))
    permuted = clip_loss(image[order], text[order], 7.0, direction, weights[order][:, order])
    torch.testing.assert_close(permuted, loss, rtol=1e-6, atol=1e-9)  # the batch has no order
    torch.testing.assert_close(clip_loss(image, text, 7.0, direction, weights * factor), loss, rtol=1e-5, atol=1e-6)
    other = {"both": "both", "i2t": "t2i", "t2i": "i2t"}[direction]
    torch.testing.assert_close(clip_loss(text, image, 7.0, other, weights.T), loss, rtol=1e-9, atol=1e-9)  # roles swap
    torch.testing.assert_close(clip_loss(image, text, 7.0, direction, weights, "sum"), loss * n, rtol=1e-9, atol=1e-9)
    assert loss >= 0


def test_half_precision_and_autocast_do_not_change_the_arithmetic():
    image, text = (x.detach().float() for x in unit_rows(16, 32, seed=7, count=2))
    exact = clip_loss(image, text, 100.0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(clip_loss(image, text, 100.0), exact)
    assert clip_loss(image.bfloat16(), text.bfloat16(), 100.0).dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"direction": "up"}, "unknown direction 'up'"),
        ({"reduction": "max"}, "unknown reduction 'max'"),
        ({"text": torch.ones(3, 5)}, "one d"),
        ({"text": torch.ones(2, 4)}, "3 images and 2 texts need `positives`"),
        ({"positives": torch.ones(3, 2)}, r"`positives` has shape \(3, 2\)"),
        ({"ignore": torch.ones(2, 3, dtype=torch.bool)}, "`ignore` has shape"),
    ],
)
def test_wrong_use(change, words):
    arguments = {"image": torch.ones(3, 4), "text": torch.ones(3, 4), "scale": 1.0, **change}
    with pytest.raises(ConfigError, match=words):
        clip_loss(**arguments)


def test_mixed_positives_wrong_use():
    with pytest.raises(ConfigError, match="2 texts but 1 labels"):
        mixed_positives(["a", "b"], ["x"])
    with pytest.raises(ConfigError, match=r"outside \[0, 1\]"):
        mixed_positives(["a"], ["x"], 1.5)
