"""The interface of every CLIP-like model: `DualEncoder` and its `ModelCard`.

Shapes: n items, L tokens, f_i / f_t width of the towers' features, d_m joint dimension of this model.

A tower is a *trunk* (image_features / text_features; usually pretrained, may stay frozen, in which case its output is
computed once and cached) and a *head* (project_image / project_text) into the joint space:

    encode_image(batch)  = normalize(project_image(image_features(batch)))     (n, d_m) unit rows
    encode_text(tokens)  = normalize(project_text(text_features(tokens)))      (n, d_m) unit rows

The parts have fixed names, so that stages can freeze, adapt and save them without knowing the model:
`image_trunk`, `image_head`, `text_trunk`, `text_head` (nn.Identity where a model has no such part).

Persistence: {"model": registered name, "settings": settings()} + state_dict in safetensors + save_assets(folder).
`from_settings` rebuilds the network from settings and assets; the weights are then loaded strictly.
"""

import inspect
import json
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch.nn.functional as F
from torch import Tensor, nn

from m3bind.core.files import sha256_file, sha256_text
from m3bind.core.version import __version__
from m3bind.data.tokens import probe_key
from m3bind.errors import ConfigError, UnknownNameError
from m3bind.modalities.base import Sample
from m3bind.models.layers.augment import ItemRandom
from m3bind.models.layers.degrade import degraded
from m3bind.models.layers.levels import image_levels
from m3bind.models.weights.checkpoint import LoadReport, Migration, load_strict
from m3bind.models.weights.weight_files import read_state

PARTS = ("image_trunk", "image_head", "text_trunk", "text_head")
Tokens = dict[str, Tensor]  # {"input_ids": int64 (n, L), "attention_mask": int64 (n, L)}


@dataclass(frozen=True)
class ModelCard:
    """What a user needs to know before using a model."""

    source: str  # repository or paper
    licence_code: str
    licence_weights: str
    joint_dim: int
    input: str  # "3x224x224, CLIP mean/std"
    volumes: str = "HU"  # unit that volumes must have (`Sample.unit`); "" if any is accepted
    revision: str = ""
    lora_text: tuple[str, ...] = ()  # module-name endings of query and value projections in the text trunk
    lora_image: tuple[str, ...] = ()
    training_data: tuple[str, ...] = ()  # data sets seen in training, for contamination checks
    notes: str = ""
    use: str = ""  # modality or subject; default: the brackets in the first line of the module's docstring
    verified: str = ""  # reference of the comparison; default: the authors' code on generated weights


_EXTRA = inspect.Parameter.VAR_KEYWORD


def constructor_parameters(cls: type) -> dict[str, inspect.Parameter]:
    """Parameters of the constructor, and of its bases' constructors as long as each passes on **keywords."""
    parameters: dict[str, inspect.Parameter] = {}
    for base in cls.__mro__:
        if "__init__" in vars(base):
            own = list(inspect.signature(base.__init__).parameters.values())[1:]  # type: ignore[misc]
            parameters = {p.name: p for p in own} | parameters
            if not any(p.kind is _EXTRA for p in own):
                break
    return parameters


