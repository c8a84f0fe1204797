import json
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import m3bind.models as models
from m3bind.errors import CheckpointError, ConfigError
from m3bind.modalities.base import Sample
from m3bind.models.layers.preprocess import rgb_image
from models.tiny_models import TEXTS, TOWER, clip_tokenizer_files, image_processor_files


def library_features(folder: Path, sample: Sample, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(str(folder)).eval()
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    pixels = AutoImageProcessor.from_pretrained(str(folder))(images=rgb_image(sample), return_tensors="pt")
    siglip = model.config.model_type == "siglip"
    tokens = tokenizer(
        texts,
        padding="max_length" if siglip else True,
        max_length=16 if siglip else 32,
        truncation=True,
        return_tensors="pt",
    )
    if siglip:
        tokens = {"input_ids": tokens["input_ids"]}
    with torch.no_grad():
        image = model.get_image_features(pixel_values=pixels["pixel_values"]).pooler_output
        text = model.get_text_features(**tokens).pooler_output
    return F.normalize(image, dim=-1), F.normalize(text, dim=-1)


@pytest.mark.parametrize("folder", ["hf_clip_folder", "siglip_folder"])
def test_numbers_equal_the_library(folder, request, samples):
    path = request.getfixturevalue(folder)
    model = models.load("hf_clip_any", path)
    image, text = library_features(path, samples["retina"], TEXTS)
    with torch.no_grad():
        assert torch.allclose(model.encode_image(model.preprocess(samples["retina"])[None]), image, atol=1e-6)
        assert torch.allclose(model.encode_text(model.tokenize(TEXTS)), text, atol=1e-6)
    assert model.joint_dim == image.shape[1] == model.card.joint_dim


@pytest.mark.parametrize("folder", ["hf_clip_folder", "siglip_folder"])
def test_text_does_not_depend_on_its_neighbours(folder, request):
    model = models.load("hf_clip_any", request.getfixturevalue(folder))
    with torch.no_grad():
        together = model.encode_text(model.tokenize(TEXTS))
        alone = torch.cat([model.encode_text(model.tokenize([text])) for text in TEXTS])
    assert torch.allclose(together, alone, atol=1e-6)


def test_save_and_load_are_bitwise_equal(hf_clip_folder, tmp_path, samples):
    model = models.load("hf_clip_any", hf_clip_folder)
    models.save(model, tmp_path / "saved")
    again = models.load(tmp_path / "saved")
    batch = model.preprocess(samples["xray"])[None]
    with torch.no_grad():
        assert torch.equal(again.encode_image(again.preprocess(samples["xray"])[None]), model.encode_image(batch))
        assert torch.equal(again.encode_text(again.tokenize(TEXTS)), model.encode_text(model.tokenize(TEXTS)))
    assert torch.equal(again.logit_scale, model.logit_scale)


def test_other_families_and_incomplete_folders_are_refused(tmp_path, hf_clip_folder):
    with pytest.raises(ConfigError, match="source="):
        models.build("hf_clip_any")
    part = tmp_path / "part"
    shutil.copytree(hf_clip_folder, part)
    (part / "preprocessor_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json"):
        models.load("hf_clip_any", part)
    with pytest.raises(ConfigError, match="pin it"):
        models.load("hf_clip_any", "openai/clip-vit-base-patch32")


def test_weights_of_another_shape_stop(tmp_path, hf_clip_folder):
    other = tmp_path / "other"
    shutil.copytree(hf_clip_folder, other)
    config = json.loads((other / "config.json").read_text())
    config["projection_dim"] = 16
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"of another shape: .*projection"):
        models.load("hf_clip_any", other)


FAMILIES = [
    "altclip", "blip", "chinese_clip", "clip", "clipseg", "groupvit", "metaclip_2", "owlv2", "owlvit",
    "vision-text-dual-encoder",
]  # fmt: skip


