import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import m3bind.models as models
from m3bind.errors import CheckpointError, ConfigError
from m3bind.modalities.base import Sample
from m3bind.models.preprocess import picture
from models.tiny_models import TEXTS


def library_features(folder: Path, sample: Sample, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(str(folder)).eval()
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    pixels = AutoImageProcessor.from_pretrained(str(folder))(images=picture(sample), return_tensors="pt")
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
    import json

    other = tmp_path / "other"
    shutil.copytree(hf_clip_folder, other)
    config = json.loads((other / "config.json").read_text())
    config["projection_dim"] = 16
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"of another shape: .*projection"):
        models.load("hf_clip_any", other)
