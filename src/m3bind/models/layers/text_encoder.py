"""The text tower of `compact_*` and `ecg_clip`, and the student of stage 2: trunk, head and tokenizer together.

* `TextEncoder`: trunk (n, L) -> (n, H), head (n, H) -> (n, d), tokenizer, settings and assets.
* `make_text_encoder`: from "bert" (small, from scratch), "minilm" or "mpnet" (real weights in installed packages), a
  Hugging Face folder or hub id, or settings.
* `HFTrunk`: any Hugging Face encoder as a trunk. * `lora_targets`: the layers that LoRA adapts.
* `train_wordpiece`: the tokenizer of a small BERT (see tokenizer.py).

n texts, L tokens, H hidden width, d output dimension.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from pydantic import Field
from tokenizers import Tokenizer
from torch import Tensor, nn

from m3bind.core.stored import Strict
from m3bind.errors import CheckpointError, ConfigError, UnknownNameError
from m3bind.models.base import Tokens
from m3bind.models.layers.bert import BertTrunk, Pooling
from m3bind.models.layers.heads import head_of
from m3bind.models.layers.tokenizer import TextTokenizer, read_tokenizer, train_wordpiece
from m3bind.models.weights import external
from m3bind.models.weights.allowed import ENCODERS
from m3bind.models.weights.checkpoint import bounded, drop_position_ids, load_strict, rename
from m3bind.models.weights.hub import resolve
from m3bind.models.weights.packaged import PACKAGED, packaged_folder
from m3bind.models.weights.weight_files import State, read_state

__all__ = ["HFTrunk", "TextEncoder", "lora_targets", "make_text_encoder", "train_wordpiece"]

_POOLER = ("pooler.*",)  # keys of a folder that a text encoder does not use
_SMALL = {"hidden_size": 192, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 768}
_DROPOUT = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
_LORA_NAMES = (
    ("query", "value"),
    ("q_proj", "v_proj"),
    ("q_lin", "v_lin"),
    ("qkv",),
    ("to_q", "to_kv"),
    ("c_fc", "c_proj"),
    ("linear1", "linear2"),
    ("Wqkv",),
)


def lora_targets(module: nn.Module) -> tuple[str, ...]:
    """Names of the query and value projections inside `module`, as LoRA needs them; () if none is known.

    open_clip has query, key and value in one fused parameter that an adapter cannot wrap, so the two layers of its MLP
    blocks are used instead.
    """
    endings = {name.rpartition(".")[2] for name, child in module.named_modules() if isinstance(child, nn.Linear)}
    for names in _LORA_NAMES:
        if endings.issuperset(names):
            return names
    return ()


class HFTrunk(nn.Module):
    """Any Hugging Face encoder other than BERT: masked mean or first token of its last hidden state.

    None makes the host wait for a device, except a Longformer (for its global tokens) and an X-MOD (its languages).
    """

    def __init__(self, config: Any, pooling: Pooling = "mean", model: Any = None) -> None:
        """`config` is a transformers configuration of an encoder known to AutoModel; `pooling` is "mean" or "cls".

        `model`: its network; by default an untrained one is built.

        Raises:
            ConfigError: a pooling that only a BERT has.
        """
        if pooling not in ("mean", "cls"):
            raise ConfigError(f"pooling={pooling!r} is for BERT only; a {config.model_type} takes 'mean' or 'cls'.")
        super().__init__()
        self.config, self.pooling = config, pooling
        self.model = external.build(config, "text tower") if model is None else model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(n, L), (n, L) -> (n, H)."""
        if len(input_ids) == 0:  # some families cannot
            return torch.zeros(0, self.config.hidden_size, device=input_ids.device)
        hidden: Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        if self.pooling == "cls":
            return hidden[:, 0]
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        return (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)


