"""CLIP against transformers' classes (golden files of PLIP, the same network) and against open_clip's own."""

import json
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import save_file

import m3bind.models as models
from m3bind.errors import CheckpointError, ConfigError
from m3bind.models.base import DualEncoder
from m3bind.models.clip import ClipModel, bpe_tokens
from m3bind.models.weights.clip_keys import read_quick_gelu
from models.clip_checks import TEXTS, activations, assert_batches, assert_golden, assert_norms, golden_images
from models.golden import Golden, assert_lora, fixture


@pytest.fixture(scope="module")
def golden() -> Golden:
    return fixture("plip")


@pytest.fixture(scope="module")
def model(golden: Golden, tmp_path_factory: pytest.TempPathFactory) -> DualEncoder:
    return golden.load("clip", tmp_path_factory.mktemp("clip"))


def test_images_texts_and_logits(golden: Golden, model: DualEncoder) -> None:
    assert_golden(golden, model)
    assert_norms(golden, model)
    assert activations(model) == {"QuickGELUActivation"}


def test_batches_and_padding(golden: Golden, model: DualEncoder) -> None:
    assert_batches(golden, model)


@pytest.mark.parametrize("part", ["text", "image"])
def test_lora(golden: Golden, model: DualEncoder, part: str) -> None:
    tokens, images = golden.tokens("pair"), golden_images(golden)[:1]
    count = assert_lora(
        model, part, lambda: model.encode_image(images) if part == "image" else model.encode_text(tokens)
    )
    assert count == 24


@pytest.mark.parametrize("act", ["quick_gelu", pytest.param("gelu", marks=pytest.mark.slow)])
@torch.no_grad()
def test_open_clip_computes_the_same(model: ClipModel, tmp_path: Path, act: str) -> None:
    """The form of OpenAI's own archive: half precision, and three numbers beside the weights."""
    torch.manual_seed(3)
    own = open_clip.create_model("ViT-B-32-quickgelu" if act == "quick_gelu" else "ViT-B-32").eval().half().float()
    extra = {name: torch.tensor(7) for name in ("input_resolution", "context_length", "vocab_size")}
    state = {key: value.half() for key, value in own.state_dict().items()} | extra
    config = {"model_cfg": {"quick_gelu": act == "quick_gelu"}, "preprocess_cfg": {}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    save_file(state, tmp_path / "open_clip_model.safetensors")
    report = model.load_checkpoint(tmp_path)
    assert report.ignored == ("context_length", "input_resolution", "vocab_size")
    images, ids = torch.randn(2, 3, 224, 224), open_clip.tokenize(TEXTS)
    image, text, scale = own(images, ids)
    torch.testing.assert_close(model.encode_image(images), image, atol=2e-6, rtol=0)
    torch.testing.assert_close(model.encode_text(model.tokenize(TEXTS)), text, atol=2e-6, rtol=0)
    torch.testing.assert_close(model.logits(image, text), scale * image @ text.T, atol=1e-4, rtol=0)


def test_tokens_are_those_of_open_clip() -> None:
    ids = open_clip.get_tokenizer("ViT-B-32")(TEXTS)
    tokens = bpe_tokens(TEXTS)
    assert tokens["input_ids"].shape == (len(TEXTS), 77)
    assert torch.equal(tokens["input_ids"], ids)
    for row, mask in zip(ids.tolist(), tokens["attention_mask"].tolist()):
        assert mask == [1] * (row.index(49407) + 1) + [0] * (76 - row.index(49407))
    few = bpe_tokens(TEXTS[:3])
    assert torch.equal(few["input_ids"], ids[:3, : few["input_ids"].shape[1]]) and few["input_ids"].shape[1] == 5
    assert int(bpe_tokens(TEXTS, 32)["attention_mask"].sum(1).max()) == 32
    assert bpe_tokens([])["input_ids"].shape == (0, 0)


def test_texts_no_fixture_holds(model: ClipModel) -> None:
    with torch.no_grad():
        assert model.encode_text(model.tokenize([])).shape == (0, 512)
        one = {"input_ids": torch.tensor([[49406]]), "attention_mask": torch.tensor([[1]])}
        assert bool(model.encode_text(one).isfinite().all())
    left = {"input_ids": torch.tensor([[0, 49406, 49407]]), "attention_mask": torch.tensor([[0, 1, 1]])}
    with pytest.raises(ConfigError, match="padded on the right"):
        model.encode_text(left)
    ids = torch.full((1, 80), 320).index_fill(1, torch.tensor([79]), 49407)
    with pytest.raises(ConfigError, match="80 tokens for a CLIP of 77"):
        model.encode_text({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    with pytest.raises(ConfigError, match=r"clip has no tokenizer .* tokenize"):
        _ = model.tokenizer


def write(folder: Path, **files: object) -> Path:
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def test_which_gelu_a_folder_names(tmp_path: Path) -> None:
    assert read_quick_gelu(tmp_path, True) is None
    act = {"hidden_act": "gelu"}
    write(tmp_path, config={"model_type": "clip", "text_config": act, "vision_config": act})
    assert [read_quick_gelu(tmp_path, form) for form in (True, False)] == [False, False]
    write(tmp_path, open_clip_config={"model_cfg": {"quick_gelu": True}})
    assert [read_quick_gelu(tmp_path, form) for form in (True, False)] == [True, False]
    assert read_quick_gelu(tmp_path / "pytorch_model.bin", False) is False
    assert read_quick_gelu(tmp_path / "my_run.pt", False) is None, "a file of another name may lie anywhere"
    write(tmp_path, open_clip_config={"model_cfg": {"embed_dim": 512}}, config={})
    assert [read_quick_gelu(tmp_path, form) for form in (True, False)] == [False, True]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"text_config": {"hidden_act": "gelu"}}, "hidden_act gelu, quick_gelu"),
        ({"text_config": {"hidden_act": "relu"}, "vision_config": {"hidden_act": "relu"}}, "hidden_act relu"),
        ({"text_config": {"eos_token_id": 5}}, "another vocabulary"),
        ({"model_type": "siglip"}, "model_type 'siglip'"),
        ({"text_config": 3}, "text_config 3 is not a table"),
        ({"vision_config": "gelu"}, "vision_config 'gelu' is not a table"),
        ({"text_config": [1]}, r"text_config \[1\] is not a table"),
        ([], "not the configuration of a CLIP"),
    ],
)
def test_a_configuration_of_something_else(config: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_quick_gelu(write(tmp_path, config=config), False)


def test_saved_with_its_gelu(golden: Golden, model: ClipModel, tmp_path: Path) -> None:
    model._set_gelu(False)
    models.save(model, tmp_path / "saved")
    model._set_gelu(True)
    again = models.load(tmp_path / "saved", frozen=["text_trunk"])
    assert again.settings() == {"frozen": ["text_trunk"], "quick_gelu": False}
    assert activations(again) == {"GELUActivation"}
    assert not any(p.requires_grad for p in again.text_trunk.parameters())
