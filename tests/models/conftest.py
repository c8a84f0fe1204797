"""Tiny models of several libraries and one sample per kind of array, shared by the tests of this folder."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from m3bind.modalities.base import Sample
from m3bind.models.layers.tokenizer import train_wordpiece, wordpiece
from models.tiny_models import (
    TEXTS,
    TOWER,
    VISION,
    clip_tokenizer_files,
    image_processor_files,
    open_clip_folder,
)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for large files, gone after the last test of a module."""
    folder = tmp_path_factory.mktemp("scratch")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a WordPiece trained on TEXTS."""
    folder = tmp_path_factory.mktemp("assets")
    train_wordpiece(TEXTS, 120).save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="session")
def samples() -> dict[str, Sample]:
    """One sample per kind of array."""
    random = np.random.default_rng(0)
    return {
        "xray": Sample("xray", random.random((70, 56), dtype=np.float32)),
        "retina": Sample("retina", random.random((64, 64, 3), dtype=np.float32)),
        "ct": Sample(
            "ct", (random.standard_normal((6, 30, 26)) * 300 - 300).astype(np.float32), spacing=(2.5, 0.7, 0.7)
        ),
        "ecg": Sample("ecg", random.standard_normal((12, 2500)).astype(np.float32), rate=250.0),
    }


@pytest.fixture(scope="session")
def hf_clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import CLIPConfig, CLIPModel

    folder = tmp_path_factory.mktemp("hf_clip")
    size = clip_tokenizer_files(folder)
    image_processor_files(folder)
    text = {"vocab_size": size, "max_position_embeddings": 32, "bos_token_id": size - 2, "eos_token_id": size - 1}
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config=TOWER | text, vision_config=TOWER | {"image_size": 32, "patch_size": 8}, projection_dim=24
    )
    CLIPModel(config).save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="session")
def siglip_folder(tmp_path_factory: pytest.TempPathFactory, assets: Path) -> Path:
    from transformers import PreTrainedTokenizerFast, SiglipConfig, SiglipModel

    folder = tmp_path_factory.mktemp("siglip")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(assets / "tokenizer.json"), pad_token="[PAD]", unk_token="[UNK]", model_max_length=16
    )
    tokenizer.save_pretrained(str(folder))
    image_processor_files(folder, "SiglipImageProcessor")
    torch.manual_seed(0)
    config = SiglipConfig(
        text_config=TOWER | {"vocab_size": len(tokenizer), "max_position_embeddings": 16, "projection_size": 32},
        vision_config=TOWER | {"image_size": 32, "patch_size": 8},
    )
    SiglipModel(config).save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="session")
def open_clip_plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    text = {"context_length": 20, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
    return open_clip_folder(tmp_path_factory.mktemp("open_clip"), text, VISION)


@pytest.fixture(scope="session")
def open_clip_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The form of BiomedCLIP and QuiltNet-B-16-PMB: a Hugging Face BERT inside."""
    from transformers import BertConfig, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("open_clip_bert")
    tokenizer = wordpiece(
        {
            w: i
            for i, w in enumerate(
                ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh", *(f"##{c}" for c in "abcdefgh")]
            )
        }
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", model_max_length=20
    ).save_pretrained(str(folder))
    BertConfig(**TOWER, vocab_size=21, max_position_embeddings=20).save_pretrained(str(folder / "text_config"))
    text = {
        "hf_model_name": str(folder / "text_config"),
        "hf_tokenizer_name": "not/used",
        "hf_proj_type": "mlp",
        "hf_pooler_type": "cls_last_hidden_state_pooler",
        "context_length": 20,
    }
    return open_clip_folder(folder, text, VISION)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests against the authors' own values build networks in full size: marked `published`."""
    for item in items:
        if "golden" in getattr(item, "fixturenames", ()):
            item.add_marker("published")
