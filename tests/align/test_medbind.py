"""MedBind's losses against their printed form, and its recipes on toys and virtual patients."""

import math

import pytest
import torch

from m3bind.align import methods
from m3bind.align.methods.medbind import SCALE, MedBindStage, emcl_loss, share_text_tower
from m3bind.align.methods.procrustes import initial_bridges
from m3bind.config import AlignConfig, load_config
from m3bind.errors import ConfigError
from toys import toy_inputs, toy_pairs

SIZES = {"xray": 40, "ecg": 24}
BASE = {"dim": 12, "steps": 20, "batch": 8, "shared_batch": 4, "lr": 1e-2, "bridge": "identity"}


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    rows = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(rows, dim=-1)


def printed_emcl(c: torch.Tensor, e: torch.Tensor, n: int) -> torch.Tensor:
    m, total = len(c), torch.zeros((), dtype=torch.float64)
    for a, b in ((c, e), (e, c)):
        for u in range(m):
            below = sum(torch.exp(a[u] @ b[q] * SCALE) for q in range(m)) * (n / m)
            total = total - torch.log(torch.exp(a[u] @ b[u] * SCALE) / below)
    return total


def printed_tmcl(text: torch.Tensor, z: torch.Tensor, ids: list[int]) -> torch.Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for a, b in ((text, z), (z, text)):
        for i in range(len(a)):
            same = [p for p in range(len(a)) if ids[p] == ids[i]]
            below = sum(torch.exp(a[i] @ b[q] * SCALE) for q in range(len(a)))
            total = total - sum(torch.log(torch.exp(a[i] @ b[p] * SCALE) / below) for p in same) / len(same)
    return total


def test_emcl_is_the_printed_form_and_its_factor_has_no_gradient() -> None:
    c, e = unit(5, 6).requires_grad_(), unit(5, 6, seed=1)
    loss = emcl_loss(c, e, 12)
    torch.testing.assert_close(loss, printed_emcl(c, e, 12))
    (gradient,) = torch.autograd.grad(loss, c)
    torch.testing.assert_close(gradient, torch.autograd.grad(emcl_loss(c, e, 5), c)[0])
    assert float(loss - emcl_loss(c, e, 5)) == pytest.approx(10 * math.log(12 / 5))


def stage_of(tmp_path, edges: bool, **settings):
    pairs = toy_pairs(SIZES, joint_dim=8)
    inputs = toy_inputs(pairs, tmp_path)
    align = AlignConfig(**BASE, text="head", image="head", **settings)
    share_text_tower(pairs)
    return pairs, MedBindStage(inputs, initial_bridges(inputs, align), align, edges)


def test_a_step_is_tmcl_of_each_modality_and_emcl_of_shared_patients(tmp_path) -> None:
    pairs, stage = stage_of(tmp_path, edges=True)
    found = stage.losses(stage.batch(3))
    for m, p in pairs.items():
        indices = stage.samplers[m].batch(3)
        captions = p.draw_captions(indices, stage.seed, 3)
        with torch.no_grad():
            image = stage.bridges[m](p.images.embed(indices)).double()
            text = stage.bridges[m](p.texts.embed(captions)).double()
        want = printed_tmcl(text, image, captions.tolist())
        torch.testing.assert_close(found[f"tmcl/{m}"].double(), want, rtol=1e-5, atol=1e-5)
    both, sampler = stage.edges["xray", "ecg"]
    assert len(both) == 24 and all(pairs["xray"].patients[a] == pairs["ecg"].patients[b] for a, b in both)
    rows = both[sampler.batch(3)]
    with torch.no_grad():
        a, b = (
            stage.bridges[m](pairs[m].images.embed(rows[:, k].copy())).double() for k, m in enumerate(("xray", "ecg"))
        )
    torch.testing.assert_close(found["emcl/xray-ecg"].double(), printed_emcl(a, b, 8), rtol=1e-5, atol=1e-5)
    total = sum(value for name, value in found.items() if name != "loss")
    torch.testing.assert_close(found["loss"], total)


@pytest.mark.parametrize("name", ["medbind_nm", "medbind_bd"])
@pytest.mark.parametrize("text", ["head", "lora"])
def test_training_shares_one_text_tower_and_draws_patients_together(tmp_path, name, text) -> None:
    pairs = toy_pairs(SIZES, joint_dim=8)
    settings = AlignConfig(**BASE, text=text, image="head")
    inputs = toy_inputs(pairs, tmp_path)
    bridges = methods.get(name).bind(inputs, settings)
    assert pairs["xray"].model.text_trunk is pairs["ecg"].model.text_trunk
    assert not any("lora" in key for p in pairs.values() for key in p.model.state_dict())
    ids = torch.arange(10)
    with torch.no_grad():
        texts = [bridges[m](p.texts.embed(ids.numpy())) for m, p in pairs.items()]
    torch.testing.assert_close(*texts)
    again = toy_pairs(SIZES, joint_dim=8)
    methods.get(name).bind(toy_inputs(again, tmp_path), settings)  # finished: loaded, not trained
    for m in SIZES:
        for key, value in pairs[m].model.state_dict().items():
            torch.testing.assert_close(again[m].model.state_dict()[key], value, atol=1e-6, rtol=1e-5)


def test_what_cannot_be_shared_or_paired_is_reported(tmp_path) -> None:
    with pytest.raises(ConfigError, match="same text tower"):
        share_text_tower(toy_pairs(SIZES))
    pairs = toy_pairs(SIZES, joint_dim=8)
    pairs["ecg"].patients = [f"other{i}" for i in range(24)]
    inputs = toy_inputs(pairs, tmp_path)
    align = AlignConfig(**BASE)
    with pytest.raises(ConfigError, match="use medbind_nm"):
        MedBindStage(inputs, initial_bridges(inputs, align), align, True)


@pytest.mark.parametrize("name", ["medbind_nm", "medbind_bd"])
def test_recipes_are_valid(name) -> None:
    config = load_config(name)
    assert list(config.modalities) == ["xray", "ecg"] and config.align.method == name
    assert name in methods.names()
