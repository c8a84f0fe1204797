"""Any model of open_clip, from a local folder (open_clip_config.json and weights) or a hub id.

n items, L tokens, d joint dimension.
The towers are open_clip's own and end with their projections, so both heads are the identity. open_clip's own text
tower needs the full context length; a Hugging Face text tower inside it takes text padded to the longest.
"""

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m3bind.errors import CheckpointError, DiskError
from m3bind.modalities.base import Sample
from m3bind.models.base import ModelCard, Tokens
from m3bind.models.checkpoint import State
from m3bind.models.library import LibraryModel
from m3bind.models.preprocess import picture

CONFIG_FILE = "open_clip_config.json"
TEXT_CONFIG_FOLDER = "text_config"


def custom_text_names(state: State, wanted: frozenset[str]) -> State:
    """open_clip's plain CLIP keys -> those with the text tower under `text.`; a migration for `load_strict`."""
    from open_clip.model import convert_to_custom_text_state_dict

    return dict(convert_to_custom_text_state_dict(state))


class _TextTower(nn.Module):
    """open_clip's text tower, projection included; pads to `context` where the tower needs the full length."""

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
    `text_config/config.json` in it, or by the model name the configuration gives.
    """

    name = "open_clip_any"
    migrations = (custom_text_names,)
    card = ModelCard(
        source="any model of the open_clip library",
        licence_code="MIT (open_clip)",
        licence_weights="that of the folder or repository given",
        joint_dim=0,
        input="as its own preprocess_cfg says",
        lora_text=("c_fc", "c_proj"),
        lora_image=("c_fc", "c_proj"),
        notes="joint_dim and LoRA names are read from the model; after loading, see model.card.",
    )

    def _read(self, folder: Path) -> Any:
        self.config = _read_config(folder)
        model = _build(self.config, folder)
        self._text_config: Any = getattr(model.text, "config", None)  # of a Hugging Face text tower
        self._read_tokenizer(folder, int(model.text.context_length))
        self.transform: Any = _transform(model.visual)
        return model

    def _take_apart(self, model: Any) -> int:
        full = 0 if self._text_config is not None else self.max_tokens
        self.image_trunk, self.image_head = model.visual, nn.Identity()
        self.text_trunk, self.text_head = _TextTower(model.text, self.pad_id, full), nn.Identity()
        return int(self.config["model_cfg"]["embed_dim"])

    def _read_tokenizer(self, folder: Path, positions: int) -> None:
        import open_clip

        self.max_tokens = int(self.config["model_cfg"]["text_cfg"].get("context_length", min(77, positions)))
        try:
            self.tokenizer: Any = open_clip.get_tokenizer(f"local-dir:{folder}", context_length=self.max_tokens)
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{folder}: its tokenizer files are missing ({str(error).splitlines()[0][:120]}); copy them beside "
                f"{CONFIG_FILE}."
            ) from error
        own = getattr(self.tokenizer, "tokenizer", None)  # a Hugging Face tokenizer inside
        self.pad_id = int(getattr(own, "pad_token_id", None) or 0)

    def preprocess(self, sample: Sample) -> Tensor:
        """(H, W), (H, W, 3) or (D, H, W) -> (3, S, S) by the model's own transform."""
        pixels: Tensor = self.transform(picture(sample, self.hu))
        return pixels.float()

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        """The model's own tokenizer; trailing padding common to all texts is cut off.

        The BPE of CLIP pads with id 0, which is also the token "!", so its mask ends at the end-of-text token instead.
        """
        ids: Tensor = self.tokenizer(list(texts)).long()
        if hasattr(self.tokenizer, "eot_token_id"):
            ends = (ids == self.tokenizer.eot_token_id).int().argmax(1)
            mask = (torch.arange(ids.shape[1]) <= ends[:, None]).long()
        else:
            mask = (ids != self.pad_id).long()
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
    try:
        config: dict[str, Any] = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        if not {"embed_dim", "vision_cfg", "text_cfg"} <= set(config["model_cfg"]):
            raise KeyError("model_cfg lacks embed_dim, vision_cfg or text_cfg")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder}: no usable {CONFIG_FILE} ({error}); is it an open_clip folder?") from error
    return config


def _build(config: Mapping[str, Any], folder: Path) -> Any:
    """The untrained network, the text tower as a module of its own; nothing is downloaded where the folder says all."""
    import open_clip

    edited = json.loads(json.dumps(config))
    if "hf_model_name" in edited["model_cfg"]["text_cfg"] and (folder / TEXT_CONFIG_FOLDER).is_dir():
        edited["model_cfg"]["text_cfg"]["hf_model_name"] = str(folder / TEXT_CONFIG_FOLDER)
    try:
        with tempfile.TemporaryDirectory() as temporary:
            (Path(temporary) / CONFIG_FILE).write_text(json.dumps(edited), encoding="utf-8")
            return open_clip.create_model(
                f"local-dir:{temporary}", load_weights=False, pretrained_text=False, force_custom_text=True
            )
    except (ValueError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"{folder / CONFIG_FILE}: open_clip cannot build this ({str(error)[:160]}).") from error
    except OSError as error:
        if getattr(error, "errno", None) is not None:
            raise DiskError(f"cannot write a temporary folder ({error}); free space or set TMPDIR.") from error
        name = config["model_cfg"]["text_cfg"].get("hf_model_name")
        raise CheckpointError(
            f"{folder}: the configuration of its text tower {name!r} is not at hand; put that model's config.json into "
            f"{folder / TEXT_CONFIG_FOLDER}."
        ) from error


def _transform(visual: Any) -> Any:
    from open_clip.transform import PreprocessCfg, image_transform_v2

    return image_transform_v2(PreprocessCfg(**visual.preprocess_cfg), is_train=False)
