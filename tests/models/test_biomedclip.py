"""BiomedCLIP against open_clip's own classes."""

from pathlib import Path

import pytest
import torch
from open_clip.tokenizer import HFTokenizer

import m3bind.models as models
from m3bind.errors import CheckpointError, ConfigError
from m3bind.models.base import DualEncoder
from m3bind.models.layers.tokenizer import train_wordpiece
from models.clip_checks import (
    TEXTS,
    activations,
    assert_batches,
    assert_golden,
    assert_norms,
    assert_pictures,
    golden_images,
)
from models.golden import Golden, assert_lora, fixture


@pytest.fixture(scope="module")
def golden() -> Golden:
    return fixture("biomedclip")


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small vocab.txt and a configuration, as transformers needs it."""
    folder = tmp_path_factory.mktemp("vocabulary")
    pieces = train_wordpiece(TEXTS, vocab_size=500, minimum=1).get_vocab()
    (folder / "vocab.txt").write_text("\n".join(sorted(pieces, key=pieces.__getitem__)), encoding="utf-8")
    (folder / "config.json").write_text('{"model_type": "bert"}')
    return folder


@pytest.fixture(scope="module")
def model(golden: Golden, vocabulary: Path, scratch: Path) -> DualEncoder:
    """From a folder as on the hub: a pickle as transformers 4 wrote it, and the tokenizer."""
    state = golden.state() | {"text.transformer.embeddings.position_ids": torch.arange(512)[None]}
    torch.save(state, scratch / "open_clip_pytorch_model.bin")
    (scratch / "vocab.txt").write_bytes((vocabulary / "vocab.txt").read_bytes())
    return models.load("biomedclip", scratch)


def test_images_texts_and_logits(golden: Golden, model: DualEncoder) -> None:
    assert_golden(golden, model)
    assert_norms(golden, model)
    assert activations(model) == set(golden.meta["activation_modules"])


def test_batches_and_padding(golden: Golden, model: DualEncoder) -> None:
    assert_batches(golden, model)


def test_preprocessing(golden: Golden, model: DualEncoder) -> None:
    assert_pictures(golden, model)


def test_tokens_are_those_of_open_clip(model: DualEncoder, vocabulary: Path) -> None:
    texts = [*TEXTS, "one word " * 300]
    tokens, wanted = model.tokenize(texts), HFTokenizer(str(vocabulary), context_length=256)(texts)
    assert torch.equal(tokens["input_ids"], wanted)
    assert torch.equal(tokens["attention_mask"], (wanted != 0).long())
    with torch.no_grad():
        assert model.encode_text(model.tokenize(["!"])).shape == (1, 512)


def test_saved_and_loaded(golden: Golden, model: DualEncoder, tmp_path: Path) -> None:
    models.save(model, tmp_path / "saved")
    again = models.load(tmp_path / "saved")
    tokens = again.tokenize(["pneumonia", "no acute process"])
    with torch.no_grad():
        assert torch.equal(again.encode_text(tokens), model.encode_text(tokens))
        images = golden_images(golden)[:1]
        assert torch.equal(again.encode_image(images), model.encode_image(images))


def test_another_models_checkpoint_and_no_tokenizer(model: DualEncoder, tmp_path: Path) -> None:
    path = tmp_path / "quiltnet.pt"
    torch.save(fixture("quiltnet_b32").state(only=lambda key: ".ln_" in key), path)
    with pytest.raises(CheckpointError, match=r"quiltnet\.pt does not fit BiomedClip: \d+ missing.* \d+ unexpected"):
        model.load_checkpoint(path)
    network = models.build("biomedclip", frozen=["image_trunk"])
    assert network.settings() == {"frozen": ["image_trunk"]}
    with pytest.raises(ConfigError, match="BiomedNLP-BiomedBERT-base-uncased-abstract"):
        network.tokenize(["pneumonia"])


@pytest.mark.parametrize(("part", "modules"), [("text", 24), ("image", 12)])
def test_lora(golden: Golden, model: DualEncoder, part: str, modules: int) -> None:
    tokens, images = golden.tokens("pair"), golden_images(golden)[:1]
    count = assert_lora(
        model, part, lambda: model.encode_image(images) if part == "image" else model.encode_text(tokens)
    )
    assert count == modules
