"""The student as a folder of sentence-transformers: Transformer, Pooling, Dense, LayerNorm, Normalize; no custom code.

* `write`: writes it.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from m3bind.core.files import write_json, write_text
from m3bind.export import student as parts
from m3bind.export.readme import student_readme
from m3bind.models.layers.text_encoder import TextEncoder

_MODULES = "sentence_transformers.models."
_POOLING = {"mean": "mean_tokens", "cls": "cls_token", "last": "lasttoken"}
_MODES = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")


def write(encoder: TextEncoder, folder: Path, facts: dict[str, Any]) -> None:
    """Write the folder. Dense layers need sentence-transformers >= 3, a LayerNorm between them >= 5."""
    layers = parts.plain_layers(encoder)
    parts.write_network(encoder, folder)
    settings: dict[str, Any] = {"max_seq_length": encoder.max_tokens, "do_lower_case": False}
    if parts.loads_without_pooler(encoder):
        settings["model_args"] = {"add_pooling_layer": False}
    write_json(folder / "sentence_bert_config.json", settings)
    width = int(parts.network(encoder).config.hidden_size)
    chosen = _POOLING[parts.pooling(encoder)]
    modes = {f"pooling_mode_{mode}": mode == chosen for mode in _MODES}
    modules = [("Transformer", ""), ("Pooling", "1_Pooling")]
    _write_module(folder / "1_Pooling", {"word_embedding_dimension": width, **modes, "include_prompt": True}, {})
    for kind, config, state in _modules(layers, width):
        modules.append((kind, f"{len(modules)}_{kind}"))
        _write_module(folder / modules[-1][1], config, state)
    modules.append(("Normalize", f"{len(modules)}_Normalize"))
    (folder / modules[-1][1]).mkdir()
    listed = []
    for number, (kind, path) in enumerate(modules):
        listed.append({"idx": number, "name": str(number), "path": path, "type": _MODULES + kind})
    write_json(folder / "modules.json", listed)
    about: dict[str, Any] = {"prompts": {}, "default_prompt_name": None, "similarity_fn_name": "cosine"}
    write_json(folder / "config_sentence_transformers.json", about)
    code = 'model = SentenceTransformer("FOLDER")\nembeddings = model.encode(texts)  # unit rows'
    imports = "from sentence_transformers import SentenceTransformer"
    write_text(folder / "README.md", student_readme("sentence-transformers", imports, code, facts))


def _modules(layers: nn.Sequential, width: int) -> list[tuple[str, dict[str, Any], dict[str, torch.Tensor]]]:
    """(class, config, weights) of each sentence-transformers module that makes up `layers`.

    An activation belongs to the Dense before it; after a LayerNorm it gets a Dense of its own, the identity.
    """
    modules: list[tuple[str, dict[str, Any], dict[str, torch.Tensor]]] = []
    for layer in layers:
        if isinstance(layer, nn.LayerNorm):
            modules.append(("LayerNorm", {"dimension": width}, {f"norm.{k}": v for k, v in layer.state_dict().items()}))
        elif isinstance(layer, nn.Linear):
            width = layer.out_features
            state = {f"linear.{key}": value for key, value in layer.state_dict().items()}
            modules.append(("Dense", _dense(layer.in_features, width, layer.bias is not None, nn.Identity()), state))
        elif modules and modules[-1][0] == "Dense":
            modules[-1][1]["activation_function"] = _path(layer)
        else:
            modules.append(("Dense", _dense(width, width, False, layer), {"linear.weight": torch.eye(width)}))
    return modules


def _dense(before: int, after: int, bias: bool, activation: nn.Module) -> dict[str, Any]:
    return {"in_features": before, "out_features": after, "bias": bias, "activation_function": _path(activation)}


def _path(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _write_module(folder: Path, config: dict[str, Any], state: dict[str, torch.Tensor]) -> None:
    folder.mkdir()
    write_json(folder / "config.json", config)
    if state:
        save_file(state, folder / "model.safetensors")
