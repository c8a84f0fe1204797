"""The student's text encoder split into parts of other libraries: a transformers network, a pooling, plain layers.

* `network`: the transformers model. * `write_network`: writes it with its tokenizer.
* `plain_layers`: everything after pooling as Linear, LayerNorm and activations, equal up to rounding.
* `Padded`: the whole encoder on padded tokens. * `on_cpu`: a copy of any module to export.

Shapes: n texts, L tokens, H hidden width, f width of the features, h of a hidden layer, d dimension of the space.
"""

import copy
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m3bind.core.device import CPU
from m3bind.core.files import write_json
from m3bind.errors import ConfigError
from m3bind.models.layers.heads import Mlp, ResidualHead
from m3bind.models.layers.text_encoder import TextEncoder

M = TypeVar("M", bound=nn.Module)
_SPECIAL = {
    "unk_token": ("[UNK]", "<unk>"),
    "cls_token": ("[CLS]", "<s>"),
    "sep_token": ("[SEP]", "</s>"),
    "mask_token": ("[MASK]", "<mask>"),
}


def on_cpu(module: M) -> M:
    """A copy of a module on the CPU."""
    return copy.deepcopy(module).to(CPU)


def network(encoder: TextEncoder) -> Any:
    """The transformers model of the encoder.

    Raises:
        ConfigError: an adapter is not merged, or hidden states other than the last are pooled.
    """
    trunk: Any = encoder.trunk
    if any("lora_" in key for key in trunk.state_dict()):
        raise ConfigError("the student still has adapters; merge them before the export")
    if hasattr(trunk, "bert"):
        if trunk.states != (trunk.config.num_hidden_layers,):
            raise ConfigError(f"the student pools hidden states {trunk.states}; only the last one can be exported")
        return trunk.bert
    return trunk.model


def pooling(encoder: TextEncoder) -> str:
    """Which tokens are pooled: "mean", "cls" or "last"; BERT's "pooler" is "cls" with an additional layer.

    Raises:
        ConfigError: the student averages over padding, so its vectors depend on the batch.
    """
    kind = str(encoder.trunk.pooling)
    if kind == "padded":
        raise ConfigError("the student averages over padding, which no other library does; it cannot be exported")
    return "cls" if kind == "pooler" else kind


def loads_without_pooler(encoder: TextEncoder) -> bool:
    """Whether transformers needs `add_pooling_layer=False`, or else it adds an untrained pooler."""
    return getattr(network(encoder), "pooler", 0) is None


def plain_layers(encoder: TextEncoder) -> nn.Sequential:
    """From pooled features (n, H) to the vector (n, d) before normalisation: Linear, LayerNorm, GELU and Tanh only.

    Raises:
        ConfigError: a head of another kind.
    """
    layers: list[nn.Module] = []
    if encoder.trunk.pooling == "pooler":
        layers += [_linear(network(encoder).pooler.dense.weight, network(encoder).pooler.dense.bias), nn.Tanh()]
    head: Any = encoder.head
    if isinstance(head, nn.Linear):
        layers.append(_linear(head.weight, head.bias))
    elif isinstance(head, ResidualHead):
        layers += _adapter(head)
    elif isinstance(head, Mlp):
        layers += _mlp(head)
    elif not isinstance(head, nn.Identity):
        raise ConfigError(f"a head of kind {type(head).__name__} has no export; use linear, adapter, mlp or identity")
    return nn.Sequential(*layers).requires_grad_(False).eval()


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")  # no initialisation
    layer.weight = nn.Parameter(weight.detach().float().clone())
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().float().clone())
    return layer


def _adapter(head: ResidualHead) -> list[nn.Module]:
    """y = W (x' + V2 gelu(V1 x' + b1) + b2) without the residual: z = gelu(z) - gelu(-z) carries W x' past the GELU."""
    w, v1, v2 = (part.weight.detach().double() for part in (head.out, head.inner, head.outer))
    narrow = w if w.shape[0] <= w.shape[1] else torch.eye(w.shape[1], dtype=w.dtype)  # (d, f) or (f, f)
    after = torch.eye(w.shape[0], dtype=w.dtype) if narrow is w else w
    zeros = torch.zeros(2 * len(narrow), dtype=w.dtype)
    first = _linear(torch.cat([v1, narrow, -narrow]), torch.cat([head.inner.bias.detach().double(), zeros]))
    second = _linear(torch.cat([w @ v2, after, -after], dim=1), w @ head.outer.bias.detach().double())
    return [copy.deepcopy(head.norm).float(), first, nn.GELU(), second]


def _mlp(head: Mlp) -> list[nn.Module]:
    """The standardisation is folded into the first layer; dropout is omitted."""
    inner, norm, last = (module for module in head.net if isinstance(module, nn.Linear | nn.LayerNorm))
    assert isinstance(inner, nn.Linear) and isinstance(norm, nn.LayerNorm) and isinstance(last, nn.Linear)
    weight = inner.weight.detach().double() / head.std.double()
    first = _linear(weight, inner.bias.detach().double() - weight @ head.mean.double())
    return [first, copy.deepcopy(norm).float(), nn.GELU(), _linear(last.weight, last.bias)]


class Padded(nn.Module):
    """The encoder on padded tokens by the network's own forward: (n, L), (n, L) -> (n, d) unit rows."""

    def __init__(self, encoder: TextEncoder) -> None:
        """Shares the network's weights."""
        super().__init__()
        self.network, self.pooling, self.layers = network(encoder), pooling(encoder), plain_layers(encoder)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """int64 (n, L) twice -> (n, d) unit rows; padding on the right."""
        hidden = self.network(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        if self.pooling == "cls":
            pooled = hidden[:, 0]
        elif self.pooling == "last":
            last = attention_mask.sum(1) - 1
            pooled = hidden.gather(1, last[:, None, None].expand(-1, 1, hidden.shape[2])).squeeze(1)
        else:
            mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
            pooled = (hidden * mask).sum(1) / mask.sum(1)
        return F.normalize(self.layers(pooled), dim=-1)


def write_network(encoder: TextEncoder, folder: Path) -> None:
    """config.json, model.safetensors and the tokenizer, for `AutoModel` and `AutoTokenizer`."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        network(encoder).save_pretrained(folder)
    finally:
        if shown:
            logging.enable_progress_bar()
    encoder.save_assets(folder)
    tokenizer = encoder.tokenizer.tokenizer
    special = {
        key: name for key, names in _SPECIAL.items() for name in names if tokenizer.token_to_id(name) is not None
    }
    padding = (tokenizer.padding or {})["pad_token"]
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": encoder.max_tokens,
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
        "pad_token": padding,
        **special,
    }
    write_json(folder / "tokenizer_config.json", config)
