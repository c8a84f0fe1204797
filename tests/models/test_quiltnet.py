"""QuiltNet against open_clip's own classes."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import m3bind.models as models
from m3bind.errors import CheckpointError
from m3bind.models.base import DualEncoder
from m3bind.models.weights.clip_keys import huggingface_keys
from models.clip_checks import (
    activations,
    assert_batches,
    assert_golden,
    assert_norms,
    assert_pictures,
    golden_images,
)
from models.golden import FOLDER, Golden, assert_lora, fixture

NAMES = ["quiltnet_b32", "quiltnet_b16"]


@pytest.fixture(scope="module", params=NAMES)
def golden(request: pytest.FixtureRequest) -> Golden:
    return fixture(request.param)


@pytest.fixture(scope="module")
def model(golden: Golden, tmp_path_factory: pytest.TempPathFactory) -> DualEncoder:
    return golden.load(golden.system, tmp_path_factory.mktemp(golden.system))


def test_images_texts_and_logits(golden: Golden, model: DualEncoder) -> None:
    assert_golden(golden, model)


def test_batches_and_padding(golden: Golden, model: DualEncoder) -> None:
    assert_batches(golden, model)


def test_preprocessing(golden: Golden, model: DualEncoder) -> None:
    assert_pictures(golden, model)


def test_norms_and_activation(golden: Golden, model: DualEncoder) -> None:
    assert_norms(golden, model)
    assert activations(model) == {"GELUActivation"}
    assert not model.settings()["quick_gelu"]


@pytest.mark.parametrize("golden", NAMES[:1], indirect=True, scope="module")
class TestOneOfTheTwo:
    def test_saved_and_loaded(self, golden: Golden, model: DualEncoder, tmp_path: Path) -> None:
        models.save(model, tmp_path / "saved")
        again = models.load(tmp_path / "saved")
        tokens = again.tokenize(["a histopathology slide showing dermis"])
        with torch.no_grad():
            assert torch.equal(again.encode_text(tokens), model.encode_text(tokens))
        assert again.registered_name == golden.system

    def test_the_transformers_form_of_a_file(self, golden: Golden, model: DualEncoder, tmp_path: Path) -> None:
        wanted = model.state_dict()
        state = {theirs(key): value for key, value in wanted.items()}
        assert {f"{key} {tuple(value.shape)}" for key, value in state.items()} == hub_keys("quiltnet_b32_hf")
        torch.save({"state_dict": {f"module.{key}": v for key, v in state.items()}}, tmp_path / "pytorch_model.bin")
        act = {"hidden_act": "gelu"}
        config = {"text_config": act | {"eos_token_id": 2}, "vision_config": act}
        (tmp_path / "config.json").write_text(json.dumps(config))
        (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": {"quick_gelu": True}}))
        (tmp_path / "vocab.txt").write_text("a tokenizer no QuiltNet needs")
        again = models.load("quiltnet_b32", tmp_path)
        assert activations(again) == {"GELUActivation"}
        assert all(torch.equal(value, wanted[key]) for key, value in again.state_dict().items())

    def test_files_that_do_not_fit(self, golden: Golden, model: DualEncoder, tmp_path: Path) -> None:
        path = tmp_path / "other.safetensors"
        save_file(golden.state(only=lambda key: "ln_" in key) | {"visual.proj": torch.zeros(5, 5)}, path)
        with pytest.raises(
            CheckpointError, match=r"does not fit QuiltNet: \d+ missing: .* image_head\.weight \(5, 5\)"
        ):
            model.load_checkpoint(path)

    def test_lora_on_texts(self, golden: Golden, model: DualEncoder) -> None:
        tokens = golden.tokens("pair")
        assert assert_lora(model, "text", lambda: model.encode_text(tokens)) == 24


def test_lora_on_images(golden: Golden, model: DualEncoder) -> None:
    images = golden_images(golden)[:1]
    assert assert_lora(model, "image", lambda: model.encode_image(images)) == 24


class TestPmb:
    @pytest.fixture(scope="class")
    def golden(self) -> Golden:
        return fixture("quiltnet_b16_pmb")

    def test_images_texts_and_logits(self, golden: Golden, tmp_path: Path) -> None:
        model = golden.load("quiltnet_b16_pmb", tmp_path)
        assert_golden(golden, model)
        assert_norms(golden, model)
        assert activations(model) == set(golden.meta["activation_modules"])
        assert_pictures(golden, model)
        assert model.registered_name == "quiltnet_b16_pmb" and "Quilt-1M" in model.card.training_data[0]


def theirs(key: str) -> str:
    for ours, name in (
        ("image_trunk.model.", "vision_model."),
        ("image_head.", "visual_projection."),
        ("text_trunk.model.", "text_model."),
        ("text_head.", "text_projection."),
        ("scale.log", "logit_scale"),
    ):
        if key.startswith(ours):
            return name + key.removeprefix(ours)
    raise AssertionError(key)


def hub_keys(name: str) -> set[str]:
    path = FOLDER / "checkpoints" / f"{name}.txt"
    return set(path.read_text().splitlines())


def test_the_two_forms_in_one_file_are_refused() -> None:
    state = {"ln_final.weight": torch.ones(2), "text_model.final_layer_norm.weight": torch.ones(2)}
    with pytest.raises(CheckpointError, match=r"two keys .* text_model\.final_layer_norm\.weight"):
        huggingface_keys(state, frozenset())