class DualEncoder(nn.Module, ABC):
    """An image tower and a text tower with one joint space. One subclass (or a few) per file in this package.

    A class with several `names` (variants of one model) is constructed with the chosen one as `variant=`; a class whose
    constructor takes `assets` gets the folder that `save_assets` filled.
    """

    name: ClassVar[str] = ""
    names: ClassVar[tuple[str, ...]] = ()
    migrations: ClassVar[tuple[Migration, ...]] = ()  # from the published checkpoint's keys to this class's keys
    ignored_keys: ClassVar[tuple[str, ...]] = ()  # shell patterns of published keys that this class does not use

    frozen: tuple[str, ...] = ()  # parts (of PARTS) that stage 0 does not train, so their output can be cached
    registered_name: str = ""  # set by registry.build
    own_tokenizer: bool = False  # comes with its tokenizer; otherwise one is trained on a run's texts, in `assets`

    card: ModelCard
    joint_dim: int
    max_tokens: int
    image_trunk: nn.Module
    image_head: nn.Module
    text_trunk: nn.Module
    text_head: nn.Module

    @property
    @abstractmethod
    def logit_scale(self) -> Tensor:
        """Factor on cosines, scalar tensor (already exponentiated)."""

    @abstractmethod
    def preprocess(self, sample: Sample) -> Tensor:
        """One decoded sample as this model's float32 input, without the batch axis."""

    def levels(self) -> Tensor | None:
        """(C, L) float32: the values that the elements of an input (C, ...) can take, in order; (1, L): all channels.

        Inputs of such values are stored by the number of the level: by default the 256 levels of 8-bit pictures. It is
        verified for every input, so a model whose preprocessing ends otherwise (interpolation) may state levels too.
        """
        return image_levels(self.preprocess)

    def doubts(self, sample: Sample) -> list[str]:
        """Doubts about a decoded sample: a volume in another unit than this model expects."""
        expected, array = self.card.volumes, sample.array
        is_volume = sample.rate is None and array.ndim == 3 and array.shape[-1] != 3
        if expected and is_volume and sample.unit != expected:
            return [f"the model expects volumes in {expected}, which these values do not seem to be"]
        return []

    @abstractmethod
    def tokenize(self, texts: Sequence[str]) -> Tokens:
        """Token ids by the model's own tokenizer, prompt and truncation; padded to the longest of `texts`."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Arguments with which `type(self)(**settings)` rebuilds the network without weights (JSON values only)."""

    def image_settings(self) -> dict[str, Any]:
        """The part of `settings` that `preprocess` and the image trunk depend on, for the key of cached features."""
        return self.settings()

    def image_features(self, batch: Tensor) -> Tensor:
        """(n, ...) input as `preprocess` returns -> (n, f_i)."""
        return self.image_trunk(batch)  # type: ignore[no-any-return]

    def project_image(self, features: Tensor) -> Tensor:
        """(n, f_i) -> (n, d_m), not normalised."""
        return self.image_head(features)  # type: ignore[no-any-return]

    def text_features(self, tokens: Tokens) -> Tensor:
        """Tokens -> (n, f_t), pooled; must not depend on how far the batch is padded."""
        return self.text_trunk(tokens["input_ids"], tokens["attention_mask"])  # type: ignore[no-any-return]

    def project_text(self, features: Tensor) -> Tensor:
        """(n, f_t) -> (n, d_m), not normalised."""
        return self.text_head(features)  # type: ignore[no-any-return]

    def encode_image(self, batch: Tensor) -> Tensor:
        """(n, ...) -> (n, d_m) unit rows."""
        return F.normalize(self.project_image(self.image_features(batch)), dim=-1)

    def encode_text(self, tokens: Tokens) -> Tensor:
        """Tokens -> (n, d_m) unit rows."""
        return F.normalize(self.project_text(self.text_features(tokens)), dim=-1)

    def logits(self, images: Tensor, texts: Tensor) -> Tensor:
        """The model's scores: unit rows (n, d_m) and (k, d_m) -> scaled cosines (n, k)."""
        return self.logit_scale * images @ texts.T

    def augment(self, batch: Tensor, random: ItemRandom) -> Tensor:
        """Random training-time variation of an input batch; identity unless a model defines one."""
        return batch

    def degrade(self, batch: Tensor, random: ItemRandom, probability: float) -> Tensor:
        """A copy of an input batch (n, C, *axes) whose items lose quality at random, see `layers/degrade.py`."""
        return degraded(batch, random, probability)

    def augmented(self, batch: Tensor, random: ItemRandom, degrade: float = 0.0) -> Tensor:
        """`augment`, then `degrade` with that probability."""
        batch = self.augment(batch, random)
        return self.degrade(batch, random, degrade) if degrade else batch

    def tokenizer_key(self) -> str:
        """Hash of all that `tokenize` depends on, for the key of stored token ids.

        By default the class, its settings and assets, and, in place of its code, the ids of some texts.
        """
        settings = json.dumps(self.settings(), sort_keys=True, default=str)
        with tempfile.TemporaryDirectory(prefix="m3bind-") as temporary:
            self.save_assets(Path(temporary))
            files = sorted(file for file in Path(temporary).rglob("*") if file.is_file())
            assets = [part for file in files for part in (file.name, sha256_file(file))]
        kind = f"{type(self).__module__}.{type(self).__qualname__}"
        return sha256_text(kind, __version__, settings, *assets, probe_key(self.tokenize))

    def save_assets(self, folder: Path) -> None:
        """Write what the network needs beside settings and weights (tokenizer files) into an existing folder."""

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], assets: Path | None = None, variant: str = "") -> Self:
        """The network described by `settings()` and the folder `save_assets` filled, with untrained weights.

        Raises:
            UnknownNameError: the constructor has no such setting.
            ConfigError: a required setting is missing.
        """
        parameters = constructor_parameters(cls)
        arguments = dict(settings)
        if cls.names and variant:
            arguments["variant"] = variant
        if assets is not None and "assets" in parameters:
            arguments["assets"] = assets
        for key in arguments:
            if key not in parameters:
                raise UnknownNameError(f"setting of model {variant or cls.name}", key, parameters)
        required = [n for n, p in inspect.signature(cls).parameters.items() if p.default is p.empty]
        if absent := [n for n in required if parameters[n].kind is not _EXTRA and n not in arguments]:
            raise ConfigError(f"model {variant or cls.name} needs the setting(s) {', '.join(absent)}.")
        return cls(**arguments)

    @classmethod
    def from_checkpoint(cls, path: Path | str, settings: Mapping[str, Any], variant: str = "") -> Self:
        """A model with the published weights of `path` (a file or folder); strict.

        Raises:
            CheckpointError: the file is damaged, unsafe to read, or does not fit.
        """
        model = cls.from_settings(settings, variant=variant)
        model.load_checkpoint(path)
        return model

    def load_checkpoint(self, path: Path | str) -> LoadReport:
        """Load published weights strictly, through this class's `migrations` and `ignored_keys`.

        Raises:
            CheckpointError: the file is damaged, unsafe to read, or does not fit.
        """
        return load_strict(self, read_state(path), self.migrations, self.ignored_keys, source=str(path))

    def freeze(self, parts: Sequence[str]) -> None:
        """Make `parts` (names of PARTS) untrainable and set `frozen` to them; other parts are unchanged.

        Raises:
            UnknownNameError: not the name of a part.
        """
        for part in parts:
            if part not in PARTS:
                raise UnknownNameError("part", part, PARTS)
            getattr(self, part).requires_grad_(False)
        self.frozen = tuple(parts)

    def train(self, mode: bool = True) -> Self:
        """Training mode, except that a frozen part without trainable parameters (adapters) stays in eval mode."""
        super().train(mode)
        for part in self.frozen:
            module = getattr(self, part)
            if not any(parameter.requires_grad for parameter in module.parameters()):
                module.eval()
        return self
