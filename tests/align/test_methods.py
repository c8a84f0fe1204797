"""Every binding method on toys: unit rows on both sides, towers unchanged, options, resume, documented properties."""

import copy

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from m3bind.align import methods
from m3bind.align.procrustes import procrustes
from m3bind.config import AlignConfig
from m3bind.errors import ConfigError, UnknownNameError
from toys import toy_inputs, toy_pairs

SIZES = {"xray": 60, "ct": 30, "ecg": 40}
BASE = {"dim": 12, "pool": 200}
QUICK = {"steps": 60, "batch": 32, "lr": 1e-2}
ON_EMBEDDINGS = {
    "procrustes": {},
    "relative": {},
    "cmcr": {**QUICK, "noise": 0.1},
    "exmcr": {**QUICK, "noise": 0.1},
    "textme": {**QUICK, "warm": 10},
    "medbind_bridges": {**QUICK, "batch": 8},
}


def related_pairs(sizes=SIZES) -> dict:
    """Pairs whose text towers see one hidden configuration, each turned and disturbed; images lie near their texts."""
    pairs = toy_pairs(sizes, image="embedding", text="embedding", joint_dim=10)
    random = np.random.default_rng(0)
    hidden = random.standard_normal((len(pairs["xray"].texts.table), 10))
    for p in pairs.values():
        seen = hidden @ np.linalg.qr(random.standard_normal((10, 10)))[0] + 0.4 * random.standard_normal(hidden.shape)
        p.texts._compute = _unit(seen).__getitem__
        own = seen[np.concatenate(p.captions)]
        p.images._rows = _unit(own + 0.4 * random.standard_normal(own.shape) + 0.5)
    return pairs


def _unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def bound(name, folder, pairs=None, **options):
    pairs = pairs or related_pairs()
    settings = AlignConfig(**BASE, method=name, options=ON_EMBEDDINGS.get(name, {}) | options)
    return pairs, methods.get(name).bind(toy_inputs(pairs, folder), settings)


@torch.no_grad()
def agreement(pairs, bridges) -> float:
    """Share of texts whose nearest text in another tower is the same text, mean over ordered pairs of towers."""
    ids = torch.arange(len(pairs["xray"].texts.table))
    towers = [bridges[m].text(p.texts.embed(ids.numpy())) for m, p in pairs.items()]
    hits = [((a @ b.T).argmax(1) == ids).float().mean() for a in towers for b in towers if a is not b]
    return float(torch.stack(hits).mean())


def test_all_methods_are_known_and_say_what_they_read():
    assert {*ON_EMBEDDINGS, "m3bind", "medbind_nm", "medbind_bd"} == set(methods.names())
    assert {n for n in methods.names() if not methods.get(n).towers} == set(ON_EMBEDDINGS)


