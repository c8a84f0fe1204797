"""The interface of a binding method: embeddings (or the towers that make them) in, one bridge per modality out.

Shapes: K pool texts, d_m joint dimension of modality m, d dimension of the bound space.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from m3bind.align.balance import sampling_probabilities
from m3bind.align.procrustes import BaseBridge
from m3bind.config import AlignConfig, BalanceConfig
from m3bind.core.registry import Registry
from m3bind.data.batching import IntArray, rng
from m3bind.errors import ConfigError, UnknownNameError
from m3bind.training.pairs import Pairs


@dataclass
class BindingInputs:
    """What every method is given."""

    pairs: dict[str, Pairs]  # per modality: dual encoder, images, texts, captions
    pool: dict[str, IntArray]  # text ids each modality contributes to the shared text pool
    folder: Path  # for checkpoints and logs
    seed: int

    @property
    def sizes(self) -> dict[str, int]:
        """|D_m|: number of training pairs of each modality; of its texts where there are no images."""
        return {m: len(pairs) or len(self.pool[m]) for m, pairs in self.pairs.items()}

    @property
    def dims(self) -> dict[str, int]:
        """d_m: joint dimension of each modality."""
        return {m: pairs.model.joint_dim for m, pairs in self.pairs.items()}

    def pool_probabilities(self, balance: BalanceConfig) -> dict[str, float]:
        """p_m of Eq. 3, or shares proportional to size when AMB's sampling is off."""
        if balance.proportional:
            total = sum(self.sizes.values())
            return {m: size / total for m, size in self.sizes.items()}
        return sampling_probabilities(self.sizes, balance.beta)

    def draw_pool(self, count: int, balance: BalanceConfig) -> Tensor:
        """About `count` distinct text ids, each modality giving its share without repeats, shape (K,)."""
        shares = self.pool_probabilities(balance)
        drawn = [
            rng(self.seed, "procrustes pool", m).permutation(ids)[: max(round(count * shares[m]), 1)]
            for m, ids in self.pool.items()
        ]
        return torch.from_numpy(np.unique(np.concatenate(drawn)))

    @torch.no_grad()
    def embed_texts(self, modality: str, ids: Tensor, chunk: int = 256) -> Tensor:
        """(K,) text ids -> (K, d_m) unit rows of that modality's text tower, without gradient."""
        texts = self.pairs[modality].texts
        model = self.pairs[modality].model
        was_training = model.training
        model.eval()
        rows = torch.cat([texts.encode(part) for part in torch.split(ids, chunk)])
        model.train(was_training)
        return rows

    @torch.no_grad()
    def embed_images(self, modality: str, limit: int | None = None) -> Tensor:
        """(N, d_m) unit rows of the training images as the towers are, without gradient; at most `limit`, by lot."""
        pairs = self.pairs[modality]
        chosen = rng(self.seed, "images", modality).permutation(len(pairs))[:limit]
        was_training = pairs.model.training
        pairs.model.eval()
        rows = torch.cat([pairs.images.encode(part) for part in torch.split(torch.from_numpy(np.sort(chosen)), 256)])
        pairs.model.train(was_training)
        return rows


class BindingMethod(ABC):
    """One way to bind; `name` registers it. It may change the towers in place, with LoRA merged before it returns."""

    name: ClassVar[str] = ""
    towers: ClassVar[bool] = True  # False: reads finished embeddings of both sides, towers untouched
    uses: ClassVar[tuple[str, ...]] = ()  # training data it looks at beside the texts of the shared pool
    defaults: ClassVar[Mapping[str, Any]] = {}  # what `align.options` may change, with defaults

    @abstractmethod
    def bind(self, inputs: BindingInputs, settings: AlignConfig) -> dict[str, BaseBridge]:
        """One bridge (d_m -> d) per modality of `inputs.pairs`."""

    def options(self, settings: AlignConfig) -> dict[str, Any]:
        """`defaults` with what `settings.options` changes.

        Raises:
            UnknownNameError: an option this method does not have.
            ConfigError: a value of another type than the default.
        """
        for key, value in settings.options.items():
            if key not in self.defaults:
                raise UnknownNameError(f"option of the binding method {self.name}", key, self.defaults)
            kind = type(self.defaults[key])
            if not isinstance(value, (int, float) if kind is float else kind) or isinstance(value, bool) > (
                kind is bool
            ):
                raise ConfigError(f"align.options.{key}={value!r}: expected {kind.__name__}, as {self.defaults[key]!r}")
        return {**self.defaults, **settings.options}


_HERE = "m3bind.align.methods"
_registry: "Registry[BindingMethod]" = Registry("binding method", _HERE, "m3bind.methods", BindingMethod)  # type: ignore[type-abstract]


def get(name: str) -> BindingMethod:
    """The method registered as `name`.

    Raises:
        UnknownNameError: no such method.
    """
    return _registry.get(name)()


def names() -> list[str]:
    """Names of all methods."""
    return _registry.names()
