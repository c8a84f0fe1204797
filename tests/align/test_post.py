"""Post steps: what each does to means, spreads, axes and cosines, and IsoCLIP against its form on features."""

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from m3bind.align.post import GAPS, after, gap_steps, iso_maps, linear_projectors
from m3bind.align.procrustes import Bridge, identity_map, orthonormal_map
from m3bind.config import PostConfig
from m3bind.errors import ConfigError, UnknownNameError
from pretend.device import DEVICE, pretend_device
from toys import ToyEncoder


def cloud(n: int, d: int, seed: int, shift: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    spread = torch.linspace(1, 0.2, d)
    return normalize(torch.randn(n, d, generator=generator) * spread + shift, dim=-1)


def moved(steps, rows: torch.Tensor) -> torch.Tensor:
    for step in steps:
        rows = step(rows)
    return rows


@pytest.fixture
def pair():
    return cloud(200, 6, 0, 0.5), cloud(200, 6, 1, -0.4)


def test_centring_subtracts_each_sides_own_mean(pair):
    steps = gap_steps("centre", *pair)
    for side, rows in zip(steps, pair):
        torch.testing.assert_close(moved(side, rows), normalize(rows - rows.mean(0), dim=-1))


def test_rotation_recovers_a_planted_one_and_brings_the_mean_to_the_texts():
    texts = cloud(80, 5, 2, 0.3)
    turn = orthonormal_map(5, 5, 4).float()
    gap = torch.tensor([0.2, -0.1, 0.3, 0.0, 0.1])
    images = texts @ turn + gap  # not unit rows, but a rotation and a shift exactly
    to_images, to_texts = gap_steps("rotate", images, texts)
    assert to_texts == []
    torch.testing.assert_close(moved(to_images, images), texts, rtol=1e-4, atol=1e-5)


def test_realignment_gives_images_the_texts_mean_and_spread(pair):
    images, texts = pair
    (first, second), to_texts = gap_steps("realign", images, texts)
    assert to_texts == []
    raw = images @ first.weight + first.bias
    torch.testing.assert_close(raw.mean(0), texts.mean(0), rtol=1e-4, atol=1e-5)
    trace = [(rows - rows.mean(0)).square().sum(1).mean() for rows in (raw, texts)]
    torch.testing.assert_close(*trace, rtol=1e-4, atol=1e-5)
    centred = first(images) @ second.weight + second.bias
    torch.testing.assert_close(centred.mean(0), texts.mean(0), rtol=1e-4, atol=1e-5)


def test_the_first_axes_are_removed_by_pc(pair):
    steps = gap_steps("pc", *pair, components=2)
    for side, rows in zip(steps, pair):
        centred = rows - rows.mean(0)
        axes = torch.linalg.svd(centred.double(), full_matrices=False)[2].float()
        out = rows @ side[0].weight + side[0].bias
        torch.testing.assert_close(out @ axes[:2].T, torch.zeros(200, 2), atol=1e-5, rtol=0)
        torch.testing.assert_close(out @ axes[2:].T, centred @ axes[2:].T, atol=1e-5, rtol=1e-4)
    with pytest.raises(ConfigError, match="leave at least one"):
        gap_steps("pc", *pair, components=6)


def test_none_is_nothing_and_an_unknown_step_is_named(pair):
    assert gap_steps("none", *pair) == ([], [])
    with pytest.raises(UnknownNameError, match="center"):
        gap_steps("center", *pair)


@pytest.mark.parametrize(("dim", "p", "q"), [(6, 9, 8), (6, 4, 7), (5, 5, 5), (6, 4, 3)])
def test_isoclip_on_embeddings_is_isoclip_on_features(dim, p, q):
    torch.manual_seed(0)
    image, text = torch.randn(dim, p, dtype=torch.float64), torch.randn(dim, q, dtype=torch.float64)
    u, _, vt = torch.linalg.svd(image.T @ text)
    rank = min(dim, p, q)
    kept = slice(1, rank - 1)
    for maps, weight, axes, width in zip(iso_maps(image, text, 1, 1), (image, text), (u, vt.T), (p, q)):
        features = torch.randn(20, width, dtype=torch.float64)
        on_features = features @ (weight @ axes[:, kept] @ axes[:, kept].T).T
        on_embeddings = (features @ weight.T) @ maps.double()
        torch.testing.assert_close(on_embeddings, on_features, rtol=1e-4, atol=1e-4)
    with pytest.raises(ConfigError, match="leave some over"):
        iso_maps(image, text, rank, 0)


def test_a_bridge_with_post_steps_applies_them_to_what_it_gives():
    torch.manual_seed(0)
    model = ToyEncoder(joint_dim=6)
    bridge = Bridge(identity_map(6, 8))
    images, texts = cloud(50, 6, 0, 0.5), cloud(50, 6, 1, -0.4)
    assert after(bridge, PostConfig(), images, texts, model) is bridge
    for gap in GAPS[1:]:
        made = after(bridge, PostConfig(gap=gap), images, texts, model)
        steps = gap_steps(gap, bridge.image(images), bridge.text(texts))
        torch.testing.assert_close(made.image(images), moved(steps[0], bridge.image(images)))
        torch.testing.assert_close(made.text(texts), moved(steps[1], bridge.text(texts)))
    both = after(bridge, PostConfig(gap="centre", iso=(1, 1)), images, texts, model)
    maps = iso_maps(model.image_head.weight, model.text_head.weight, 1, 1)
    inner = bridge.image(normalize(images @ maps[0], dim=-1))
    torch.testing.assert_close(both.image(images), normalize(inner - inner.mean(0), dim=-1), rtol=1e-4, atol=1e-5)


def test_isoclip_needs_linear_projectors():
    model = ToyEncoder(joint_dim=6)
    assert linear_projectors(model) is not None
    model.image_head = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 6))
    assert linear_projectors(model) is None
    rows = cloud(10, 6, 0, 0.1)
    with pytest.raises(ConfigError, match="linear projectors"):
        after(Bridge(identity_map(6, 6)), PostConfig(iso=(1, 1)), rows, rows, model)


@pytest.mark.parametrize("iso", [None, (1, 0)])
@pytest.mark.parametrize("gap", GAPS)
def test_a_device_without_float64_gives_the_same_steps(pair, gap, iso):
    settings, model = PostConfig(gap=gap, iso=iso), ToyEncoder()
    bridge = Bridge(identity_map(6, 8))
    theirs = after(bridge, settings, *pair, model)
    expected = [theirs.image(pair[0]), theirs.text(pair[1])]
    with pretend_device(float64=False):
        model.to(DEVICE)
        sides = [rows.to(DEVICE) for rows in pair]
        ours = after(bridge.to(DEVICE), settings, *sides, model)
        got = [ours.image(sides[0]).cpu(), ours.text(sides[1]).cpu()]
    for rows, same in zip(got, expected, strict=True):
        torch.testing.assert_close(rows, same, rtol=0, atol=1e-6)