@pytest.mark.parametrize("name", ON_EMBEDDINGS)
def test_a_method_on_embeddings_binds_both_sides_and_leaves_the_towers(name, tmp_path):
    pairs = related_pairs()
    before = {m: copy.deepcopy(p.model.state_dict()) for m, p in pairs.items()}
    pairs, bridges = bound(name, tmp_path / "a", pairs)
    for m, p in pairs.items():
        assert (bridges[m].source, bridges[m].dim) == (p.model.joint_dim, 12)
        with torch.no_grad():
            image = bridges[m].image(p.images.embed(np.arange(len(p))))
            text = bridges[m].text(p.texts.embed(np.arange(20)))
        for rows in (image, text):
            torch.testing.assert_close(rows.norm(dim=1), torch.ones(len(rows)))
        assert not bridges[m].training or name == "procrustes"
        assert all(torch.equal(v, before[m][k]) for k, v in p.model.state_dict().items())
    _, again = bound(name, tmp_path / "a")  # finished: loaded, not trained
    for m in SIZES:
        for key, value in bridges[m].state_dict().items():
            torch.testing.assert_close(again[m].state_dict()[key], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", [n for n in ON_EMBEDDINGS if n != "medbind_bridges"])
def test_the_towers_agree_on_texts_far_above_chance(name, tmp_path):
    pairs, bridges = bound(name, tmp_path)
    chance = 1 / len(pairs["xray"].texts.table)
    assert agreement(pairs, bridges) > 10 * chance


@pytest.mark.parametrize("name", ON_EMBEDDINGS)
def test_an_option_that_is_unknown_or_of_the_wrong_type_is_refused(name):
    method = methods.get(name)
    with pytest.raises(UnknownNameError, match=f"option of the binding method {name}"):
        method.options(AlignConfig(options={"tauu": 1}))
    for key, default in method.defaults.items():
        wrong = 3 if isinstance(default, str | bool) else "three"
        with pytest.raises(ConfigError, match=rf"align.options.{key}"):
            method.options(AlignConfig(options={key: wrong}))
        assert method.options(AlignConfig(options={key: default})) == dict(method.defaults)


def test_procrustes_keeps_cosines_unless_means_are_put_back(tmp_path):
    pairs, plain = bound("procrustes", tmp_path)
    _, fit = bound("procrustes", tmp_path, center="fit")
    _, again = bound("procrustes", tmp_path, center="fit+readd")
    means = {}
    for m, p in pairs.items():
        image, text = p.images.embed(np.arange(len(p))), p.texts.embed(np.arange(20))
        with torch.no_grad():
            for bridge in (plain[m], fit[m]):
                torch.testing.assert_close(bridge.image(image) @ bridge.text(text).T, image @ text.T, atol=1e-5, rtol=0)
            inner = again[m].inner
            torch.testing.assert_close(inner.weight, fit[m].weight)
            unnormalised = inner.image(image) + again[m].after_image[0].bias
            torch.testing.assert_close(again[m].image(image), normalize(unnormalised, dim=1))
            means[m] = unnormalised.mean(0)
    for m in pairs:
        torch.testing.assert_close(means[m], means["xray"], atol=1e-5, rtol=1e-4)
    ids = toy_inputs(pairs, tmp_path).draw_pool(200, AlignConfig().balance)
    maps = procrustes([toy_inputs(pairs, tmp_path).embed_texts(m, ids) for m in pairs], 12, center=True)
    torch.testing.assert_close(fit["ct"].weight, maps[1].float())
    with pytest.raises(UnknownNameError, match="center"):
        bound("procrustes", tmp_path, center="fitt")


def test_relative_needs_as_many_texts_as_dimensions(tmp_path):
    pairs = related_pairs({"xray": 3, "ecg": 3})
    with pytest.raises(ConfigError, match=r"lower align\.dim"):
        bound("relative", tmp_path, pairs)


def test_the_base_of_exmcr_has_its_zero_shot_unchanged(tmp_path):
    pairs, bridges = bound("exmcr", tmp_path, base="ct")
    image, text = pairs["ct"].images.embed(np.arange(30)), pairs["ct"].texts.embed(np.arange(20))
    torch.testing.assert_close(bridges["ct"].image(image) @ bridges["ct"].text(text).T, image @ text.T)
    assert bridges["ct"].kind == "linear" and bridges["ecg"].kind == "head"
    assert agreement(pairs, bridges) > 0.2
    with pytest.raises(UnknownNameError, match="base"):
        bound("exmcr", tmp_path / "b", base="mri")


def test_textme_reads_images_for_their_mean_alone(tmp_path):
    pairs, bridges = bound("textme", tmp_path / "a")
    for m, p in pairs.items():
        mean = p.images.embed(np.arange(len(p))).mean(0)
        torch.testing.assert_close(bridges[m].offset_image, mean)
    shuffled = related_pairs()
    for p in shuffled.values():
        p.images._rows = p.images.rows.array[::-1].copy()
    _, again = bound("textme", tmp_path / "b", shuffled)
    for key, value in bridges["ct"].state_dict().items():
        torch.testing.assert_close(again["ct"].state_dict()[key], value, rtol=1e-4, atol=1e-5)


def test_paired_bridges_bring_the_images_of_a_patient_together(tmp_path):
    def margin(pairs, bridges):
        with torch.no_grad():
            a, b = (
                bridges[m].image(pairs[m].images.embed(np.arange(30))) for m in ("xray", "ct")
            )  # patient i is row i of both
            scores = a @ b.T
        return float(scores.diagonal().mean() - scores.mean())

    assert margin(*bound("medbind_bridges", tmp_path / "a")) > margin(*bound("procrustes", tmp_path / "b")) + 0.1
