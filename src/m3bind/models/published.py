"""The base of models whose weights their authors published, and parts that several of them use.

* `PublishedModel`, `ImageOnly`: the base classes. * `Common`: arguments of all their constructors.
* `LearnedScale`, `resnet50_trunk`, `bert_trunk`: parts.

n items, L tokens, f width of a tower's features, d_m joint dimension.

The network is fixed by the registered name; weights come from the authors' file (`load_checkpoint`, strict) and the
tokenizer from a folder, the hub or the checkpoint's own folder. It is read when the first text is tokenized, so that a
model can be built, loaded and run on token ids without it.
"""

import json
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, NoReturn, Self, TypedDict

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from m3bind.core.files import sha256_text
from m3bind.core.version import __version__
from m3bind.data.tokens import probe_key
from m3bind.errors import CheckpointError, ConfigError, ReadError, UnknownNameError
from m3bind.models.base import DualEncoder, ModelCard, Tokens, constructor_parameters
from m3bind.models.layers.bert import BertTrunk, Pooling
from m3bind.models.layers.tokenizer import TextTokenizer, read_tokenizer
from m3bind.models.weights.checkpoint import without_initialisation
from m3bind.models.weights.hub import resolve

BIOCLINICALBERT = "emilyalsentzer/Bio_ClinicalBERT"  # cased vocabulary, lower-cased texts: see read_tokenizer


class Common(TypedDict, total=False):
    """Arguments that the constructors of all published models pass on to `PublishedModel`."""

    tokenizer: str | Path | None
    tokenizer_revision: str
    assets: Path | str | None
    frozen: Sequence[str]


class PublishedModel(DualEncoder):
    """Network fixed by the name, weights from the authors' file, tokenizer read when first needed.

    A subclass sets the four parts, `max_tokens` and, if the scale is learned, `scale`. It declares its `card` (or
    `cards`, one for each of its `names`), its `tokenizer_source`, the attributes that are its `own_settings`, and the
    `migrations` from the authors' keys to `image_trunk`, `image_head`, `text_trunk`, `text_head` and `scale.log`.
    """

    own_tokenizer = True
    tokenizer_source: ClassVar[str] = ""  # hub id of the tokenizer the authors used
    lowercase: ClassVar[bool | None] = None  # for a vocab.txt without a configuration; None: lower case
    cards: ClassVar[Mapping[str, ModelCard]] = {}
    check_shape: ClassVar[tuple[int, ...]] = ()  # of one input for `m3bind check-model`, if a whole one takes long
    own_settings: ClassVar[tuple[str, ...]] = ()  # constructor arguments beside those of `Common`, as attributes

    scale: nn.Module

    def __init__(
        self,
        variant: str = "",
        tokenizer: str | Path | None = None,
        tokenizer_revision: str = "",
        assets: Path | str | None = None,
        frozen: Sequence[str] = (),
    ) -> None:
        """Call first; the subclass then sets its parts.

        Args:
            variant: registered name, for a class with several.
            tokenizer: folder with tokenizer.json or vocab.txt, or a hub id; default: `tokenizer_source`.
            tokenizer_revision: commit, when the tokenizer comes from the hub.
            assets: folder `save_assets` filled.
            frozen: parts that stage 0 does not train; `_finish` freezes them.

        Raises:
            UnknownNameError: `variant` is not one of the class's names.
        """
        super().__init__()
        known = self.names or (self.name,)
        self.variant = variant or known[0]
        if self.variant not in known:
            raise UnknownNameError("variant", variant, known)
        self.card = self.cards[self.variant] if self.cards else type(self).card
        self.joint_dim = self.card.joint_dim
        self._tokenizer_from: tuple[str | Path | None, str] = (
            assets if assets is not None else tokenizer,
            tokenizer_revision,
        )
        self._tokenizer: TextTokenizer | None = None
        self._to_freeze = tuple(frozen)

    def _finish(self) -> None:
        """The last line of a subclass's constructor: freeze the `frozen` parts, eval mode."""
        self.freeze(self._to_freeze)
        self.eval()

    def _check_choice(self, setting: str, value: object, choices: Collection[str]) -> None:
        """Refuse a setting that is not one of `choices` with a ConfigError."""
        if value not in choices:
            known = ", ".join(map(repr, choices))
            raise ConfigError(f"{setting}={value!r} of {self.variant} is unknown; choose one of {known}.")

    @property
    def logit_scale(self) -> Tensor:
        """The learned `scale`."""
        return self.scale()  # type: ignore[no-any-return]

    # ---- texts

    @property
    def tokenizer(self) -> TextTokenizer:
        """The authors' tokenizer, at this model's maximum length.

        Raises:
            ConfigError: no tokenizer was given and the hub cannot be reached; the message states how to give one.
        """
        if self._tokenizer is None:
            self._tokenizer = TextTokenizer(self._read_tokenizer(), self.max_tokens)
        return self._tokenizer

    def _read_tokenizer(self) -> Tokenizer:
        source, revision = self._tokenizer_from
        try:
            folder = resolve(source or self.tokenizer_source, revision, weights=False)
            return read_tokenizer(folder, self.lowercase)
        except (CheckpointError, ConfigError, ReadError) as error:
            if source is not None:
                raise
            raise ConfigError(
                f"{self.variant} needs its tokenizer to read texts: set tokenizer=<folder with vocab.txt or "
                f"tokenizer.json of {self.tokenizer_source}>, or tokenizer='{self.tokenizer_source}' with "
                "tokenizer_revision=<commit> to take it from the hub."
            ) from error

    def clean(self, text: str) -> str:
        """The authors' preparation of a text before tokenizing (report cleaning, lower case, prompt); default: none."""
        return text

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        """The authors' cleaning, tokenizer and truncation; padded to the longest of `texts`."""
        return self.tokenizer([self.clean(text) for text in texts])

    def tokenizer_key(self) -> str:
        """Hash of the tokenizer, of the class with its settings, and, in place of `clean`, of the ids of some texts."""
        own = json.dumps({name: getattr(self, name) for name in self.own_settings}, sort_keys=True, default=str)
        kind = f"{type(self).__module__}.{type(self).__qualname__}"
        return sha256_text(kind, __version__, self.variant, own, self.tokenizer.key, probe_key(self.tokenize))

    # ---- saving and loading

    def settings(self) -> dict[str, Any]:
        """Constructor arguments as JSON values."""
        return {"frozen": list(self.frozen)} | {name: getattr(self, name) for name in self.own_settings}

    def save_assets(self, folder: Path) -> None:
        """Write tokenizer.json; nothing if no tokenizer was given and none is available."""
        try:
            self.tokenizer.save(folder)
        except ConfigError:
            if self._tokenizer_from[0] is not None:
                raise

    @classmethod
    def from_checkpoint(cls, path: Path | str, settings: Mapping[str, Any], variant: str = "") -> Self:
        """The model with the authors' weights: a file, a folder, or a hub id (setting `revision`).

        The tokenizer is taken from a folder or hub repository that also holds tokenizer files.

        Raises:
            CheckpointError: damaged, unsafe to read, or of another model.
        """
        settings = dict(settings)
        local = resolve(path, str(settings.pop("revision", "")))
        if "tokenizer" in constructor_parameters(cls) and "tokenizer" not in settings:
            folder = local if local.is_dir() or Path(path).expanduser().exists() else local.parent
            if any((folder / name).is_file() for name in ("tokenizer.json", "vocab.txt")):
                settings["tokenizer"] = str(folder)
        with without_initialisation():
            model = cls.from_settings(settings, variant=variant)
        model.load_checkpoint(local)
        return model


