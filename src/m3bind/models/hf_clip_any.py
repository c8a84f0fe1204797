"""Any CLIP-like model of transformers (CLIP, SigLIP, AltCLIP, Chinese CLIP ...), from a local folder or a hub id.

n items, L tokens, f width of a tower's pooled output, d joint dimension.
The library's own tokenizer and image processor are used. The model is split into trunk and projection, and the parts
are compared with the library's get_image_features / get_text_features once, so that a family with another pooling is
refused rather than computed wrongly.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m3bind.errors import CheckpointError, ConfigError
from m3bind.modalities.base import Sample
from m3bind.models.base import ModelCard, Tokens
from m3bind.models.layers.library import LibraryModel
from m3bind.models.layers.preprocess import rgb_image
from m3bind.models.weights import external, external_tokenizer
from m3bind.models.weights.weight_files import State

FAMILIES = (  # each compared with the library's own features, see `_check`
    "altclip", "blip", "chinese_clip", "clip", "clipseg", "groupvit", "metaclip_2", "owlv2", "owlvit", "siglip",
    "vision-text-dual-encoder",
)  # fmt: skip
FULL_LENGTH = ("siglip",)  # trained on unmasked texts, padded to the full length
_POOLINGS = ("pooler_output", "first")


def _pooled(output: Any, pooling: str = "pooler_output") -> Tensor:
    """(n, f) of a tower's output: its `pooler_output`, or the first token (also without a pooler)."""
    if isinstance(output, Tensor):
        return output
    pooled: Tensor | None = getattr(output, "pooler_output", None)
    return output.last_hidden_state[:, 0] if pooling == "first" or pooled is None else pooled


class _ImageTower(nn.Module):
    def __init__(self, model: nn.Module, pooling: str) -> None:
        super().__init__()
        self.model, self.pooling = model, pooling

    def forward(self, batch: Tensor) -> Tensor:
        """(n, 3, S, S) -> (n, f)."""
        return _pooled(self.model(pixel_values=batch), self.pooling)


