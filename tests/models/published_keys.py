"""Key lists of published checkpoints against our networks, without any weights (tensors on torch's meta device)."""

from collections.abc import Callable
from functools import cache

import torch

import m3bind.models as models
from m3bind.models.base import DualEncoder
from m3bind.models.weights.checkpoint import LoadReport, load_strict
from models.golden import FOLDER, _module


def meta(name: str, **settings: object) -> DualEncoder:
    """The model without memory for its weights, for tests that do not need their values."""
    with torch.device("meta"):
        return models.build(name, **settings)


def keys(system: str, folder: str = "keys") -> dict[str, torch.Tensor]:
    """The authors' keys with tensors of their shapes: of a fixture, or of `folder` "checkpoints"."""
    read = _module("weights").read_keys(str(FOLDER / folder / f"{system}.txt"))
    return {key: _tensor(key, shape) for key, shape in read}


def _tensor(key: str, shape: tuple[int, ...]) -> torch.Tensor:
    if key.endswith("position_ids"):
        return torch.arange(shape[-1]).expand(shape)
    return torch.empty(shape, device="meta")


@cache
def _network(name: str) -> DualEncoder:
    return meta(name)


def fit(name: str, state: dict[str, torch.Tensor], change: Callable[[str], str] = str) -> LoadReport:
    """What loading `state`, its keys changed by `change`, would do."""
    network = _network(name)
    state = {change(key): value for key, value in state.items()}
    return load_strict(network, state, network.migrations, network.ignored_keys)
