"""Batches, folded copies of networks, the choice of precision."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from m3bind.encode import towers as _towers
from m3bind.encode.towers import (
    BATCH,
    BATCH_CONVOLUTIONS,
    Batches,
    TowerRunner,
    Towers,
    arithmetic,
    batch_size,
    choose,
    fuse_conv_bn,
)
from m3bind.space.bundle import Space
from space import tiny


class Activated(nn.BatchNorm2d):
    """A normalisation that applies an activation, as timm's do."""

    def __init__(self, width):
        super().__init__(width)
        self.drop, self.act = nn.Identity(), nn.ReLU()

    def forward(self, x):
        return self.act(self.drop(super().forward(x)))


class Trunk(nn.Module):
    """Convolutions with normalisations that can be folded (two), and one that cannot."""

    def __init__(self):
        super().__init__()
        self.first, self.one = nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.second, self.two = nn.Conv2d(8, 8, 3), Activated(8)
        self.third, self.three, self.out = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.Linear(8, 32)

    def forward(self, x):
        x = self.one(self.first(x[:, None])).tanh()
        x = self.two(self.second(x))
        y = self.third(x).relu()  # what is normalised is no convolution's output
        return self.out((self.three(y) + x).mean((2, 3)))


@pytest.fixture
def space():
    """Modality "grey" has convolutions whose normalisations have seen data."""
    made = tiny.make_space(distilled=False)
    model = made.model("grey")
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model.image_trunk = Trunk()
        model.train()
        for _ in range(3):
            model.image_trunk(torch.rand(16, 8, 8) * 3)
        for norm in (model.image_trunk.one, model.image_trunk.two, model.image_trunk.three):
            nn.init.uniform_(norm.weight, 0.5, 2)
            nn.init.normal_(norm.bias)
    model.eval()
    return made


INPUTS = list(torch.rand(10, 8, 8, generator=torch.Generator().manual_seed(5)))


def test_folding_changes_neither_the_embeddings_nor_the_model(space):
    model = space.model("grey")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    fast = fuse_conv_bn(model, INPUTS[0][None])
    kinds = [type(module) for module in fast.image_trunk.modules() if isinstance(module, nn.BatchNorm2d)]
    assert kinds == [nn.BatchNorm2d]  # the third stays
    with torch.inference_mode():
        torch.testing.assert_close(fast.image_trunk(torch.stack(INPUTS)), model.image_trunk(torch.stack(INPUTS)))
    assert fast.text_trunk is model.text_trunk and isinstance(fast.image_trunk.two[1], nn.ReLU)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_folding_is_chosen_where_it_changes_nothing_else_the_network_stays(space):
    decision, why = choose(space, "grey", INPUTS, "auto")
    assert decision["folded"] and "grey: float32" in why
    assert choose(space, "other", INPUTS, "auto")[0]["folded"] is False  # no convolution
    assert (batch_size(space, "grey"), batch_size(space, "other")) == (BATCH_CONVOLUTIONS, BATCH)


class Twice(Trunk):
    """A convolution whose weights are used a second time."""

    def forward(self, x):
        return super().forward(x) + self.first.weight.sum()


class Whole(Trunk):
    """A network that cannot be copied."""

    def __deepcopy__(self, memo):
        raise TypeError


@pytest.mark.parametrize("kind", [Twice, Whole])
def test_a_network_that_folding_would_change_stays_as_it_is(space, kind):
    space.model("grey").image_trunk.__class__ = kind
    assert choose(space, "grey", INPUTS, "auto")[0]["folded"] is False


@pytest.mark.parametrize(
    ("cosine", "speed", "dtype"), [(1.1, 9, "float32"), (0.9, 9, "bfloat16"), (0.9, 0.1, "float32")]
)
def test_bfloat16_is_chosen_where_it_is_faster_and_close_enough(space, monkeypatch, cosine, speed, dtype):
    monkeypatch.setattr(_towers, "compute_dtype", lambda *_: torch.bfloat16)
    monkeypatch.setattr(_towers, "MIN_COSINE", cosine)
    monkeypatch.setattr(_towers, "_seconds", lambda tower, _: 1.0 if tower._dtype is torch.float32 else 1 / speed)
    decision, why = choose(space, "grey", INPUTS, "auto")
    assert decision["dtype"] == dtype and f"{speed:.2f}x as fast, smallest cosine 0.99" in why