class _HfTextTower(nn.Module):
    def __init__(self, model: nn.Module, pooling: str, pad_id: int, full_length: int) -> None:
        super().__init__()
        self.model, self.pooling, self.pad_id, self.full_length = model, pooling, pad_id, full_length

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(n, L), (n, L) -> (n, f); with `full_length`, padded up to it and unmasked, as SigLIP was trained."""
        if self.full_length:
            ids = F.pad(input_ids, (0, self.full_length - input_ids.shape[1]), value=self.pad_id)
            return _pooled(self.model(input_ids=ids), self.pooling)
        return _pooled(self.model(input_ids=input_ids, attention_mask=attention_mask), self.pooling)


class HFClipAny(LibraryModel):
    """A transformers model with a vision tower, a text tower, two projections and a logit scale.

    Its folder holds config.json, weights, tokenizer files and preprocessor_config.json.
    """

    name = "hf_clip_any"
    card = ModelCard(
        source="any CLIP-like model of the transformers library",
        licence_code="Apache-2.0 (transformers)",
        licence_weights="that of the folder or repository given",
        joint_dim=0,
        input="as in its own image processor",
        lora_text=("q_proj", "v_proj"),
        lora_image=("q_proj", "v_proj"),
        notes="joint_dim and LoRA names are read from the model; after loading, see model.card.",
    )

    def _read(self, folder: Path, state: State | None) -> Any:
        """The network; tokenizer and image processor become attributes."""
        try:
            config = external.open_config(folder, FAMILIES)
            self.tokenizer: Any = external_tokenizer.open_tokenizer(folder)
            self.processor: Any = external_tokenizer.open_processor(folder)
        except CheckpointError as error:
            raise CheckpointError(
                f"{error} A transformers folder holds config.json, tokenizer files and preprocessor_config.json."
            ) from error
        if state is None:
            return external.build(config, folder / external.CONFIG)
        return external.build_with_weights(config, state, folder)

    def _take_apart(self, model: Any) -> int:
        self.config: Any = model.config
        full = model.config.model_type in FULL_LENGTH
        limit = int(getattr(model.config.text_config, "max_position_embeddings", 77))
        self.max_tokens = min(limit, int(self.tokenizer.model_max_length))
        pad_id = self._padding(full)
        self.image_trunk = _ImageTower(model.vision_model, _POOLINGS[0])
        self.image_head = getattr(model, "visual_projection", None) or nn.Identity()
        self.text_trunk = _HfTextTower(model.text_model, _POOLINGS[0], pad_id, self.max_tokens if full else 0)
        self.text_head = getattr(model, "text_projection", None) or nn.Identity()
        return self._check(model)

    def _padding(self, full: bool) -> int:
        """Pad on the right, which shifts no token; without a padding token by any other, which is masked.

        A family of full-length texts is unchanged: it was trained on its padding, on either side.

        Raises:
            ConfigError: the family needs a padding token and its tokenizer has none.
        """
        own = self.tokenizer
        if own.pad_token is None:
            if full:
                raise ConfigError(f"a {self.config.model_type} needs a padding token; set pad_token in its tokenizer.")
            own.pad_token = own.eos_token or own.sep_token or own.unk_token or own.convert_ids_to_tokens(0)
        if not full:
            own.padding_side = "right"
        return int(own.pad_token_id)

    @torch.no_grad()
    def _check(self, model: Any) -> int:
        """Choose the pooling that reproduces the library's own features; returns the joint dimension.

        Raises:
            ConfigError: none does.
        """
        tokens = self.tokenize(["no acute findings"])
        with external.library(model.config.model_type, "a family whose parts hf_clip_any knows"):
            images = self.processor(images=rgb_image(_probe()), return_tensors="pt")["pixel_values"][:1]
            mask = {} if model.config.model_type in FULL_LENGTH else {"attention_mask": tokens["attention_mask"]}
            expected_text = _pooled(model.get_text_features(input_ids=tokens["input_ids"], **mask))
            expected_image = _pooled(model.get_image_features(pixel_values=images))
        sides: list[tuple[str, Any, Callable[[], Tensor], Tensor]] = [
            ("text", self.text_trunk, lambda: self.project_text(self.text_features(tokens)), expected_text),
            ("image", self.image_trunk, lambda: self.project_image(self.image_features(images)), expected_image),
        ]
        for side, trunk, compute, expected in sides:
            for trunk.pooling in _POOLINGS:
                with external.library(model.config.model_type, f"a family whose {side} tower hf_clip_any knows"):
                    got = compute()
                if got.shape == expected.shape and torch.allclose(got, expected, atol=1e-4, rtol=1e-4):
                    break
            else:
                raise ConfigError(
                    f"{model.config.model_type}: the pooling of its {side} tower is unknown to hf_clip_any; "
                    "write a model file of its own for it (CONTRIBUTING, 'a new model')."
                )
        return int(expected_text.shape[1])

    def preprocess(self, sample: Sample) -> Tensor:
        """(H, W), (H, W, 3) or (D, H, W) -> (3, S, S) by the model's own image processor."""
        pixels: Tensor = self.processor(images=rgb_image(sample, self.hu), return_tensors="pt")["pixel_values"][0]
        return pixels.float()

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        """The model's own tokenizer; padded to the longest, or to the full length if the family needs it."""
        full = self.config.model_type in FULL_LENGTH
        with external.library("tokenizer.json", "rules that can split every text"):
            encoded = self.tokenizer(
                list(texts),
                padding="max_length" if full else True,
                truncation=True,
                max_length=self.max_tokens,
                return_attention_mask=True,
                return_tensors="pt",
            )
        return {"input_ids": encoded["input_ids"], "attention_mask": encoded["attention_mask"]}

    def save_assets(self, folder: Path) -> None:
        """Write configuration, tokenizer and image processor in transformers' own form."""
        self.config.save_pretrained(str(folder))
        self.tokenizer.save_pretrained(str(folder))
        self.processor.save_pretrained(str(folder))


def _probe() -> Sample:
    """A fixed image (a ramp with a step) for the comparison with the library."""
    rows = torch.linspace(0, 1, 64)
    return Sample("probe", ((rows[:, None] + (rows[None] > 0.5)) / 2).numpy())
