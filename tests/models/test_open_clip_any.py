import json
import shutil

import open_clip
import pytest
import torch

import m3bind.models as models
from m3bind.errors import CheckpointError
from m3bind.models.layers.preprocess import rgb_image
from m3bind.models.weights.allowed import TOKENIZER_FILES
from models.tiny_models import TEXTS


@pytest.mark.parametrize("folder", ["open_clip_plain", "open_clip_bert"])
def test_numbers_equal_the_library(folder, request, samples):
    path = request.getfixturevalue(folder)
    model = models.load("open_clip_any", path)
    own, transform = open_clip.create_model_from_pretrained(f"local-dir:{path}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{path}")
    own.eval()
    texts = ["a bad cab!", "! !", *TEXTS]
    with torch.no_grad():
        image = own.encode_image(transform(rgb_image(samples["xray"]))[None], normalize=True)
        text = own.encode_text(tokenizer(texts), normalize=True)
        assert torch.allclose(model.encode_image(model.preprocess(samples["xray"])[None]), image, atol=1e-6)
        assert torch.allclose(model.encode_text(model.tokenize(texts)), text, atol=1e-6)
        assert torch.equal(model.logit_scale, own.logit_scale.exp())


@pytest.mark.parametrize("folder", ["open_clip_plain", "open_clip_bert"])
def test_text_does_not_depend_on_its_neighbours(folder, request):
    model = models.load("open_clip_any", request.getfixturevalue(folder))
    tokens = model.tokenize(["a cab", *TEXTS])
    assert model.tokenize(["a cab"])["input_ids"].shape[1] < tokens["input_ids"].shape[1]
    with torch.no_grad():
        together = model.encode_text(tokens)[:1]
        assert torch.allclose(together, model.encode_text(model.tokenize(["a cab"])), atol=1e-6)


@pytest.mark.parametrize("folder", ["open_clip_plain", "open_clip_bert"])
def test_save_and_load_are_bitwise_equal_without_the_original_folder(folder, request, tmp_path, samples):
    original = tmp_path / "original"
    shutil.copytree(request.getfixturevalue(folder), original)
    model = models.load("open_clip_any", original)
    models.save(model, tmp_path / "saved")
    shutil.rmtree(original)
    again = models.load(tmp_path / "saved")
    with torch.no_grad():
        a, b = (m.encode_image(m.preprocess(samples["retina"])[None]) for m in (model, again))
        assert torch.equal(a, b)
        assert torch.equal(again.encode_text(again.tokenize(TEXTS)), model.encode_text(model.tokenize(TEXTS)))


def test_a_missing_weight_stops_with_its_name(open_clip_plain, tmp_path):
    folder = tmp_path / "folder"
    shutil.copytree(open_clip_plain, folder)
    state = torch.load(folder / "open_clip_pytorch_model.bin", weights_only=True)
    del state["visual.ln_post.weight"]
    torch.save(state, folder / "open_clip_pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"1 missing: visual\.ln_post\.weight"):
        models.load("open_clip_any", folder)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_gives_the_library_s_numbers(side, open_clip_bert, tmp_path):
    folder = tmp_path / side
    shutil.copytree(open_clip_bert, folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"padding_side": side}))
    model = models.load("open_clip_any", folder)
    own = open_clip.create_model(f"local-dir:{folder}").eval()
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    texts = ["a cab", "a bad bag had a cab", "f"]
    with torch.no_grad():
        wanted = own.encode_text(tokenizer(texts), normalize=True)
        together = model.encode_text(model.tokenize(texts))
        alone = torch.cat([model.encode_text(model.tokenize([text])) for text in texts])
    assert torch.allclose(together, wanted, atol=1e-6) and torch.allclose(alone, wanted, atol=1e-6)


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("text_cfg", "tokenizer_kwargs", {"trust_remote_code": True}),
        ("vision_cfg", "timm_model_name", "hf-hub:owner/name"),
        ("vision_cfg", "unheard_of", 1),
        ("vision_cfg", "width", 10**9),
        ("text_cfg", "hf_pooler_type", "a.b"),
    ],
)
def test_what_a_folder_may_not_say_is_refused_by_its_key(part, key, value, open_clip_bert, tmp_path):
    folder = tmp_path / "folder"
    shutil.copytree(open_clip_bert, folder)
    path = folder / "open_clip_config.json"
    config = json.loads(path.read_text())
    config["model_cfg"][part][key] = value
    path.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=next(iter(value)) if isinstance(value, dict) else key):
        models.load("open_clip_any", folder)


def test_a_text_tower_on_the_hub_is_not_fetched(open_clip_bert, tmp_path):
    folder = tmp_path / "folder"
    shutil.copytree(open_clip_bert, folder)
    shutil.rmtree(folder / "text_config")
    with pytest.raises(CheckpointError, match=r"nothing is downloaded.*text_config"):
        models.load("open_clip_any", folder)


def test_a_folder_without_its_tokenizer_is_refused(open_clip_bert, tmp_path):
    folder = shutil.copytree(open_clip_bert, tmp_path / "bare")
    for name in TOKENIZER_FILES:
        (folder / name).unlink(missing_ok=True)
    with pytest.raises(CheckpointError, match="bare: no tokenizer"):
        models.load("open_clip_any", folder)