class TextEncoder(nn.Module):
    """Texts to unit vectors: head(trunk(tokens)), normalised."""

    trunk: nn.Module
    head: nn.Module

    def __init__(
        self,
        trunk: nn.Module,
        head: nn.Module,
        tokenizer: Tokenizer,
        max_tokens: int,
        head_settings: Mapping[str, Any] | None = None,
    ) -> None:
        """`trunk` has `config` and `pooling`; `head_settings` ({"kind", "dim", options}) is returned by `settings`."""
        super().__init__()
        self.trunk, self.head = trunk, head
        self.tokenizer = TextTokenizer(tokenizer, max_tokens)
        self.max_tokens = max_tokens
        self.head_settings = dict(head_settings or {})

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        """n texts -> {"input_ids", "attention_mask"}, int64 (n, L), padded to the longest."""
        return self.tokenizer(texts)

    def tokenizer_key(self) -> str:
        """Hash of all that `tokenize` depends on."""
        return self.tokenizer.key

    def features(self, tokens: Tokens) -> Tensor:
        """Tokens -> (n, H), independent of padding."""
        return self.trunk(tokens["input_ids"], tokens["attention_mask"])  # type: ignore[no-any-return]

    def project(self, features: Tensor) -> Tensor:
        """(n, H) -> (n, d), not normalised."""
        return self.head(features)  # type: ignore[no-any-return]

    def encode(self, tokens: Tokens) -> Tensor:
        """Tokens -> (n, d) unit rows."""
        return F.normalize(self.project(self.features(tokens)), dim=-1)

    def settings(self) -> dict[str, Any]:
        """JSON values from which `from_settings` rebuilds the network (without weights and tokenizer)."""
        config: Any = self.trunk.config
        return {
            "config": {k: v for k, v in config.to_diff_dict().items() if k != "transformers_version"}
            | {"model_type": config.model_type},
            "pooling": self.trunk.pooling,
            "max_tokens": self.max_tokens,
            "head": self.head_settings,
        }

    def save_assets(self, folder: Path) -> None:
        """Write the tokenizer into an existing folder."""
        self.tokenizer.save(folder)

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], assets: Path | str) -> Self:
        """The network of `settings()` with untrained weights and the tokenizer of the folder `assets`.

        Raises:
            ReadError: `assets` holds no tokenizer.
            CheckpointError: not the settings of a text tower, or of a family that m3bind does not open.
            ConfigError: `max_tokens` exceeds its positions, or a head that does not exist.
        """
        with external.library("text settings", "those of a text tower"):
            stored = _TextEncoderSettings.model_validate(dict(settings))
            external.sizes(stored.head)
            config = external.make_config(stored.config, ENCODERS, "text settings")
            with external.library("text settings", f"a network of family {config.model_type}"):
                trunk = (BertTrunk if config.model_type == "bert" else HFTrunk)(config, stored.pooling)
            head = _head(stored.head, trunk)
        _check_length(stored.max_tokens, trunk, stored.config["model_type"])
        return cls(trunk, head, read_tokenizer(assets), stored.max_tokens, stored.head)


class _TextEncoderSettings(Strict):
    """The form of `TextEncoder.settings`."""

    config: dict[str, Any]
    pooling: Pooling = "mean"
    max_tokens: int = Field(ge=1)
    head: dict[str, Any]


def _check_length(max_tokens: int, trunk: nn.Module, text: object) -> None:
    if max_tokens > _positions(trunk):
        raise ConfigError(f"max_tokens {max_tokens} exceeds the {_positions(trunk)} positions of text={str(text)!r}.")


def _head(settings: Mapping[str, Any], trunk: nn.Module) -> nn.Module:
    """The head that `settings` ({"kind", "dim", options}) describe, for the features of `trunk`."""
    config: Any = trunk.config
    options = {key: value for key, value in settings.items() if key != "dim"}
    return head_of(options, int(config.hidden_size), int(settings["dim"]))


def make_text_encoder(
    text: str | Path | Mapping[str, Any],
    dim: int,
    *,
    head: str | Mapping[str, Any] = "linear",
    assets: Path | str | None = None,
    max_tokens: int | None = None,
    pooling: Pooling | None = None,
    layers: int | None = None,
    revision: str = "",
    config: Mapping[str, Any] | None = None,
    lowercase: bool | None = None,
) -> TextEncoder:
    """A text encoder with `dim` output dimensions.

    Args:
        text: "bert": a small BERT with random weights and the tokenizer in `assets`; "minilm": real all-MiniLM-L6-v2;
            "mpnet": real all-mpnet-base-v2; a Hugging Face folder or a hub id: that encoder with its weights; or the
            result of `TextEncoder.settings`: the same network with random weights and the tokenizer in `assets`.
        dim: d.
        head: a kind of head ("identity", "linear", "adapter") or {"kind": ..., options}.
        assets: folder with `tokenizer.json`.
        max_tokens: longest token sequence, special tokens included (default 128 for "bert", else up to 256).
        pooling: "mean" or "cls", of a BERT also "pooler" (its tanh layer on the first token) or "last"; default "mean".
        layers: number of layers of a pretrained BERT that are used, from the first (MGCA uses 6 of 12).
        revision: commit of a hub id.
        config: for "bert", fields of BertConfig that replace the small defaults.
        lowercase: of a pretrained BERT's tokenizer; default: as in its folder's configuration, without it lower case
            (BioClinicalBERT's vocabulary is cased, but with transformers' default its texts are lower-cased).

    Raises:
        ConfigError: a setting is missing (`assets` of "bert", `revision` of a hub id) or the packages of the weights
            are, or one does not apply to this text tower.
        CheckpointError: the folder's weights do not fit its configuration, or the hub cannot be reached.
    """
    if lowercase is not None and (isinstance(text, Mapping) or text == "bert"):
        raise ConfigError("lowercase= is for a pretrained text tower; here the tokenizer in assets decides.")
    if isinstance(text, Mapping):
        if assets is None:
            raise ConfigError("a text tower built from settings needs assets=<folder with tokenizer.json>.")
        return TextEncoder.from_settings(text, assets)
    head_settings: dict[str, Any] = {"kind": head} if isinstance(head, str) else dict(head)
    head_settings["dim"] = dim
    if layers is not None and text == "bert":
        raise ConfigError("text='bert' takes its number of layers from text_config: {num_hidden_layers: ...}.")
    if config and text != "bert":
        raise ConfigError(f"config= describes a small BERT (text='bert'), not text={str(text)!r}.")
    if text == "bert":
        trunk, tokenizer, limit = _small_bert(assets, config or {}, pooling or "mean", max_tokens or 128)
    else:
        if isinstance(text, str) and text not in PACKAGED and "/" not in text and not Path(text).exists():
            raise UnknownNameError("text tower (or folder)", text, ("bert", *PACKAGED))
        folder = packaged_folder(text) if isinstance(text, str) and text in PACKAGED else resolve(text, revision)
        trunk = _pretrained(folder, pooling or "mean", layers)
        tokenizer = _tokenizer(folder, lowercase, trunk.config)
        limit = max_tokens or min(256, _positions(trunk))
    _check_length(limit, trunk, text)
    return TextEncoder(trunk, _head(head_settings, trunk), tokenizer, limit, head_settings)


