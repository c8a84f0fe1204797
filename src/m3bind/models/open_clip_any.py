"""Any model of open_clip, from a local folder (open_clip_config.json and weights) or a hub id.

n items, L tokens, d joint dimension.
The towers are open_clip's own and end with their projections, so both heads are the identity. open_clip's own text
tower needs the full context length; a Hugging Face text tower inside it takes texts padded to the longest.
"""

import dataclasses
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m3bind.core.files import write_json
from m3bind.errors import CheckpointError, ConfigError
from m3bind.modalities.base import Sample
from m3bind.modalities.formats.archive import temporary_folder
from m3bind.models.base import ModelCard, Tokens
from m3bind.models.layers.attention_masks import avoid_mask_syncs
from m3bind.models.layers.library import LibraryModel
from m3bind.models.layers.preprocess import rgb_image
from m3bind.models.weights import external, external_tokenizer
from m3bind.models.weights.checkpoint import load_strict
from m3bind.models.weights.weight_files import State

CONFIG_FILE = "open_clip_config.json"
TEXT_CONFIG_FOLDER = "text_config"
_MODEL_KEYS = (
    "custom_text", "embed_dim", "init_logit_bias", "init_logit_scale", "nonscalar_logit_scale", "quick_gelu",
    "text_cfg", "vision_cfg",
)  # fmt: skip
_TOKENIZER_KEYS = ("clean", "language", "strip_sep_token")
_ADDRESSES = ("hf_model_name", "hf_tokenizer_name")  # never followed: they only mark that the folder has such files
_TEXT_FAMILIES = ("bert", "m2m_100", "mt5", "roberta", "xlm-roberta")


def custom_text_names(state: State, module_keys: frozenset[str]) -> State:
    """open_clip's plain CLIP keys -> those with the text tower under `text.`; a migration for `load_strict`."""
    from open_clip.model import convert_to_custom_text_state_dict

    return dict(convert_to_custom_text_state_dict(state))


class _OpenClipTextTower(nn.Module):
    """open_clip's text tower, projection included; pads to `context` if the tower needs the full length."""

    def __init__(self, model: nn.Module, pad_id: int, context: int) -> None:
        super().__init__()
        self.model, self.pad_id, self.context = model, pad_id, context

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(n, L), (n, L) -> (n, d)."""
        ids = input_ids.masked_fill(attention_mask == 0, self.pad_id)
        if self.context:
            ids = F.pad(ids, (0, self.context - ids.shape[1]), value=self.pad_id)
        return self.model(ids)  # type: ignore[no-any-return]


class OpenClipAny(LibraryModel):
    """An open_clip model with its own tokenizer and image transform.

    Its folder holds open_clip_config.json and weights. A Hugging Face text tower is described by
    `text_config/config.json` in it; the name in the configuration is not followed.
    """

    name = "open_clip_any"
    migrations = (custom_text_names,)
    card = ModelCard(
        source="any model of the open_clip library",
        licence_code="MIT (open_clip)",
        licence_weights="that of the folder or repository given",
        joint_dim=0,
        input="as in its own preprocess_cfg",
        lora_text=("c_fc", "c_proj"),
        lora_image=("c_fc", "c_proj"),
        notes="joint_dim and LoRA names are read from the model; after loading, see model.card.",
    )

    def _read(self, folder: Path, state: State | None) -> Any:
        self.config = _read_config(folder)
        model = _build(self.config, folder)
        if state is not None:
            load_strict(model, state, self.migrations, source=str(folder))
        self._text_config: Any = getattr(model.text, "config", None)  # of a Hugging Face text tower
        self._read_tokenizer(folder, int(model.text.context_length))
        self.transform: Any = _transform(model.visual)
        return model

    def _take_apart(self, model: Any) -> int:
        masked = self._text_config is not None and self._text_config.pad_token_id == self.pad_id
        full = 0 if masked else self.max_tokens
        self.image_trunk, self.image_head = model.visual, nn.Identity()
        self.text_trunk, self.text_head = _OpenClipTextTower(model.text, self.pad_id, full), nn.Identity()
        return int(self.config["model_cfg"]["embed_dim"])

    def _read_tokenizer(self, folder: Path, positions: int) -> None:
        """As in open_clip, but never from an address: a Hugging Face tokenizer of the folder, or CLIP's own."""
        from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

        text = self.config["model_cfg"]["text_cfg"]
        self.max_tokens = int(text.get("context_length", min(77, positions)))
        options = {"context_length": self.max_tokens, **(text.get("tokenizer_kwargs") or {})}
        if text.get("hf_tokenizer_name"):
            external_tokenizer.require_tokenizer(folder)
            options |= {"tokenizer_mode": text.get("tokenizer_mode"), "trust_remote_code": False}
            with (
                external_tokenizer.tokenizer_files(folder) as files,
                external.library(folder, f"a folder with tokenizer files; copy them beside {CONFIG_FILE}"),
            ):
                self.tokenizer: Any = HFTokenizer(str(files), local_files_only=True, **options)
        else:
            with external.library(folder / CONFIG_FILE, "settings of CLIP's tokenizer"):
                self.tokenizer = SimpleTokenizer(**options)
        inner = getattr(self.tokenizer, "tokenizer", None)  # a Hugging Face tokenizer
        if inner is not None and inner.pad_token is None:
            raise ConfigError(f"{folder}: its tokenizer has no padding token; set pad_token in tokenizer_config.json.")
        self.pad_id = int(getattr(inner, "pad_token_id", None) or 0)

    def preprocess(self, sample: Sample) -> Tensor:
        """(H, W), (H, W, 3) or (D, H, W) -> (3, S, S) by the model's own transform."""
        pixels: Tensor = self.transform(rgb_image(sample, self.hu))
        return pixels.float()

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        """The model's own tokenizer; trailing padding common to all texts is removed.

        The BPE of CLIP pads with id 0, which is also the token "!", so its mask ends at the end-of-text token instead.
        """
        with external.library("tokenizer.json", "rules that can split every text"):
            ids: Tensor = self.tokenizer(list(texts)).long()
        if hasattr(self.tokenizer, "eot_token_id"):
            ends = (ids == self.tokenizer.eot_token_id).int().argmax(1)
            mask = (torch.arange(ids.shape[1]) <= ends[:, None]).long()
        else:  # up to the last token that is not padding
            numbers = torch.arange(1, ids.shape[1] + 1)
            mask = (numbers <= (numbers * (ids != self.pad_id)).amax(1, keepdim=True)).long()
        longest = int(mask.sum(1).max()) if len(ids) else 0
        return {"input_ids": ids[:, :longest], "attention_mask": mask[:, :longest]}

    def save_assets(self, folder: Path) -> None:
        """Write open_clip_config.json, and configuration and tokenizer of a Hugging Face text tower."""
        (folder / CONFIG_FILE).write_text(json.dumps(self.config, indent=1), encoding="utf-8")
        if self._text_config is not None:
            self._text_config.save_pretrained(str(folder / TEXT_CONFIG_FOLDER))
        if hasattr(self.tokenizer, "save_pretrained"):
            self.tokenizer.save_pretrained(str(folder))


