"""MGCA against the authors' own code, and the chest X-ray steps it shares with GLoRIA."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import m3bind.models as models
from m3bind.errors import CheckpointError, ConfigError, UnknownNameError
from m3bind.modalities.base import Sample
from m3bind.models.base import DualEncoder
from m3bind.models.gloria import join_pieces
from m3bind.models.layers.chest import clean_report, radiograph
from m3bind.models.layers.transforms import resize_pad
from models.golden import Golden, assert_lora, assert_steady, assert_steady_text, fixture, pictures
from models.published_keys import fit, keys, meta

VIT, RESNET = "mgca_vit_base", "mgca_resnet_50"


@pytest.fixture(scope="module", params=[VIT, RESNET])
def golden(request: pytest.FixtureRequest) -> Golden:
    return fixture(request.param)


@pytest.fixture(scope="module")
def model(golden: Golden, tmp_path_factory: pytest.TempPathFactory) -> DualEncoder:
    folder = tmp_path_factory.mktemp(golden.system)
    return golden.load(golden.system, folder, only=lambda key: ".crossattention." not in key)  # test_what_is_ignored


@pytest.fixture(scope="module")
def images(golden: Golden) -> torch.Tensor:
    return torch.from_numpy(golden.inputs.image("a", "image", (2, 3, 224, 224)))


@torch.no_grad()
def test_images_texts_and_logits(golden: Golden, model: DualEncoder, images: torch.Tensor) -> None:
    features = model.image_features(images)
    image = model.encode_image(images)
    got = {"img_pooled": features, "img_emb_raw": model.project_image(features), "img_emb": image}
    for which in ("pair", "long"):
        tokens = golden.tokens(which)
        pooled = model.text_features(tokens)
        got[f"txt_{which}_pooled"] = pooled
        got[f"txt_{which}_emb_raw"] = model.project_text(pooled)
        got[f"txt_{which}_emb"] = model.encode_text(tokens)
    got["logits"] = model.logits(image, torch.cat([got["txt_pair_emb"], got["txt_long_emb"]]))
    golden.compare(got)


@torch.no_grad()
def test_inner_features(golden: Golden, model: DualEncoder, images: torch.Tensor) -> None:
    tokens = golden.tokens("long")
    ids = tokens["input_ids"]
    hidden = model.text_trunk.hidden(ids, tokens["attention_mask"])
    words, _ = join_pieces(hidden, tokens["attention_mask"], (ids >= 1000) & (ids % 7 == 0))
    got = {"txt_long_word_feat_sample": words[:, 1:7, :64]}
    if golden.system == VIT:
        got["img_local_feat_sample"] = model.image_trunk.forward_features(images)[:, 1:5, :64]
    golden.compare(got)


def test_image_batches(golden: Golden, model: DualEncoder, images: torch.Tensor) -> None:
    trunk = model.image_trunk
    if golden.system == RESNET:  # without upsampling: time
        assert_steady(lambda batch: F.normalize(model.project_image(trunk(batch))), images[..., :96, :96].contiguous())
        return
    blocks = trunk.blocks
    trunk.blocks = blocks[:3]
    try:
        assert_steady(model.encode_image, images)
    finally:
        trunk.blocks = blocks


def test_text_batches(golden: Golden, model: DualEncoder) -> None:
    assert_steady_text(model, golden.tokens("pair"))
    near, far = golden.tokens("pair", length=13), golden.tokens("pair")
    with torch.no_grad():
        torch.testing.assert_close(model.encode_text(near), model.encode_text(far), atol=2e-6, rtol=0)


def test_normalisation_and_activation(golden: Golden) -> None:
    network = meta(golden.system)
    expected = {"LayerNorm eps=1e-12": 13, "BatchNorm1d eps=1e-05": 4}
    expected |= {"LayerNorm eps=1e-06": 25} if golden.system == VIT else {"BatchNorm2d eps=1e-05": 53}
    found: dict[str, int] = {}
    for module in network.modules():
        if isinstance(module, nn.LayerNorm | nn.BatchNorm1d | nn.BatchNorm2d):
            name = f"{type(module).__name__.replace('Fp32', '')} eps={module.eps:g}"
            found[name] = found.get(name, 0) + 1
    assert found == expected and set(found) == set(golden.meta["norm_eps"])
    assert {m.approximate for m in network.modules() if isinstance(m, nn.GELU)} <= {"none"}
    assert network.text_trunk.config.hidden_act == "gelu"


def test_what_is_ignored(golden: Golden) -> None:
    listed = keys(golden.system)
    report = fit(golden.system, listed)
    assert {key.partition(".")[0] for key in report.ignored} == {
        "text_trunk", "img_encoder_q", "text_encoder_q", "patch_local_atten_layer", "word_local_atten_layer",
        "prototype_layer",
    }  # fmt: skip
    local = [key for key in listed if ".local_embed." in key]
    inner = [key for key in listed if ".crossattention." in key]
    outer = [key for key in listed if not key.startswith(("img_encoder_q", "text_encoder_q"))]
    assert len(report.ignored) == len(local) + len(inner) + len(outer) == 24 + 60 + 9
    assert len(report.loaded) == len(listed) - len(report.ignored) - 1  # position_ids
    for folder, prefix in (("checkpoints", ""), ("keys", "module."), ("keys", "model.")):
        assert fit(golden.system, keys(golden.system, folder), lambda key, p=prefix: p + key) == report
    without = {key: value for key, value in listed.items() if not key.endswith("position_ids")}
    assert fit(golden.system, without) == report


def test_what_does_not_fit(golden: Golden) -> None:
    other = RESNET if golden.system == VIT else VIT
    with pytest.raises(CheckpointError, match=r"does not fit Mgca: \d+ missing"):
        fit(golden.system, keys(other))
    short = keys(golden.system)
    del short["text_encoder_q.global_embed.head.4.running_var"]
    with pytest.raises(CheckpointError, match=r"1 missing: text_head\.4\.running_var"):
        fit(golden.system, short)
    with pytest.raises(CheckpointError, match=r"1 unexpected: text_encoder_k\.a"):
        fit(golden.system, keys(golden.system) | {"text_encoder_k.a": torch.zeros(1)})


@pytest.mark.parametrize("part", ["text", "image"])
def test_lora(golden: Golden, model: DualEncoder, images: torch.Tensor, part: str) -> None:
    tokens = golden.tokens("pair")
    count = assert_lora(
        model, part, lambda: model.encode_image(images[:1]) if part == "image" else model.encode_text(tokens)
    )
    assert count == (12 if part == "text" or golden.system == VIT else 49)


def test_saved_and_loaded(golden: Golden, model: DualEncoder, tmp_path: Path) -> None:
    models.save(model, tmp_path / "mgca")
    again = models.load(tmp_path / "mgca")
    tokens = golden.tokens("pair")
    with torch.no_grad():
        assert torch.equal(again.encode_text(tokens), model.encode_text(tokens))
    assert again.registered_name == golden.system and again.settings() == {"frozen": []}


def test_preprocessing(golden: Golden) -> None:
    network = meta(golden.system)
    for name, pixels in pictures(golden):
        grey = np.ascontiguousarray(pixels[..., 1])
        golden.compare_picture(f"resize256_{name}", resize_pad(grey, 256))
        sample = Sample("xray", grey.astype(np.float32) / 255)
        golden.compare_picture(f"tensor_{name}", network.preprocess(sample))
        colour = Sample("xray", np.repeat(sample.array[..., None], 3, 2))
        assert torch.equal(network.preprocess(colour), network.preprocess(sample))


@pytest.mark.parametrize("shape", [(1, 1), (5, 1), (1, 900), (100, 90), (2000, 1500), (300, 300, 3)])
def test_other_pictures(shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).random(shape, dtype=np.float32)
    image = radiograph(Sample("xray", array))
    assert image.shape == (3, 224, 224) and image.dtype == torch.float32 and image.is_contiguous()
    assert image.min() >= -1 and image.max() <= 1 and image.isfinite().all()


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("IMPRESSION: No acute process.", "impression no acute process"),
        ("1. Small effusion.\n2. No\npneumothorax.", "small effusion no pneumothorax"),
        ("Stable. Heart size is normal. Clear.", "heart size is normal"),
        ("A 3.5 cm nodule, left-sided", "5 cm nodule left sided"),
        ("Caf\u00e9 au lait \u2265 2 mm \ufffd\ufffd spots", "caf au lait 2 mm spots"),
        ("Pneumonia", "pneumonia"),
        ("Pneumonia. Effusion.", "pneumonia effusion"),
        ("no pneumothorax", "no pneumothorax"),
        ("\u80ba\u708e", "\u80ba\u708e"),
        ("...", "..."),
        ("", ""),
    ],
)
def test_report_cleaning(text: str, cleaned: str) -> None:
    assert clean_report(text) == cleaned
    assert meta(VIT).clean(text) == cleaned


@torch.no_grad()
def test_word_order_does_not_count(golden: Golden, model: DualEncoder) -> None:
    tokens = golden.tokens("long", length=36)
    turned = tokens | {"input_ids": torch.cat([tokens["input_ids"][:, :1], tokens["input_ids"][:, 1:].flip(1)], 1)}
    torch.testing.assert_close(model.encode_text(turned), model.encode_text(tokens), atol=2e-6, rtol=0)


@torch.no_grad()
def test_texts(golden: Golden, model: DualEncoder, tmp_path: Path) -> None:
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "no", "effusion", "pneumonia", "##s", "."]
    (tmp_path / "vocab.txt").write_text("\n".join(pieces), encoding="utf-8")
    network = meta(golden.system, tokenizer=str(tmp_path))
    tokens = network.tokenize(["No effusions. Pneumonia.", "Pneumonia", "...", "no effusion " * 200])
    assert tokens["input_ids"].shape == (4, 112)
    assert tokens["input_ids"][0, :6].tolist() == [2, 5, 6, 8, 3, 0]
    assert tokens["attention_mask"].sum(1).tolist() == [5, 3, 5, 112]
    rows = model.encode_text(tokens)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(4))
    alone = {"input_ids": torch.tensor([[2]]), "attention_mask": torch.ones(1, 1, dtype=torch.int64)}
    assert model.encode_text(alone).isfinite().all()


def test_settings() -> None:
    with pytest.raises(UnknownNameError, match="pooling"):
        models.build(VIT, pooling="mean")
    with pytest.raises(ConfigError, match="tokenizer=<folder"):
        meta(RESNET).tokenize(["effusion"])
    assert models.card(VIT).lora_image == ("qkv",) and models.card(RESNET).joint_dim == 128
    assert float(meta(RESNET).logit_scale) == pytest.approx(1 / 0.07)
