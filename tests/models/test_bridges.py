"""Bridges of every kind: their outputs, computed naively; settings and tensors rebuild them."""

import json
import math

import pytest
import torch
from torch.nn.functional import normalize

from m3bind.align.procrustes import Bridge, orthonormal_map
from m3bind.errors import UnknownNameError
from m3bind.models.bridges import Affine, Head, Relative, Sided, TwoMaps, freeze, restore


def rows(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)), dim=-1)


def trained_head(**options) -> Head:
    torch.manual_seed(1)
    head = Head(5, 8, 12, **options)
    head.offset_image.copy_(0.1 * torch.randn(5))
    head.train()
    head.text(rows(30, 5))  # BatchNorm statistics that are not the initial ones
    return head


def relative() -> Relative:
    bridge = Relative(rows(8, 5, 1))
    bridge.calibrate(rows(40, 5, 2), rows(30, 5, 3) + 0.2)
    return bridge


def sided() -> Sided:
    first, second, third = (Affine(torch.randn(8, 8), torch.randn(8)) for _ in range(3))
    before = Affine(torch.randn(5, 5)), Affine(torch.randn(5, 5))
    return Sided(Bridge(orthonormal_map(5, 8)), [first, second], [third], before)


KINDS = [
    lambda: Bridge(orthonormal_map(5, 8)),
    lambda: TwoMaps(orthonormal_map(5, 8)),
    relative,
    trained_head,
    lambda: trained_head(blocks=2, stem=True, activation="gelu"),
    sided,
    lambda: Sided(sided(), [Affine(torch.eye(8), torch.ones(8))]),
]


@pytest.mark.parametrize("make", KINDS)
def test_settings_and_tensors_rebuild_a_bridge(make):
    bridge = freeze(make())
    settings = json.loads(json.dumps(bridge.settings()))
    again = restore(bridge.kind, settings)
    again.load_state_dict(bridge.state_dict())
    freeze(again)
    x = rows(7, 5, 4)
    assert (again.source, again.dim) == (bridge.source, bridge.dim) == (5, 8)
    assert torch.equal(again.image(x), bridge.image(x)) and torch.equal(again.text(x), bridge.text(x))
    for out in (bridge.image(x), bridge.text(x)):
        torch.testing.assert_close(out.norm(dim=1), torch.ones(7))
    assert not any(p.requires_grad for p in bridge.parameters())


def test_a_linear_bridge_has_one_map_for_both_sides():
    bridge, x = Bridge(orthonormal_map(5, 8)), rows(6, 5)
    assert torch.equal(bridge.image(x), bridge(x)) and torch.equal(bridge.text(x), bridge(x))


def test_sides_have_steps_of_their_own_before_and_after():
    bridge, x = sided(), rows(6, 5)
    inner, (first, second), third = bridge.inner, bridge.after_image, bridge.after_text[0]

    def step(affine, y):
        return normalize(y @ affine.weight + affine.bias, dim=-1)

    torch.testing.assert_close(bridge.image(x), step(second, step(first, inner(step(bridge.before[0], x)))))
    torch.testing.assert_close(bridge.text(x), step(third, inner(step(bridge.before[1], x))))


def test_relative_is_the_z_scored_cosine_to_each_anchor():
    anchors, images, texts, x = rows(3, 5, 1), rows(20, 5, 2), rows(10, 5, 3), rows(4, 5, 4)
    bridge = Relative(anchors)
    bridge.calibrate(images, texts)
    for side, sample in ((bridge.image, images), (bridge.text, texts)):
        got = side(x)
        for i in range(4):
            naive = []
            for a in range(3):
                known = [float(sample[k] @ anchors[a]) for k in range(len(sample))]
                mean = sum(known) / len(known)
                std = math.sqrt(sum((v - mean) ** 2 for v in known) / len(known))
                naive.append((float(x[i] @ anchors[a]) - mean) / std)
            naive = torch.tensor(naive)
            torch.testing.assert_close(got[i], naive / naive.norm(), rtol=1e-4, atol=1e-4)


def test_relative_does_not_see_a_rotation_of_the_tower():
    turn = orthonormal_map(5, 5, 3).float()
    anchors, images, texts, x = rows(6, 5, 1), rows(20, 5, 2), rows(10, 5, 3), rows(4, 5, 4)
    plain, turned = Relative(anchors), Relative(anchors @ turn)
    plain.calibrate(images, texts)
    turned.calibrate(images @ turn, texts @ turn)
    torch.testing.assert_close(turned.image(x @ turn), plain.image(x), rtol=1e-4, atol=1e-4)


def test_an_anchor_that_does_not_vary_gives_no_infinities():
    bridge = Relative(torch.eye(3, 5))
    bridge.calibrate(torch.eye(4, 5)[3:].repeat(6, 1), rows(6, 5))
    assert torch.isfinite(bridge.image(rows(4, 5))).all()


def test_the_stem_of_a_head_starts_as_the_identity_and_offsets_are_per_side():
    head = freeze(trained_head(blocks=2, stem=True))
    x = rows(6, 5)
    assert torch.equal(head.stem.weight, torch.eye(5))
    torch.testing.assert_close(head.image(x), normalize(head.net(x - head.offset_image), dim=-1))
    torch.testing.assert_close(head.text(x), normalize(head.net(x), dim=-1))


def test_an_unknown_kind_is_named():
    with pytest.raises(UnknownNameError, match="relativ"):
        restore("relativ", {})