class ImageOnly(PublishedModel):
    """A model without a text tower: texts are refused; `instead` ends the message with what to use for them."""

    instead: ClassVar[str] = ""

    def __init__(self, frozen: Sequence[str] = ()) -> None:
        """Call first; the subclass then sets its image parts. `frozen`: see `PublishedModel`."""
        super().__init__(frozen=frozen)
        self.max_tokens = 0
        self.text_trunk, self.text_head = nn.Identity(), nn.Identity()

    @property
    def logit_scale(self) -> Tensor:
        """1: no scaling."""
        return torch.ones((), device=next(self.parameters()).device)

    def save_assets(self, folder: Path) -> None:
        """Writes nothing: the model has no tokenizer."""

    def _refuse(self) -> NoReturn:
        raise ConfigError(f"{self.variant} has no text tower; {self.instead}")

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        """Refused with a ConfigError."""
        self._refuse()

    def text_features(self, tokens: Tokens) -> Tensor:
        """Refused with a ConfigError."""
        self._refuse()

    def project_text(self, features: Tensor) -> Tensor:
        """Refused with a ConfigError."""
        self._refuse()


class LearnedScale(nn.Module):
    """A learned log factor on cosines; `logit_scale` of a model is its exponential, at most `limit`."""

    def __init__(self, initial: float = 1 / 0.07, limit: float = math.inf) -> None:
        """Start at `initial` (not its logarithm)."""
        super().__init__()
        self.log = nn.Parameter(torch.tensor(math.log(initial)))
        self.limit = limit

    def forward(self) -> Tensor:
        """The factor, a scalar."""
        return self.log.exp().clamp(max=self.limit)


def resnet50_trunk() -> nn.Module:
    """torchvision's ResNet-50 up to its average pool, without weights: (n, 3, H, W) -> (n, 2048)."""
    from torchvision.models import resnet50

    trunk: nn.Module = resnet50(weights=None)
    trunk.fc = nn.Identity()
    return trunk


def bert_trunk(
    vocabulary: int,
    pooling: Pooling = "cls",
    layers: int = 12,
    states: Sequence[int] = (-1,),
    combine: Literal["mean", "sum"] = "mean",
    **config: Any,
) -> BertTrunk:
    """BERT-base as the published text towers use it, without weights; keys are `bert.embeddings...`, `bert.encoder...`.

    `config` holds further fields of BertConfig.
    """
    from transformers import BertConfig

    bert = BertConfig(vocab_size=vocabulary, num_hidden_layers=layers, **config)
    return BertTrunk(bert, pooling, states=states, combine=combine)
