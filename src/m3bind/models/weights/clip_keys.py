"""CLIP checkpoints in their two forms: recognised, their configuration read, and converted to one set of keys.

* `is_open_clip`: the form of a file. * `huggingface_keys`: open_clip's names -> those of transformers' CLIPModel.
* `CLIP_PARTS`: CLIPModel's names -> the four parts of a model in this package.
* `read_quick_gelu`: the GELU in the configuration beside the weights.

OpenAI's release and open_clip have query, key and value in one matrix and multiply features by the projections from the
right; CLIPModel has three linear layers, and linear layers as projections. The values are the same.
"""

import re
from pathlib import Path
from typing import Any

from torch import Tensor

from m3bind.core.stored import read_json
from m3bind.errors import CheckpointError
from m3bind.models.weights.checkpoint import Migration, rename
from m3bind.models.weights.weight_files import FOLDER_FILES, State

OPEN_CLIP_CONFIG, HUGGINGFACE_CONFIG = "open_clip_config.json", "config.json"
_FUSED = re.compile(r"\.resblocks\.\d+\.attn\.in_proj_(weight|bias)$")
_TOWERS = ((re.compile(r"^visual\."), "vision_model."), (re.compile(r"^(text\.)?(?!visual\.)"), "text_model."))
_PROJECTIONS = {
    "visual.proj": "visual_projection.weight",
    "text_projection": "text_projection.weight",
    "text.text_projection": "text_projection.weight",
}
_NAMES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^class_embedding$", "embeddings.class_embedding"),
        (r"^positional_embedding$", "embeddings.position_embedding.weight"),
        (r"^token_embedding\.weight$", "embeddings.token_embedding.weight"),
        (r"^conv1\.weight$", "embeddings.patch_embedding.weight"),
        (r"^ln_pre\.", "pre_layrnorm."),
        (r"^ln_post\.", "post_layernorm."),
        (r"^ln_final\.", "final_layer_norm."),
        (r"^transformer\.resblocks\.(\d+)\.ln_([12])\.", r"encoder.layers.\1.layer_norm\2."),
        (r"^transformer\.resblocks\.(\d+)\.mlp\.c_fc\.", r"encoder.layers.\1.mlp.fc1."),
        (r"^transformer\.resblocks\.(\d+)\.mlp\.c_proj\.", r"encoder.layers.\1.mlp.fc2."),
        (r"^transformer\.resblocks\.(\d+)\.attn\.out_proj\.", r"encoder.layers.\1.self_attn.out_proj."),
        (r"^transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)$", r"encoder.layers.\1.self_attn.{}_proj.\2"),
    )
)

CLIP_PARTS: tuple[Migration, ...] = (
    rename(r"^vision_model\.", "image_trunk.model."),
    rename(r"^visual_projection\.", "image_head."),
    rename(r"^text_model\.", "text_trunk.model."),
    rename(r"^text_projection\.", "text_head."),
    rename(r"^logit_scale$", "scale.log"),
)


def is_open_clip(state: State) -> bool:
    """Whether keys are those of OpenAI and open_clip (fused query, key and value)."""
    return any(_FUSED.search(key) for key in state)


def huggingface_keys(state: State, module_keys: frozenset[str]) -> State:
    """open_clip's CLIP keys, the text tower under `text.` or not -> CLIPModel's; other keys are unchanged. A migration.

    Raises (when applied):
        CheckpointError: two keys would get the same name (a file that holds both forms).
    """
    converted: State = {}
    for key, value in state.items():
        for name, tensor in _converted(key, value):
            if name in converted:
                raise CheckpointError(f"two keys of the checkpoint mean {name}; it holds open_clip's form and another.")
            converted[name] = tensor
    return converted


def _converted(key: str, value: Tensor) -> list[tuple[str, Tensor]]:
    if key in _PROJECTIONS:
        return [(_PROJECTIONS[key], value.t().contiguous())]
    for prefix, tower in _TOWERS:
        if not prefix.match(key):
            continue
        for pattern, replacement in _NAMES:
            name, changed = pattern.subn(replacement, prefix.sub("", key, count=1))
            if changed and "{}" in name:
                thirds = value.chunk(3) if len(value) % 3 == 0 else (value, value, value)
                return [(tower + name.format(letter), part) for letter, part in zip("qkv", thirds)]
            if changed:
                return [(tower + name, value)]
    return [(key, value)]


def read_quick_gelu(path: Path, open_clip: bool) -> bool | None:
    """Whether the configuration in a checkpoint's folder states quick_gelu; None without a configuration.

    `path` is the folder, or a file in it with one of the usual names. If the folder has configurations of both forms,
    that of the form of the weights (`open_clip`) is read first.

    Raises:
        CheckpointError: a configuration of another network, or of an activation other than the two CLIP has.
    """
    folder = path if path.is_dir() else path.parent if path.name in FOLDER_FILES else None
    if folder is None:
        return None
    names = (OPEN_CLIP_CONFIG, HUGGINGFACE_CONFIG)
    for name in names if open_clip else reversed(names):
        if (folder / name).is_file():
            try:
                config = read_json(folder / name)
                if name == OPEN_CLIP_CONFIG:
                    return bool(config["model_cfg"].get("quick_gelu", False))
                return _huggingface_quick_gelu(config)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise CheckpointError(
                    f"{folder / name}: not the configuration of a CLIP ({error}); give the right one, or the weights "
                    "file alone with quick_gelu=true or false."
                ) from error
    return None


def _huggingface_quick_gelu(config: dict[str, Any]) -> bool:
    from transformers import CLIPConfig

    if config.get("model_type", "clip") != "clip":
        raise ValueError(f"model_type {config['model_type']!r}")
    for part in ("text_config", "vision_config"):
        if not isinstance(config.get(part) or {}, dict):
            raise ValueError(f"{part} {config[part]!r:.80} is not a table of settings")
    try:
        clip = CLIPConfig.from_dict(config)
    except Exception as error:  # the errors of transformers' validation share no base
        raise ValueError(str(error)[:160]) from error
    if clip.text_config.eos_token_id not in (2, 49407):  # 2: old files; the end of a text is its highest id in both
        raise ValueError(f"eos_token_id {clip.text_config.eos_token_id}, another vocabulary")
    activations = {clip.text_config.hidden_act, clip.vision_config.hidden_act}
    if activations not in ({"gelu"}, {"quick_gelu"}):
        raise ValueError(f"hidden_act {', '.join(sorted(activations))}")
    return activations == {"quick_gelu"}