def family_folder(folder: Path, family: str, **tokenizer: object) -> Path:
    """A tiny model of a family of transformers, written by transformers itself; keys of tokenizer_config changed."""
    from transformers import AutoModel
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    folder.mkdir()
    size = clip_tokenizer_files(folder)
    image_processor_files(folder)
    text = TOWER | {"vocab_size": size, "max_position_embeddings": 40, "bos_token_id": size - 2}
    text |= {"eos_token_id": size - 1, "pad_token_id": size - 1}
    vision: dict[str, object] = TOWER | {"image_size": 32, "patch_size": 8}
    if family == "altclip":
        text |= {"project_dim": 32, "type_vocab_size": 1, "pad_token_id": 1}
    elif family == "groupvit":
        vision |= {"depths": [1, 1, 1], "num_group_tokens": [4, 2, 0], "num_output_groups": [4, 2, 0]}
    elif family == "vision-text-dual-encoder":
        text, vision = text | {"model_type": "bert"}, vision | {"model_type": "vit"}
    torch.manual_seed(0)
    config = CONFIG_MAPPING[family](text_config=text, vision_config=vision, projection_dim=24)
    AutoModel.from_config(config).save_pretrained(str(folder))
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | tokenizer))
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_gives_the_library_s_own_features(family, tmp_path, samples):
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    folder = family_folder(tmp_path / family, family)
    model = models.load("hf_clip_any", folder)
    library, tokenizer = AutoModel.from_pretrained(str(folder)).eval(), AutoTokenizer.from_pretrained(str(folder))
    pixels = AutoImageProcessor.from_pretrained(str(folder))(images=rgb_image(samples["retina"]), return_tensors="pt")
    with torch.no_grad():
        got = model.encode_text(model.tokenize(TEXTS))
        for row, text in zip(got, TEXTS, strict=True):  # alone, so no padding takes part
            tokens = tokenizer([text], max_length=32, truncation=True, return_tensors="pt")
            found = library.get_text_features(tokens["input_ids"], attention_mask=tokens["attention_mask"])
            assert torch.allclose(row, F.normalize(found.pooler_output, dim=-1)[0], atol=1e-5)
        image = F.normalize(library.get_image_features(pixel_values=pixels["pixel_values"]).pooler_output, dim=-1)
        assert torch.allclose(model.encode_image(model.preprocess(samples["retina"])[None]), image, atol=1e-5)


@pytest.mark.parametrize(
    "change", [{"padding_side": "left"}, {"pad_token": None}, {"padding_side": "left", "pad_token": "a"}]
)
@pytest.mark.parametrize("family", ["clip", "metaclip_2", "vision-text-dual-encoder"])
def test_a_text_is_the_same_whatever_padding_a_folder_states(family, change, tmp_path):
    model = models.load("hf_clip_any", family_folder(tmp_path / family, family, **change))
    with torch.no_grad():
        together = model.encode_text(model.tokenize(TEXTS))
        alone = torch.cat([model.encode_text(model.tokenize([text])) for text in TEXTS])
    assert torch.allclose(together, alone, atol=1e-6)


@pytest.mark.parametrize("family", ["siglip2", "align", "flava", "mra", "evil"])
def test_a_family_that_is_not_known_is_refused_by_name(family, tmp_path, hf_clip_folder):
    folder = tmp_path / family
    shutil.copytree(hf_clip_folder, folder)
    config = json.loads((folder / "config.json").read_text()) | {"model_type": family}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=f"model_type is '{family}'"):
        models.load("hf_clip_any", folder)


def test_weights_in_half_precision_become_float32(tmp_path, hf_clip_folder, samples):
    folder = tmp_path / "half"
    shutil.copytree(hf_clip_folder, folder)
    config = json.loads((folder / "config.json").read_text()) | {"dtype": "float16"}
    (folder / "config.json").write_text(json.dumps(config))
    model, sound = models.load("hf_clip_any", folder), models.load("hf_clip_any", hf_clip_folder)
    with torch.no_grad():
        assert torch.equal(model.encode_text(model.tokenize(TEXTS)), sound.encode_text(sound.tokenize(TEXTS)))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


CASES = Path(__file__).parents[3] / "shared" / "cases"


@pytest.mark.parametrize("case", ["hf-altclip/altclip", "hf-left-padding/left"])
def test_cases_at_hand(case):
    if not (CASES / case).is_dir():
        pytest.skip("no cases beside the project")
    model = models.load("hf_clip_any", CASES / case)
    with torch.no_grad():
        together = model.encode_text(model.tokenize(TEXTS))
        assert torch.allclose(together[1:2], model.encode_text(model.tokenize(TEXTS[1:2])), atol=1e-6)
