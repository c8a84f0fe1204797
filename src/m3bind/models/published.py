"""A dual encoder whose weights its authors published: what the files of the published models share.

n items, L tokens, f width of a tower's features, d_m joint dimension.

The network is fixed by the registered name; weights come from the authors' file (`load_checkpoint`, strict) and the
tokenizer from a folder, the hub or the checkpoint's own folder, read when the first text is tokenized: a model can be
built, loaded and fed with token ids without it.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, NoReturn, Self, TypedDict

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from m3bind.errors import CheckpointError, ConfigError, ReadError, UnknownNameError
from m3bind.models.base import DualEncoder, ModelCard, Tokens, constructor_parameters
from m3bind.models.layers.bert import BertTrunk, Pooling
from m3bind.models.layers.tokenizer import TextTokenizer, read_tokenizer
from m3bind.models.weights.checkpoint import resolve, without_initialisation

BIOCLINICALBERT = "emilyalsentzer/Bio_ClinicalBERT"  # cased vocabulary, lower-cased texts: see read_tokenizer


class Common(TypedDict, total=False):
    """Arguments that the constructors of all published models hand on to `PublishedModel`."""

    tokenizer: str | Path | None
    tokenizer_revision: str
    assets: Path | str | None
    frozen: Sequence[str]


class PublishedModel(DualEncoder):
    """Network fixed by the name, weights from the authors' file, tokenizer read when first needed.

    A subclass sets the four parts, `joint_dim` and `max_tokens`, declares its `card` (or `cards`, one for each of its
    `names`), its `tokenizer_source`, and the `migrations` from the authors' keys to `image_trunk`, `image_head`,
    `text_trunk`, `text_head` and, where the scale is learned, `scale.log`.
    """

    tokenizer_source: ClassVar[str] = ""  # hub id of the tokenizer the authors used
    lowercase: ClassVar[bool | None] = None  # for a vocab.txt that does not say; None: lower case, as transformers does
    cards: ClassVar[Mapping[str, ModelCard]] = {}
    check_shape: ClassVar[tuple[int, ...]] = ()  # of one input for `m3bind check-model`, where a whole one takes long

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
            frozen: parts that stage 0 does not train; apply with `_finish`.

        Raises:
            UnknownNameError: `variant` is none of the class's names.
        """
        super().__init__()
        known = self.names or (self.name,)
        self.variant = variant or known[0]
        if self.variant not in known:
            raise UnknownNameError("variant", variant, known)
        self.card = self.cards[self.variant] if self.cards else type(self).card
        self.joint_dim = self.card.joint_dim
        self._where: tuple[str | Path | None, str] = (assets if assets is not None else tokenizer, tokenizer_revision)
        self._explicit = tokenizer is not None or assets is not None
        self._tokenizer: TextTokenizer | None = None
        self._frozen_wanted = tuple(frozen)

    def _finish(self) -> None:
        """The last line of a subclass's constructor: eval mode, and `frozen` parts frozen."""
        self.freeze(self._frozen_wanted)
        self.eval()

    # ---- texts

    @property
    def tokenizer(self) -> TextTokenizer:
        """The authors' tokenizer, at this model's maximum length.

        Raises:
            ConfigError: none was given and the hub's cannot be reached; the message says how to give one.
        """
        if self._tokenizer is None:
            self._tokenizer = TextTokenizer(self._read_tokenizer(), self.max_tokens)
        return self._tokenizer

    def _read_tokenizer(self) -> Tokenizer:
        source, revision = self._where
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
        """A text as the authors prepare it before tokenizing (report cleaning, lower case, prompt); as it is here."""
        return text

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        """The authors' cleaning, tokenizer and truncation; padded to the longest of `texts`."""
        return self.tokenizer([self.clean(text) for text in texts])

    def text_features(self, tokens: Tokens) -> Tensor:
        """Tokens -> (n, f_t)."""
        return self.text_trunk(tokens["input_ids"], tokens["attention_mask"])  # type: ignore[no-any-return]

    # ---- saving and loading

    def settings(self) -> dict[str, Any]:
        """The name says nearly all; subclasses add their own settings."""
        return {"frozen": list(self.frozen)}

    def save_assets(self, folder: Path) -> None:
        """Write tokenizer.json.

        A model that was only ever given token ids may have no tokenizer at hand; then nothing is written.
        """
        if self._tokenizer is None and not self._explicit:
            try:
                self.tokenizer.save(folder)
            except ConfigError:
                return
        else:
            self.tokenizer.save(folder)

    @classmethod
    def from_checkpoint(cls, path: Path | str, settings: Mapping[str, Any], variant: str = "") -> Self:
        """The model with the authors' weights: a file, a folder, or a hub id (setting `revision`).

        A folder or hub repository that also holds tokenizer files brings the tokenizer.

        Raises:
            CheckpointError: damaged, unsafe to read, or of another model.
        """
        settings = dict(settings)
        found = resolve(path, str(settings.pop("revision", "")))
        takes = "tokenizer" in constructor_parameters(cls)
        folder = found if found.is_dir() or Path(path).expanduser().exists() else found.parent
        if takes and "tokenizer" not in settings and _has_tokenizer(folder):
            settings["tokenizer"] = str(folder)
        with without_initialisation():
            model = cls.from_settings(settings, variant=variant)
        model.load_checkpoint(found)
        return model


class ImageOnly(PublishedModel):
    """A model without a text tower: what it should do with texts it refuses. `instead` says what to use for them."""

    instead: ClassVar[str] = ""

    def __init__(self, frozen: Sequence[str] = ()) -> None:
        """Call first; the subclass then sets its image parts.

        Args:
            frozen: see `PublishedModel`.
        """
        super().__init__(frozen=frozen)
        self.max_tokens = 0
        self.text_trunk, self.text_head = nn.Identity(), nn.Identity()

    @property
    def logit_scale(self) -> Tensor:
        """1: nothing is scaled."""
        return torch.ones((), device=next(self.parameters()).device)

    def save_assets(self, folder: Path) -> None:
        """Nothing: there is no tokenizer."""

    def _refuse(self) -> NoReturn:
        raise ConfigError(f"{self.variant} has no text tower; {self.instead}")

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        """Refused.

        Raises:
            ConfigError: always.
        """
        self._refuse()

    def text_features(self, tokens: Tokens) -> Tensor:
        """Refused.

        Raises:
            ConfigError: always.
        """
        self._refuse()

    def project_text(self, features: Tensor) -> Tensor:
        """Refused.

        Raises:
            ConfigError: always.
        """
        self._refuse()


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("tokenizer.json", "vocab.txt"))


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

    made = BertConfig(vocab_size=vocabulary, num_hidden_layers=layers, **config)
    return BertTrunk(made, pooling, states=states, combine=combine)
