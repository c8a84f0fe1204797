"""GLoRIA against the authors' own code."""

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
from m3bind.models.layers.transforms import resize_pad
from models.golden import Golden, assert_lora, assert_steady, assert_steady_text, fixture, pictures
from models.published_keys import fit, keys, meta

NAME = "gloria_resnet50"


@pytest.fixture(scope="module")
def golden() -> Golden:
    return fixture(NAME)


@pytest.fixture(scope="module")
def model(golden: Golden, tmp_path_factory: pytest.TempPathFactory) -> DualEncoder:
    return golden.load(NAME, tmp_path_factory.mktemp(NAME), prefix="gloria.")


@pytest.fixture(scope="module")
def images(golden: Golden) -> torch.Tensor:
    return torch.from_numpy(golden.inputs.image("a", "image", (2, 3, 224, 224)))


def stub_pieces(ids: torch.Tensor) -> torch.Tensor:
    """Which ids the fixture's vocabulary calls continuations."""
    return (ids >= 1000) & (ids % 7 == 0)


@torch.no_grad()
def test_images_texts_and_similarities(golden: Golden, model: DualEncoder, images: torch.Tensor) -> None:
    features = model.image_features(images)
    image = model.encode_image(images)
    regions = model.regions(images)
    got = {"img_pooled": features, "img_emb_raw": model.project_image(features), "img_emb": image}
    got["img_local_sample"] = regions.transpose(1, 2).unflatten(2, (19, 19))[:, ::8, ::6, ::6]
    words = []
    for which in ("pair", "long"):
        tokens = golden.tokens(which)
        pooled = model.text_features(tokens)
        got[f"txt_{which}_emb_raw"] = model.project_text(pooled)
        got[f"txt_{which}_emb"] = model.encode_text(tokens)
        words.append(model.words(tokens, stub_pieces(tokens["input_ids"]))[0])
        got[f"txt_{which}_words_sample"] = words[-1].transpose(1, 2)[:, ::12, :8]
    got["global_similarities"] = model.logits(image, torch.cat([got["txt_pair_emb"], got["txt_long_emb"]]))
    got["local_similarities"] = model.local_similarities(regions, torch.cat(words), [5, 8, 20])
    golden.compare(got)


@torch.no_grad()
def test_the_zero_shot_score_is_the_mean_of_both(golden: Golden, model: DualEncoder, images: torch.Tensor) -> None:
    near, far = golden.tokens("pair", length=13), golden.tokens("pair")
    continues = stub_pieces(near["input_ids"])
    words, counts = model.words(near, continues)
    assert counts.tolist() == [int((~continues[i]).sum()) - 2 - pad for i, pad in enumerate((5, 0))]
    more, same = model.words(far, stub_pieces(far["input_ids"]))
    torch.testing.assert_close(more[:, :13], words, atol=2e-5, rtol=0)
    assert torch.equal(counts, same) and not more[:, 13:].any()
    model._tokenizer = _Pieces()  # type: ignore[assignment]
    try:
        score = model.similarities(images[:1], near)
    finally:
        model._tokenizer = None
    local = model.local_similarities(model.regions(images[:1]), words, counts)
    cosines = model.logits(model.encode_image(images[:1]), model.encode_text(near))
    torch.testing.assert_close(score, (local + cosines) / 2, atol=2e-6, rtol=0)


class _Pieces:
    """A tokenizer with the fixture's vocabulary."""

    @property
    def tokenizer(self) -> "_Pieces":
        return self

    def get_vocab(self) -> dict[str, int]:
        return {f"##{i}" if i >= 1000 and i % 7 == 0 else str(i): i for i in range(28996)}


def test_pieces_are_joined() -> None:
    hidden = torch.arange(1, 11, dtype=torch.float32).view(2, 5, 1)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    inner = torch.tensor([[False, False, True, True, False], [False, False, False, False, True]])
    joined, counts = join_pieces(hidden * mask[..., None], mask, inner)
    assert joined[..., 0].tolist() == [[1, 9, 5, 0, 0], [6, 7, 0, 0, 0]] and counts.tolist() == [3, 2]