def test_the_requested_precision_is_that_of_the_computation(space):
    decision, _ = choose(space, "grey", INPUTS, "bfloat16")
    seen = []
    space.model("grey").image_head.register_forward_hook(lambda _, __, output: seen.append(output.dtype))
    exact = space.encode_inputs(INPUTS, "grey")
    rough = TowerRunner(space, "grey", decision, INPUTS[0]).encode(INPUTS)
    assert seen == [torch.float32, torch.bfloat16] and rough.dtype == np.float32
    assert 1e-6 < np.abs(rough - exact).max() < 0.05


def test_threads_and_precision_of_products_are_put_back():
    before = torch.get_num_threads(), torch.get_float32_matmul_precision()
    with arithmetic(before[0] + 1):
        assert torch.get_num_threads() == before[0] + 1 and torch.get_float32_matmul_precision() == "highest"
    assert (torch.get_num_threads(), torch.get_float32_matmul_precision()) == before


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 4)), max_size=60), st.integers(1, 7))
def test_batches_hold_every_input_once_in_order_one_kind_and_within_the_limit(stream, most):
    batches = Batches[int](dict.fromkeys("ab", most))
    out = [b for n, (m, side) in enumerate(stream) for b in batches.add(m, n, torch.full((side,), float(n)))]
    full = len(out)
    out += batches.flush()
    assert sorted(place for _, places, _ in out for place in places) == list(range(len(stream)))
    for number, (modality, places, inputs) in enumerate(out):
        assert places == sorted(places) and len(places) == most if number < full else len(places) < most
        assert {stream[place] for place in places} == {(modality, len(inputs[0]))}
        assert [int(value[0]) for value in inputs] == places


def test_large_inputs_make_small_batches_and_many_shapes_do_not_pile_up(monkeypatch):
    monkeypatch.setattr(_towers, "BATCH_BYTES", 400)
    batches = Batches[int]({"ct": 10})
    assert [len(b[1]) for n in range(8) for b in batches.add("ct", n, torch.zeros(50))] == [2, 2, 2, 2]
    for side in range(1, 60):
        list(batches.add("ct", side, torch.zeros(side)))
        assert batches._bytes <= 4 * 400


def test_one_bad_input_does_not_take_its_batch_along(space):
    inputs = [*INPUTS[:3], INPUTS[3] * torch.nan, *INPUTS[4:6]]
    with Towers[int](
        lambda m, some: TowerRunner(space, m, {"dtype": "float32", "folded": False}, some[0]), 2
    ) as towers:
        assert list(towers.run(("grey", list(range(6)), inputs))) == []
        found = dict(towers.rest())
    assert "not finite" in found[3] and isinstance(space, Space)
    expected = space.encode_inputs(INPUTS[:6], "grey")
    for place in (0, 1, 2, 4, 5):
        np.testing.assert_allclose(found[place].row, expected[place], atol=1e-6)


@pytest.mark.parametrize("name", ["grey", "other"])
def test_rows_of_a_rounded_tower_are_unit_rows_bridged_in_float32(name):
    made = tiny.make_space(distilled=False)
    inputs = list(torch.rand(9, 8, 8, generator=torch.Generator().manual_seed(0)))
    rows = TowerRunner(made, name, {"dtype": "bfloat16", "folded": False}, inputs[0]).encode(inputs)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        own = made.model(name).encode_image(torch.stack(inputs))
    own = own.float() / own.float().norm(dim=1, keepdim=True)
    np.testing.assert_allclose(rows, made.project(own.numpy(), name), atol=1e-6)
