"""Random loss of quality: per item, whatever the batch, and what each kind does."""

import pytest
import torch

from m3bind.models.compact_beat import RHYTHM, CompactBeat
from m3bind.models.layers import degrade
from m3bind.models.layers.augment import ItemRandom
from m3bind.models.layers.degrade import degraded

SHAPES = [(12, 100), (3, 32, 40), (1, 32, 32), (5, 16, 16), (1, 7, 12, 12), (1, 1, 1, 1)]
NUMBERS = torch.tensor([0.2, 0.9, 0.1, 0.6])


def batch_of(shape, n=24):
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shape", SHAPES)
def test_an_item_changes_alike_in_every_batch(shape):
    batch = batch_of(shape)
    before = batch.clone()
    out = degraded(batch, ItemRandom(7, range(24)), 1.0)
    part = degraded(batch[5:9], ItemRandom(7, range(5, 9)), 1.0)
    assert torch.equal(out[5:9], part) and torch.equal(batch, before)
    assert out.shape == batch.shape and bool(torch.isfinite(out).all())


def test_the_share_of_changed_items():
    batch = batch_of((3, 16, 16), 200)
    for probability in (0.0, 0.3, 1.0):
        out = degraded(batch, ItemRandom(1, range(200)), probability)
        share = (out != batch).flatten(1).any(1).float().mean()
        assert share == pytest.approx(probability, abs=0.15)


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_every_kind_grows_with_its_strength(axes):
    item = batch_of({1: (12, 100), 2: (3, 48, 48), 3: (1, 12, 40, 40)}[axes], 1).cumsum(-1)[0] / 24
    for kind in degrade.KINDS[axes]:
        weak, strong = ((kind(item, strength, NUMBERS) - item).square().mean() for strength in (0.5, 1.0))
        assert 0 < weak < strong, kind.__name__


def test_images_keep_their_range_and_grey_ones_stay_grey():
    grey = batch_of((1, 32, 32), 1)[0].expand(3, -1, -1)
    for kind in (degrade._colour, degrade._jpeg, degrade._resolution):
        out = kind(grey, 1.0, NUMBERS)
        assert grey.min() - 1e-4 <= out.min() and out.max() <= grey.max() + 1e-4, kind.__name__
        assert (out - out[:1]).abs().max() < 0.05, kind.__name__


def test_the_rhythm_of_an_ecg_is_unchanged():
    model = CompactBeat.__new__(CompactBeat)
    batch = batch_of((12 * 80 + RHYTHM,))
    out = CompactBeat.degrade(model, batch, ItemRandom(3, range(24)), 1.0)
    assert torch.equal(out[:, -RHYTHM:], batch[:, -RHYTHM:]) and bool((out != batch).any(1).all())
