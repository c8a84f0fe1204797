"""The interface of a binding method: embeddings (or the towers that compute them) in, one bridge per modality out.

Shapes: K pool texts, d_m joint dimension of modality m, d dimension of the bound space.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from m3bind.align.balance import sampling_probabilities
from m3bind.align.procrustes import BaseBridge
from m3bind.config import AlignConfig, BalanceConfig
from m3bind.core.device import Compute, pick
from m3bind.core.registry import Registry
from m3bind.data.batching import IntArray, distinct_ids, rng
from m3bind.errors import ConfigError, UnknownNameError
from m3bind.models.base import DualEncoder
from m3bind.training.pairs import Images, Pairs, Texts


@dataclass
class BindingInputs:
    """Input of every method."""

    pairs: dict[str, Pairs]  # per modality: dual encoder, images, texts, captions
    pool: dict[str, IntArray]  # text ids each modality contributes to the shared text pool
    folder: Path  # for checkpoints and logs
    seed: int
    compute: Compute = field(default_factory=pick)

    @property
    def sizes(self) -> dict[str, int]:
        """|D_m|: number of training pairs of each modality, or of its texts if it has no images."""
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
        """About `count` distinct text ids, each modality's share drawn without replacement, shape (K,)."""
        shares = self.pool_probabilities(balance)
        drawn = [
            rng(self.seed, "procrustes pool", m).permutation(ids)[: max(round(count * shares[m]), 1)]
            for m, ids in self.pool.items()
        ]
        return torch.from_numpy(distinct_ids(*drawn))

    def embed_texts(self, modality: str, ids: Tensor) -> Tensor:
        """(K,) text ids -> (K, d_m) unit rows of that modality's text tower, without gradient."""
        pairs = self.pairs[modality]
        return _embed(pairs.model, pairs.texts, ids.numpy())

    def embed_images(self, modality: str, limit: int | None = None) -> Tensor:
        """(N, d_m) unit rows of the training images, without gradient; at most `limit` of them, chosen at random."""
        pairs = self.pairs[modality]
        chosen = rng(self.seed, "images", modality).permutation(len(pairs))[:limit]
        return _embed(pairs.model, pairs.images, np.sort(chosen))


@torch.no_grad()
def _embed(model: DualEncoder, side: Images | Texts, ids: IntArray) -> Tensor:
    """`side.embed` of `ids` on the model's device, in parts, with `model` in eval mode."""
    was_training = model.training
    model.eval()
    rows = torch.cat([side.embed(ids[at : at + 256]) for at in range(0, len(ids), 256)])
    model.train(was_training)
    return rows


class BindingMethod(ABC):
    """A binding method, registered by `name`. It may change the towers in place, with LoRA merged before it returns."""

    name: ClassVar[str] = ""
    towers: ClassVar[bool] = True  # False: reads precomputed embeddings of both sides and does not change the towers
    uses: ClassVar[tuple[str, ...]] = ()  # training data it uses besides the texts of the shared pool
    defaults: ClassVar[Mapping[str, Any]] = {}  # options in `align.options` and their defaults

    @abstractmethod
    def bind(self, inputs: BindingInputs, settings: AlignConfig) -> dict[str, BaseBridge]:
        """One bridge (d_m -> d) per modality of `inputs.pairs`."""

    def options(self, settings: AlignConfig) -> dict[str, Any]:
        """`defaults` updated by `settings.options`.

        Raises:
            UnknownNameError: an unknown option.
            ConfigError: a value of another type than the default.
        """
        for key, value in settings.options.items():
            if key not in self.defaults:
                raise UnknownNameError(f"option of the binding method {self.name}", key, self.defaults)
            kind = type(self.defaults[key])
            accepted = (int, float) if kind is float else kind
            if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
                raise ConfigError(f"align.options.{key}={value!r}: expected {kind.__name__}, as {self.defaults[key]!r}")
        return {**self.defaults, **settings.options}


_registry = Registry[BindingMethod]("binding method", "m3bind.align.methods", "m3bind.methods", BindingMethod)  # type: ignore[type-abstract]


def get(name: str) -> BindingMethod:
    """The method registered as `name`.

    Raises:
        UnknownNameError: no such method.
    """
    return _registry.get(name)()


def names() -> list[str]:
    """Names of all methods."""
    return _registry.names()