def _read_config(folder: Path) -> dict[str, Any]:
    """open_clip_config.json, limited to numbers and names of open_clip's own settings: no addresses, no code.

    Raises:
        CheckpointError: missing, or other content; the message names the key.
    """
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg
    from open_clip.transform import PreprocessCfg

    stored, where = external.settings_of(folder, CONFIG_FILE), folder / CONFIG_FILE
    with external.library(where, "the configuration of an open_clip model"):
        model = _known(stored.get("model_cfg"), "model_cfg", _MODEL_KEYS)
        if absent := {"embed_dim", "vision_cfg", "text_cfg"} - set(model):
            raise ValueError(f"model_cfg lacks {', '.join(sorted(absent))}")
        vision = _known(model["vision_cfg"], "vision_cfg", _fields(CLIPVisionCfg))
        text = _known(model["text_cfg"], "text_cfg", _fields(CLIPTextCfg))
        preprocessing = _known(stored.get("preprocess_cfg") or {}, "preprocess_cfg", _fields(PreprocessCfg))
        external.sizes(model)
        if text.get("tokenizer_kwargs"):
            _known(text["tokenizer_kwargs"], "tokenizer_kwargs", _TOKENIZER_KEYS)
        for name in ("act_kwargs", "norm_kwargs"):
            for part in (vision, text):
                _known(part.get(name) or {}, name, ("approximate", "eps"))
        for side in (vision.get("image_size"), preprocessing.get("size")):
            external.side(side, "image_size")
        if vision.get("timm_model_name"):
            _check_timm(vision["timm_model_name"])
        return {"model_cfg": {**model, "vision_cfg": vision, "text_cfg": text}, "preprocess_cfg": preprocessing}


def _known(values: Any, where: str, keys: Collection[str]) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise ValueError(f"{where} is missing or not an object")
    for key, value in values.items():
        if key not in keys:
            raise ValueError(f"{where} has the key {key[:60]!r}; known: {', '.join(sorted(keys))}")
        if isinstance(value, str) and key not in _ADDRESSES and not external.is_name(value):
            raise ValueError(f"{where}: {key} is {value[:60]!r}, which is not a name")
    return dict(values)


def _fields(kind: Any) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(kind))


def _check_timm(name: Any) -> None:
    """Refuse a network that timm does not define itself but would read from a folder or a hub."""
    import timm

    if not isinstance(name, str) or not timm.is_model(name):
        raise ValueError(f"timm_model_name is {str(name)[:60]!r}, which is not a model of timm")


def _build(config: Mapping[str, Any], folder: Path) -> Any:
    """The untrained network, the text tower as a module of its own; nothing is fetched."""
    import open_clip

    avoid_mask_syncs()
    edited = json.loads(json.dumps(config))
    text = edited["model_cfg"]["text_cfg"]
    with temporary_folder() as temporary:
        if text.get("hf_model_name"):
            text["hf_model_name"] = str(temporary / TEXT_CONFIG_FOLDER)
            _copy_text_config(folder, temporary, config["model_cfg"]["text_cfg"]["hf_model_name"])
        write_json(temporary / CONFIG_FILE, edited)
        with (
            external.library(folder / CONFIG_FILE, "settings that open_clip can build"),
            external.quiet(),
        ):
            return open_clip.create_model(
                f"local-dir:{temporary}", load_weights=False, pretrained_text=False, force_custom_text=True
            )


def _copy_text_config(folder: Path, temporary: Path, name: object) -> None:
    """The configuration of the folder's Hugging Face text tower, reduced to values of the network."""
    own = folder / TEXT_CONFIG_FOLDER
    if not own.is_dir():
        raise CheckpointError(
            f"{folder}: the configuration of its text tower {name!r} is missing, and nothing is downloaded for a "
            f"folder; put that model's config.json into {own}."
        )
    config = external.open_config(own, _TEXT_FAMILIES)
    (temporary / TEXT_CONFIG_FOLDER).mkdir()
    with external.library(own / external.CONFIG, "the configuration of a text tower"):
        config.save_pretrained(str(temporary / TEXT_CONFIG_FOLDER))


def _transform(visual: Any) -> Any:
    from open_clip.transform import PreprocessCfg, image_transform_v2

    return image_transform_v2(PreprocessCfg(**visual.preprocess_cfg), is_train=False)