def _tokenizer(folder: Path, lowercase: bool | None, config: Any) -> Tokenizer:
    """The folder's tokenizer, with the case folding of `lowercase` and the padding token of `config`."""
    from tokenizers.normalizers import BertNormalizer

    tokenizer = read_tokenizer(folder, lowercase)
    if lowercase is not None:
        if not isinstance(tokenizer.normalizer, BertNormalizer):
            raise ConfigError(f"lowercase= is for BERT's WordPiece; the tokenizer in {folder} has its own rules.")
        tokenizer.normalizer.lowercase = lowercase
    padding = getattr(config, "pad_token_id", None)
    if tokenizer.padding is None and padding is not None and tokenizer.id_to_token(padding) is not None:
        tokenizer.enable_padding(pad_id=padding, pad_token=tokenizer.id_to_token(padding))
    return tokenizer


def _positions(trunk: nn.Module) -> int:
    """Tokens that a trunk has positions for: RoBERTa's descendants number them from behind the padding index."""
    config: Any = trunk.config
    behind = [
        module.padding_idx + 1
        for name, module in trunk.named_modules()
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding) and module.padding_idx is not None
    ]
    return int(getattr(config, "max_position_embeddings", 512)) - max(behind, default=0)


def _small_bert(
    assets: Path | str | None, config: Mapping[str, Any], pooling: Pooling, max_tokens: int
) -> tuple[nn.Module, Tokenizer, int]:
    from transformers import BertConfig

    if assets is None:
        raise ConfigError(
            "text='bert' is trained from scratch and needs assets=<folder with tokenizer.json>; make the file with "
            "m3bind.models.layers.text_encoder.train_wordpiece(texts).save(path)."
        )
    tokenizer = read_tokenizer(assets)
    fixed = {
        "vocab_size": tokenizer.get_vocab_size(),
        "max_position_embeddings": max_tokens,
        "pad_token_id": (tokenizer.padding or {}).get("pad_id", 0),
    }
    known = BertConfig().to_dict()
    for key in config:
        if key not in known:
            raise UnknownNameError("field of BertConfig", key, known)
    full = BertConfig(**(_SMALL | _DROPOUT | fixed | dict(config)))
    return BertTrunk(full, pooling), tokenizer, max_tokens


def _read_config(folder: Path) -> Any:
    """The configuration in a Hugging Face folder; a folder older than the key `model_type` has BERT's."""
    try:
        values = external.settings_of(folder, external.CONFIG)
        if "model_type" not in values and "type_vocab_size" in values:
            values["model_type"] = "bert"
        return external.make_config(values, ENCODERS, folder / external.CONFIG)
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: no usable config.json ({str(error)[:400]}).") from error


def _pretrained(folder: Path, pooling: Pooling, layers: int | None) -> nn.Module:
    """The trunk of a Hugging Face folder with its weights; heads of other tasks in the file are ignored."""
    config, state = _read_config(folder), read_state(folder)
    dropped: list[str] = []
    if layers is not None:
        if config.model_type != "bert" or not 1 <= layers <= config.num_hidden_layers:
            raise ConfigError(
                f"{folder}: cannot use {layers} layers of a {config.model_type} with "
                f"{getattr(config, 'num_hidden_layers', 'unknown')}; only a BERT's first layers can be selected."
            )
        dropped = [f"encoder.layer.{number}.*" for number in range(layers, config.num_hidden_layers)]
        config.num_hidden_layers = layers
    with bounded([state], str(folder)):
        state = drop_position_ids(state, frozenset())
        if config.model_type != "bert":
            model = external.build_with_weights(config, _of_base(state, config), folder, _POOLER)
            return HFTrunk(config, pooling, model)
        with external.library(folder, "a network of family bert"):
            trunk = BertTrunk(config, pooling)
    names = (rename(r"\.gamma$", ".weight"), rename(r"\.beta$", ".bias"))
    load_strict(trunk.bert, _of_base(state, config), names, (*_POOLER, *dropped), source=str(folder))
    return trunk


def _of_base(state: State, config: Any) -> State:
    """The encoder's keys in the state of a network with a head, without their prefix."""
    from transformers import MODEL_MAPPING

    prefix = f"{MODEL_MAPPING[type(config)].base_model_prefix}."
    own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    return own or state
