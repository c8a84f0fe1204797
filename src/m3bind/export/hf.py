"""The student as a folder of transformers: `AutoModel`, `AutoTokenizer`, and the layers after pooling.

An AutoModel returns hidden states. The layers after pooling are in `projection.safetensors`, the state dict of an
`nn.Sequential` that the folder's README builds and applies in two lines. No custom code, no trust_remote_code.
"""

from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn

from m3bind.core.files import write_text
from m3bind.export import student as parts
from m3bind.export.readme import student_readme
from m3bind.models.layers.text_encoder import TextEncoder

PROJECTION = "projection.safetensors"
_IMPORTS = """\
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModel, AutoTokenizer"""
_POOLED = {
    "cls": "hidden[:, 0]",
    "last": 'hidden[torch.arange(len(texts)), tokens["attention_mask"].sum(1) - 1]',
    "mean": "(hidden * mask).sum(1) / mask.sum(1)",
}


def write(encoder: TextEncoder, folder: Path, facts: dict[str, Any]) -> None:
    """Write the folder."""
    layers = parts.plain_layers(encoder)
    parts.write_network(encoder, folder)
    if len(layers):
        save_file(layers.state_dict(), folder / PROJECTION)
    write_text(folder / "README.md", student_readme("transformers", _IMPORTS, _code(encoder, layers), facts))


def _code(encoder: TextEncoder, layers: nn.Sequential) -> str:
    """The lines that turn `texts` into `embeddings`."""
    plain = ", add_pooling_layer=False" if parts.loads_without_pooler(encoder) else ""
    pooled = _POOLED[parts.pooling(encoder)]
    lines = [
        'tokenizer = AutoTokenizer.from_pretrained("FOLDER")',
        f'model = AutoModel.from_pretrained("FOLDER"{plain}).eval()',
        'tokens = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")',
        "with torch.no_grad():",
        "    hidden = model(**tokens).last_hidden_state",
    ]
    if "mask" in pooled and pooled.startswith("(hidden"):
        lines.append('    mask = tokens["attention_mask"].unsqueeze(-1)')
    lines.append(f"    embeddings = {pooled}")
    if len(layers):
        lines.insert(2, f"projection = nn.Sequential({', '.join(map(_source, layers))})")
        lines.insert(3, f'projection.load_state_dict(load_file("FOLDER/{PROJECTION}"))')
        lines.append("    embeddings = projection(embeddings)")
    lines.append("    embeddings = nn.functional.normalize(embeddings, dim=-1)  # unit rows")
    return "\n".join(lines)


def _source(layer: nn.Module) -> str:
    """Source code of an untrained layer of the same shape."""
    if isinstance(layer, nn.Linear):
        ending = "" if layer.bias is not None else ", bias=False"
        return f"nn.Linear({layer.in_features}, {layer.out_features}{ending})"
    if isinstance(layer, nn.LayerNorm):
        return f"nn.LayerNorm({layer.normalized_shape[0]})"
    return f"nn.{type(layer).__name__}()"
