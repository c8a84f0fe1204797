"""A dual encoder that another library defines: the base of `hf_clip_any` and `open_clip_any`.

n items, L tokens, f width of a tower's features.
"""

import contextlib
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from m3bind.core.device import float32_arithmetic
from m3bind.errors import ConfigError
from m3bind.models.base import DualEncoder
from m3bind.models.layers.preprocess import LUNG_WINDOW
from m3bind.models.layers.text_encoder import lora_targets
from m3bind.models.weights.checkpoint import bounded
from m3bind.models.weights.external import library
from m3bind.models.weights.hub import resolve
from m3bind.models.weights.weight_files import State, read_state


class LibraryModel(DualEncoder):
    """Network, tokenizer and image transform come from a folder (or hub repository) in the library's own layout."""

    own_tokenizer = True

    def __init__(
        self,
        source: Path | str | None = None,
        revision: str = "",
        hu: Sequence[float] = LUNG_WINDOW,
        assets: Path | str | None = None,
    ) -> None:
        """Load from `source`, or build with random weights from `assets`.

        Args:
            source: folder with configuration, weights and tokenizer (see the class), or a hub id.
            revision: commit, when `source` is a hub id.
            hu: window for volumes, of which the model gets three slices.
            assets: folder `save_assets` filled (configuration and tokenizer, no weights).

        Raises:
            ConfigError: neither `source` nor `assets`, or a family whose parts are unknown.
            CheckpointError: files are missing or the weights do not fit the configuration.
        """
        super().__init__()
        if source is None and assets is None:
            raise ConfigError(
                f"{self.name} needs the folder or hub id of {self.card.source}: checkpoint in settings, "
                "source= in Python."
            )
        if source is not None and Path(source).is_file():
            raise ConfigError(f"{source}: a file; {self.name} needs the folder around it, with its tokenizer.")
        folder = resolve(source, revision) if source is not None else Path(str(assets))
        state = read_state(folder) if source is not None else None
        with bounded([state], str(folder)) if state is not None else contextlib.nullcontext():
            model = self._read(folder, state)
        model.eval()
        self.hu = tuple(hu)
        self.log_scale: nn.Parameter = model.logit_scale
        with float32_arithmetic():  # both compare values
            self.joint_dim = self._take_apart(model)
            self._check_neighbours(folder)
        from_hub = source is not None and not Path(source).exists()
        self.card = replace(
            type(self).card,
            source=str(source) if from_hub else type(self).card.source,
            revision=revision,
            joint_dim=self.joint_dim,
            lora_text=lora_targets(self.text_trunk),
            lora_image=lora_targets(self.image_trunk),
        )

    @abstractmethod
    def _read(self, folder: Path, state: State | None) -> Any:
        """The network with the weights of `state`, or untrained; tokenizer and image transform become attributes."""

    @abstractmethod
    def _take_apart(self, model: Any) -> int:
        """Set the four parts from the library's network; returns the joint dimension."""

    @torch.no_grad()
    def _check_neighbours(self, folder: Path) -> None:
        """Refuse a folder whose text embeddings depend on the rest of the batch (its network reads padding as text).

        Raises:
            ConfigError: they do, or all texts are equal.
        """
        texts = ["heart", "no acute findings, the heart is of normal size and the lungs are clear"]
        with library(folder, "a tokenizer and a text tower that fit each other"):
            together, alone = (self.encode_text(self.tokenize(part)) for part in (texts, texts[:1]))
            alike = torch.equal(*self.tokenize(texts)["input_ids"])
        if alike:
            raise ConfigError(f"{folder}: two different texts have the same tokens: its tokenizer files do not fit.")
        if not torch.allclose(together[:1], alone, atol=1e-4, rtol=1e-4, equal_nan=True):
            raise ConfigError(
                f"{folder}: a text's embedding depends on the texts beside it: tokenizer and network define padding "
                "differently. Set pad_token in tokenizer_config.json and pad_token_id in config.json to one token."
            )

    @classmethod
    def from_checkpoint(cls, path: Path | str, settings: Mapping[str, Any], variant: str = "") -> Self:
        """The model of a folder or hub id; `path` is the constructor's `source`.

        Raises:
            ConfigError: the settings name a source as well.
        """
        if "source" in settings:
            raise ConfigError(f"{cls.name}: checkpoint {path} and source {settings['source']}: give one of them.")
        return cls.from_settings({**settings, "source": str(path)}, variant=variant)

    @property
    def logit_scale(self) -> Tensor:
        """exp of the checkpoint's own log-parameter."""
        return self.log_scale.exp().reshape(())

    def settings(self) -> dict[str, Any]:
        """Constructor arguments as JSON values; the network is described by the configuration among the assets."""
        return {"hu": list(self.hu)}