def test_batches(golden: Golden, model: DualEncoder, images: torch.Tensor) -> None:
    small = images[..., :96, :96].contiguous()  # without upsampling: time
    assert_steady(lambda batch: F.normalize(model.project_image(model.image_trunk(batch))), small)
    with torch.no_grad():
        torch.testing.assert_close(model.encode_image(images)[:1], model.encode_image(images[:1]), atol=2e-6, rtol=0)
        near, far = golden.tokens("pair", length=13), golden.tokens("pair")
        torch.testing.assert_close(model.text_features(near), model.text_features(far), atol=2e-6, rtol=0)
    assert_steady_text(model, near)


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
    assert report.ignored == ("text_trunk.bert.pooler.dense.bias", "text_trunk.bert.pooler.dense.weight")
    assert len(report.loaded) == len(listed) - 2
    published = keys("gloria_resnet50_reconstructed_tf4.30.2", "checkpoints")
    assert any(key.endswith("position_ids") for key in published)
    assert fit(NAME, published) == report
    for prefix in ("gloria.", "module.", "model.gloria.", "module.gloria."):
        assert fit(NAME, listed, lambda key, p=prefix: p + key) == report
    del listed["img_encoder.local_embedder.weight"]
    with pytest.raises(CheckpointError, match=r"does not fit Gloria: 1 missing: region_head\.weight"):
        fit(NAME, listed)


@pytest.mark.parametrize("part", ["text", "image"])
def test_lora(golden: Golden, model: DualEncoder, images: torch.Tensor, part: str) -> None:
    tokens, small = golden.tokens("pair"), images[:1]
    count = assert_lora(
        model, part, lambda: model.encode_image(small) if part == "image" else model.encode_text(tokens)
    )
    assert count == (24 if part == "text" else 49)


def test_saved_and_loaded(golden: Golden, model: DualEncoder, tmp_path: Path) -> None:
    models.save(model, tmp_path / "gloria")
    again = models.load(tmp_path / "gloria")
    tokens = golden.tokens("pair")
    with torch.no_grad():
        assert torch.equal(again.encode_text(tokens), model.encode_text(tokens))


def test_preprocessing(golden: Golden) -> None:
    network = meta(NAME)
    for name, pixels in pictures(golden):
        grey = np.ascontiguousarray(pixels[..., 1])
        golden.compare_picture(f"resize256_{name}", resize_pad(grey, 256))
        golden.compare_picture(f"tensor_{name}", network.preprocess(Sample("xray", grey.astype(np.float32) / 255)))


@torch.no_grad()
def test_texts(golden: Golden, model: DualEncoder, tmp_path: Path) -> None:
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "no", "effusion", "pneumonia", "##s", "."]
    (tmp_path / "vocab.txt").write_text("\n".join(pieces), encoding="utf-8")
    network = meta(NAME, tokenizer=str(tmp_path))
    assert network.clean("1. No effusions.\n2. Pneumonia.") == "no effusions"
    assert network.clean("Pneumonia") == "pneumonia"
    tokens = network.tokenize(["No effusions.", "Pneumonia", "no effusion " * 200])
    assert tokens["input_ids"].shape == (3, 97) and tokens["input_ids"][1, :4].tolist() == [2, 7, 3, 0]
    words, counts = model.words(tokens, network.continuing(tokens["input_ids"]))
    assert counts.tolist() == [2, 1, 95] and words.shape == (3, 97, 768)
    alone = {"input_ids": torch.tensor([[2]]), "attention_mask": torch.ones(1, 1, dtype=torch.int64)}
    assert model.encode_text(alone).isfinite().all()
    assert model.words(alone, alone["input_ids"] < 0)[1].tolist() == [1]


def test_settings() -> None:
    network = meta(NAME)
    assert float(network.logit_scale) == 10 and network.settings() == {"frozen": []}
    with pytest.raises(UnknownNameError, match="pooling"):
        models.build(NAME, pooling="mean")
    with pytest.raises(ConfigError, match="tokenizer=<folder"):
        network.tokenize(["effusion"])
