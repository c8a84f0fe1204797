"""Every registered model with generated weights and inputs: published networks in full size, the others small.

* `build`: the network, filled. * `inputs`: images and tokens for it. * `filled`: generated weights, on all cores.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import m3bind.models as models
from m3bind.models import registry
from m3bind.models.base import DualEncoder, Tokens
from m3bind.models.layers.tokenizer import train_wordpiece
from m3bind.models.published import PublishedModel
from m3bind.models.weights.checkpoint import without_initialisation
from m3bind.models.weights.reference import _preprocessed, _shape, fixed_images, generated, texts_for
from models.tiny_models import TEXTS, TOWER, VISION, clip_tokenizer_files, image_processor_files, open_clip_folder

_BERT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
_TEXT: dict[str, Any] = {"text": "bert", "text_config": _BERT, "max_tokens": 24}
_SMALL: dict[str, dict[str, Any]] = {
    "compact_1d": {"modality": "ecg", "seconds": 2.0, "widths": [8, 16], "joint_dim": 10},
    "compact_2d": {"modality": "xray", "image_size": 32, "widths": [8, 16], "joint_dim": 20},
    "compact_3d": {"modality": "ct", "shape": [6, 16, 16], "widths": [8, 16], "joint_dim": 12},
    "compact_beat": {"modality": "ecg", "joint_dim": 12},
    "compact_effnet": {"modality": "retina", "image_size": 64, "stages": [2, 4]},
    "ecg_clip": {"width": 32, "layers": 2, "heads": 4, "feed_forward": 48, "seconds": 2.0},
}


def filled(model: nn.Module) -> nn.Module:
    """As `reference.fill`, each weight in a thread of its own."""
    with torch.no_grad(), ThreadPoolExecutor() as pool:
        list(pool.map(lambda item: item[1].copy_(generated(*item)), model.state_dict().items()))
    return model


def build(name: str, folder: Path) -> DualEncoder:
    """The model `name` in eval mode with weights that follow from their names; `folder` holds what it needs."""
    kind = registry.get(name)
    if issubclass(kind, PublishedModel):
        with without_initialisation():
            model = models.build(name)
    elif name in _SMALL:
        train_wordpiece(TEXTS, 120).save(str(folder / "tokenizer.json"))
        model = models.build(name, assets=folder, **_SMALL[name], **_TEXT)
    else:
        model = models.build(name, source=str({"hf_clip_any": _hf_clip, "open_clip_any": _open_clip}[name](folder)))
    filled(model)
    return model.eval()


def inputs(model: DualEncoder) -> tuple[Tensor, Tokens | None]:
    """Images and, if it has a text tower, tokens."""
    return fixed_images(_shape(model, _preprocessed(model))), texts_for(model)


def _hf_clip(folder: Path) -> Path:
    from transformers import CLIPConfig, CLIPModel

    size = clip_tokenizer_files(folder)
    image_processor_files(folder)
    text = {"vocab_size": size, "max_position_embeddings": 32, "bos_token_id": size - 2, "eos_token_id": size - 1}
    vision = {"image_size": 32, "patch_size": 8}
    CLIPModel(CLIPConfig(text_config=TOWER | text, vision_config=TOWER | vision, projection_dim=24)).save_pretrained(
        str(folder)
    )
    return folder


def _open_clip(folder: Path) -> Path:
    text: dict[str, object] = {"context_length": 20, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
    return open_clip_folder(folder, text, dict(VISION))
