"""No tower waits for the host: every registered model, in full size, on tensors that have no values.

On PyTorch's meta device a program that asks for a value (`item`, `nonzero`, `bool(tensor)`) fails, and nothing else
costs time or memory. Constants copied from the host make a GPU's host wait too, and are found by `Copies`.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import m3bind.models as models
from m3bind.models.base import DualEncoder
from m3bind.models.layers.text_encoder import HFTrunk
from m3bind.models.registry import get
from m3bind.models.weights import external
from m3bind.models.weights.allowed import ENCODERS

ANY = {"hf_clip_any": ["hf_clip_folder", "siglip_folder"], "open_clip_any": ["open_clip_plain", "open_clip_bert"]}
CASES = [(name, source) for name in models.names() for source in ANY.get(name, [""])]
SHAPES = {  # of one input where it is not a picture of 3 x 224 x 224
    "compact_1d": (12, 1000), "compact_3d": (1, 32, 32, 32), "compact_beat": (964,), "ecg_clip": (12, 1000),
    "ct_net": (134, 3, 420, 420), "flair": (3, 512, 512), "medclip_vit": (1, 224, 224), "prior": (1, 224, 224),
    "merl_resnet18": (12, 5000), "merl_vit_tiny": (12, 5000), "pe_core_s16": (3, 384, 384),
    "pe_core_t16": (3, 384, 384), "hf_clip_any": (3, 32, 32), "open_clip_any": (3, 32, 32),
}  # fmt: skip


class Copies(TorchDispatchMode):
    """Counts the tensors with axes that are copied from the host to the meta device."""

    count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        to = (kwargs or {}).get("device")
        if function in (torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default):
            source, to = (args[1], args[0].device) if to is None and len(args) > 1 else (args[0], to)
            self.count += source.device.type == "cpu" and str(to) == "meta" and source.dim() > 0
        return function(*args, **(kwargs or {}))


@contextlib.contextmanager
def without_values() -> Iterator[Copies]:
    """The meta device as one to compute on; autocast, which it lacks, is off."""
    enabled, autocast = torch.is_autocast_enabled, torch.autocast

    def off(device: str = "meta", *options: Any, **keywords: Any) -> Any:
        return contextlib.nullcontext() if device == "meta" else autocast(device, *options, **keywords)

    with (
        patch.object(torch, "is_autocast_enabled", lambda device="cpu": device != "meta" and enabled(device)),
        patch.object(torch, "autocast", off),
        Copies() as copies,
    ):
        yield copies


def built(name: str, source: str, assets: Path, request: pytest.FixtureRequest) -> DualEncoder:
    """The model on the meta device."""
    if source:
        return models.build(name, source=request.getfixturevalue(source)).to("meta").eval()
    settings: dict[str, Any] = {}
    if name.startswith("compact") or name == "ecg_clip":
        settings = {"text": "bert", "assets": assets}
        settings |= {"modality": "xray"} if name in ("compact_2d", "compact_effnet") else {}
    with torch.device("meta"):
        model = models.build(name, **settings)
    return model.to("meta").eval()


def tokens(width: int) -> dict[str, Tensor]:
    ids = torch.empty(3, width, dtype=torch.int64, device="meta")
    return {"input_ids": ids, "attention_mask": torch.empty_like(ids)}


@pytest.mark.whole
@pytest.mark.parametrize(("name", "source"), CASES)
def test_no_registered_model_waits(name: str, source: str, assets: Path, request: pytest.FixtureRequest) -> None:
    model = built(name, source, assets, request)
    shape = getattr(get(name), "check_shape", ()) or SHAPES.get(name, (3, 224, 224))
    for grad in (False, True):
        with without_values() as copies, torch.set_grad_enabled(grad):
            assert model.encode_image(torch.empty(2, *shape, device="meta")).shape == (2, model.joint_dim)
            if model.max_tokens:
                assert model.encode_text(tokens(min(16, model.max_tokens))).shape == (3, model.joint_dim)
        assert copies.count == 0


# a Longformer asks for its global tokens, an X-MOD for its languages
@pytest.mark.parametrize("family", sorted(ENCODERS - {"bert", "longformer", "xmod"}))
def test_no_other_text_encoder_waits(family: str) -> None:
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    own = {
        "esm": {"vocab_size": 50, "pad_token_id": 1},
        "squeezebert": {"embedding_size": 16},
    }
    heads = (
        {"num_key_value_heads": 2, "head_dim": 8} if hasattr(CONFIG_MAPPING[family](), "num_key_value_heads") else {}
    )
    values = {"model_type": family, **small, **heads, **own.get(family, {})}
    with torch.device("meta"):
        trunk = HFTrunk(external.make_config(values, ENCODERS, "a test")).to("meta").eval()
    with without_values() as copies:
        assert len(trunk(**tokens(12))) == 3
    assert copies.count == 0
