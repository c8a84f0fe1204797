"""PRIOR against the authors' own code."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import m3bind.models as models
from m3bind.errors import CheckpointError, ConfigError
from m3bind.modalities.base import Sample
from m3bind.models.base import DualEncoder
from m3bind.models.prior import SentencePool
from models.golden import Golden, assert_lora, assert_steady, assert_steady_text, fixture, pictures
from models.published_keys import fit, keys, meta

NAME = "prior"


@pytest.fixture(scope="module")
def golden() -> Golden:
    return fixture(NAME)


@pytest.fixture(scope="module")
def model(golden: Golden, tmp_path_factory: pytest.TempPathFactory) -> DualEncoder:
    return golden.load(NAME, tmp_path_factory.mktemp(NAME))


@pytest.fixture(scope="module")
def images(golden: Golden) -> torch.Tensor:
    return torch.from_numpy(golden.inputs.image("a", "image", (2, 1, 224, 224)))


@pytest.fixture(scope="module")
@torch.no_grad()
def texts(golden: Golden, model: DualEncoder) -> torch.Tensor:
    """Features of the three texts."""
    return torch.cat([model.text_features(golden.tokens(which)) for which in ("pair", "long")])


@torch.no_grad()
def test_images_texts_and_logits(golden: Golden, model: DualEncoder, images: torch.Tensor, texts: torch.Tensor) -> None:
    features, head = model.image_features(images), model.text_head
    image = model.encode_image(images)
    got = {"img_pooled": features, "img_emb_raw": model.project_image(features), "img_emb": image}
    regions = model.regions(images)
    got["img_local_emb_sample"] = regions[:, ::6, ::12]
    got["txt_sentence_emb"], got["txt_bank_logits"] = head.projection(texts), head.affinities(texts)
    got["txt_bank_out_nonoise"] = head.sentences(texts)
    got["txt_emb_raw_nonoise"] = model.project_text(texts)
    got["txt_emb_nonoise"] = torch.cat([model.encode_text(golden.tokens(which)) for which in ("pair", "long")])
    got["global_logits"] = model.logits(image, got["txt_emb_nonoise"])
    got["local_scores_img0"] = model.local_scores(regions, got["txt_bank_out_nonoise"])[0]
    got["logit_scale_exp"] = model.logit_scale
    golden.compare(got)


@torch.no_grad()
def test_without_the_bank(golden: Golden, model: DualEncoder, texts: torch.Tensor) -> None:
    model.text_head.kind = "none"
    try:
        raw = model.project_text(texts)
        golden.compare({"txt_emb_raw_nobank": raw, "txt_emb_nobank": F.normalize(raw, dim=-1)})
    finally:
        model.text_head.kind = "soft"


@torch.no_grad()
def test_the_authors_noise(model: DualEncoder, texts: torch.Tensor) -> None:
    head = model.text_head
    head.kind = "gumbel"
    try:
        torch.manual_seed(0)
        first, second = head.sentences(texts), head.sentences(texts)
        torch.manual_seed(0)
        uniform = torch.empty_like(head.affinities(texts)).exponential_().log().neg()
        weights = ((head.affinities(texts) + uniform) / 0.9).softmax(1)
    finally:
        head.kind = "soft"
    assert not torch.equal(first, second)
    torch.testing.assert_close(first, weights @ head.bank.weight)


@torch.no_grad()
def test_the_zero_shot_score(golden: Golden, model: DualEncoder, images: torch.Tensor) -> None:
    data = golden.fixture.data
    tokens = golden.tokens("pair")
    score = model.zero_shot(images[:1], tokens)
    softmax = [
        torch.from_numpy(values[:2]).softmax(0) for values in (data["global_logits"][0], data["local_scores_img0"])
    ]
    torch.testing.assert_close(score[0], softmax[0] + 0.5 * softmax[1], atol=2e-6, rtol=0)


@torch.no_grad()
def test_several_sentences_are_pooled_as_torch_does() -> None:
    torch.manual_seed(0)
    pool, torchs = SentencePool(16, 4), nn.MultiheadAttention(16, 4, batch_first=True)
    parts = (pool.q_proj, pool.k_proj, pool.v_proj)
    torchs.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
    torchs.in_proj_bias.copy_(torch.cat([part.bias for part in parts]))
    torchs.out_proj.load_state_dict(pool.c_proj.state_dict())
    x = torch.randn(3, 5, 16)
    both = torch.cat([x.mean(1, keepdim=True), x], 1)
    torch.testing.assert_close(pool(x), torchs(both, both, both)[0][:, 0])


def test_batches(golden: Golden, model: DualEncoder, images: torch.Tensor) -> None:
    pool = model.image_trunk.pool
    small = images[..., :96, :96].contiguous()  # time; the attention pool, made for 7 x 7, then sees a fixed size
    assert_steady(lambda batch: pool(F.interpolate(model.image_trunk.maps(batch), (7, 7))), small)
    with torch.no_grad():
        torch.testing.assert_close(model.encode_image(images)[:1], model.encode_image(images[:1]), atol=2e-6, rtol=0)
    near, far = golden.tokens("pair", length=13), golden.tokens("pair")
    assert_steady_text(model, near)
    with torch.no_grad():
        torch.testing.assert_close(model.text_features(near), model.text_features(far), atol=5e-6, rtol=0)


@torch.no_grad()
def test_which_tokens_are_averaged(golden: Golden, model: DualEncoder) -> None:
    ids = torch.arange(1000, 1256)[None]
    full = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    hidden = model.text_trunk.hidden(**full)
    torch.testing.assert_close(model.text_features(full), hidden[:, 1:255].mean(1), atol=2e-6, rtol=0)
    alone = {"input_ids": ids[:, :1], "attention_mask": torch.ones(1, 1, dtype=torch.int64)}
    assert model.encode_text(alone).isfinite().all()


def test_normalisation_and_activation(golden: Golden) -> None:
    network = meta(NAME)
    norms = [m for m in network.modules() if isinstance(m, nn.LayerNorm)]
    assert {m.eps for m in norms} == {1e-12} and len(norms) == golden.meta["norm_eps"]["LayerNorm eps=1e-12"]["count"]
    batch = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {m.eps for m in batch} == {1e-5} and len(batch) == golden.meta["norm_eps"]["BatchNorm2d eps=1e-05"]["count"]
    assert network.text_trunk.config.hidden_act == "gelu"


def test_what_is_loaded_and_ignored() -> None:
    listed = keys(NAME)
    report = fit(NAME, listed)
    pairs = ("global_text_projection", "local_attention.value1", "local_attention.value2", "predictor.0", "predictor.2")
    pairs += ("text_trunk.bert.pooler.dense",)
    expected = {f"{name}.{part}" for name in pairs for part in ("weight", "bias")}
    assert set(report.ignored) == expected | {"prototype_queries", "local_logit_scale"}
    assert len(report.loaded) == len(listed) - len(report.ignored)
    whole = listed | {"sentence_decoder.a.b": torch.zeros(1), "image_decoder.c": torch.zeros(1)}
    whole["text_encoder.encoder.embeddings.position_ids"] = torch.arange(512)[None]
    for prefix in ("", "module.", "model."):
        more = fit(NAME, whole, lambda key, p=prefix: p + key)
        assert set(more.ignored) - set(report.ignored) == {"sentence_decoder.a.b", "image_decoder.c"}
        assert more.loaded == report.loaded
    image_only = {key: value for key, value in listed.items() if key.startswith("image_encoder.")}
    with pytest.raises(CheckpointError, match=r"does not fit Prior: \d+ missing: image_head\.bias"):
        fit(NAME, image_only)


@pytest.mark.parametrize("part", ["text", "image"])
def test_lora(golden: Golden, model: DualEncoder, images: torch.Tensor, part: str) -> None:
    tokens, small = golden.tokens("pair", length=13), images[:1]
    count = assert_lora(
        model,
        part,
        lambda: model.project_image(model.image_features(small)) if part == "image" else model.text_features(tokens),
    )
    assert count == (24 if part == "text" else 49)


def test_saved_and_loaded(golden: Golden, model: DualEncoder, tmp_path: Path) -> None:
    models.save(model, tmp_path / "prior")
    again = models.load(tmp_path / "prior", bank="none")
    assert again.settings() == {"frozen": [], "bank": "none"}
    again.text_head.kind = "soft"
    tokens = golden.tokens("pair")
    with torch.no_grad():
        assert torch.equal(again.encode_text(tokens), model.encode_text(tokens))


def test_preprocessing(golden: Golden) -> None:
    network = meta(NAME)
    for name, pixels in pictures(golden):
        grey = np.ascontiguousarray(pixels[..., 1])
        golden.compare_picture(name, network.preprocess(Sample("xray", grey.astype(np.float32) / 255)))


@pytest.mark.parametrize("shape", [(1, 1), (1, 700), (600, 3), (300, 420, 3)])
def test_other_pictures(shape: tuple[int, ...]) -> None:
    image = meta(NAME).preprocess(Sample("xray", np.random.default_rng(0).random(shape, dtype=np.float32)))
    assert image.shape == (1, 224, 224) and image.dtype == torch.float32 and image.isfinite().all()


def test_texts(tmp_path: Path) -> None:
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "edema", "is", "observed"]
    (tmp_path / "vocab.txt").write_text("\n".join(pieces), encoding="utf-8")
    tokens = meta(NAME, tokenizer=str(tmp_path)).tokenize(["Edema is observed", "edema", "edema " * 400])
    assert tokens["input_ids"].shape == (3, 256) and tokens["input_ids"][0, :6].tolist() == [2, 5, 6, 7, 3, 0]


def test_settings() -> None:
    with pytest.raises(ConfigError, match="bank='hard' of prior is unknown"):
        models.build(NAME, bank="hard")
    network = meta(NAME, bank="gumbel")
    assert network.settings() == {"frozen": [], "bank": "gumbel"}
    with pytest.raises(ConfigError, match="tokenizer=<folder"):
        network.tokenize(["effusion"])
