"""Outputs of the authors' own code on fixed weights and inputs, and their comparison with an adapter.

`fixture("flair")` opens those of FLAIR in `tests/golden` (or the folder named by M3BIND_GOLDEN, for other sets in the
same format). `.load("flair")` builds the registered model and loads generated weights as a user would: from a file
with the authors' key names, by `m3bind.models.load`.
"""

import importlib.util
import os
import sys
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

import m3bind.models as models
from m3bind.align.lora import inject, lora_parameters, merge
from m3bind.config import LoraConfig
from m3bind.models.base import DualEncoder, Tokens

FOLDER = Path(os.environ.get("M3BIND_GOLDEN") or Path(__file__).resolve().parents[1] / "golden")


@cache
def _module(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"golden_{name}", FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


class Golden:
    """One fixture: the authors' keys, inputs and outputs."""

    def __init__(self, system: str) -> None:
        self.system = system
        self.inputs = _module("inputs")
        self.fixture = _module("check").Fixture(system, "a")
        self.meta: dict[str, Any] = self.fixture.meta

    def state(self, prefix: str = "", only: Callable[[str], bool] | None = None) -> dict[str, torch.Tensor]:
        """The generated state dict under the authors' keys, each after `prefix`."""
        state: dict[str, torch.Tensor] = _module("weights").state_dict(
            str(FOLDER / "keys" / f"{self.system}.txt"), only=only, prefix=prefix
        )
        return state

    def outline(self) -> dict[str, torch.Tensor]:
        """The authors' keys with tensors without memory; only buffers of indices have values."""
        indices = self.state(only=lambda key: key.endswith(("position_ids", "relative_position_index")))
        keys = _module("weights").read_keys(str(FOLDER / "keys" / f"{self.system}.txt"))
        return {key: indices.get(key, torch.empty(shape, device="meta")) for key, shape in keys}

    def load(
        self, name: str, folder: Path, prefix: str = "", only: Callable[[str], bool] | None = None, **settings: Any
    ) -> DualEncoder:
        """The registered model with the generated weights, by way of a file in `folder`."""
        path = folder / f"{self.system}.safetensors"
        save_file({key: value.contiguous() for key, value in self.state(prefix, only).items()}, path)
        model = models.load(name, path, **settings)
        path.unlink()
        return model

    def tokens(self, which: str, vocabulary: str | None = None, length: int | None = None) -> Tokens:
        """Ids and mask of "pair" (two texts), "long" (one) or "single" (the first of the pair), as the fixture pads."""
        text = self.meta["inputs"]["text"]
        rows = [text["pair"][0]] if which == "single" else text["pair"] if which == "pair" else [text["long"]]
        padded = text["padded_to"] if length is None else length
        ids, mask = self.inputs.pad(rows, padded if isinstance(padded, int) else None, text["pad_id"])
        return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}

    def compare(self, got: Mapping[str, Any], factor: float = 1.0) -> None:
        """Fail with the fixture's own lines unless every output agrees within its stored tolerance (times `factor`)."""
        assert self.fixture.compare(got, factor), "see the lines above"

    def compare_picture(self, name: str, got: Any, atol: float = 2e-5) -> None:
        """Fail unless the preprocessed array `got` is the authors'."""
        assert self.fixture.compare_prep(name, got, atol), "see the line above"


def fixture(system: str) -> Golden:
    """The golden files of `system`."""
    return Golden(system)


def assert_steady(encode: Callable[[torch.Tensor], torch.Tensor], batch: torch.Tensor, atol: float = 2e-6) -> None:
    """The same rows alone, in a batch of 8, and on a second call; `batch` is (n, ...), n >= 1."""
    eight = batch[torch.arange(8) % len(batch)]
    with torch.no_grad():
        many, again = encode(eight), encode(eight)
        alone = encode(batch[:1])
    assert torch.equal(many, again)
    assert many.shape[0] == 8 and alone.shape[0] == 1
    torch.testing.assert_close(many[:1], alone, atol=atol, rtol=0)
    if len(batch) < 8:
        torch.testing.assert_close(many[len(batch)], many[0], atol=atol, rtol=0)


def assert_steady_text(model: DualEncoder, tokens: Tokens, atol: float = 2e-6) -> None:
    """Texts alone, in a batch of 8 and on a second call."""

    def encode(rows: torch.Tensor) -> torch.Tensor:
        return model.encode_text({key: value[rows] for key, value in tokens.items()})

    assert_steady(encode, torch.arange(len(tokens["input_ids"])), atol)


def assert_lora(model: DualEncoder, part: str, encode: Callable[[], torch.Tensor], atol: float = 1e-5) -> int:
    """Adapters change nothing at first; then: their state reloads, and merging keeps the outputs. Returns their count.

    `model` keeps the merged weights.
    """
    import copy

    attribute = f"{part}_trunk"
    with torch.no_grad():
        before = encode()
    plain = copy.deepcopy(getattr(model, attribute))
    keys = list(plain.state_dict())
    names = inject(model, part, LoraConfig())  # type: ignore[arg-type]
    with torch.no_grad():
        torch.testing.assert_close(encode(), before, atol=atol, rtol=0)
        generator = torch.Generator().manual_seed(0)
        for parameter in lora_parameters(getattr(model, attribute)).values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.02)
        adapted = encode()
        assert (adapted - before).abs().max() > 10 * atol, "adapters have no effect"
        adapters = lora_parameters(getattr(model, attribute))
        assert sum(v.numel() for v in adapters.values()) * 4 < 20e6, "adapters alone are megabytes"
        merge(getattr(model, attribute))
        torch.testing.assert_close(encode(), adapted, atol=atol, rtol=0)
        assert list(getattr(model, attribute).state_dict()) == keys
        setattr(model, attribute, plain)
    return len(names)


def pictures(golden: Golden) -> list[tuple[str, np.ndarray]]:
    """(name, uint8 (H, W, 3)) of the fixture's preprocessing inputs."""
    found: list[tuple[str, np.ndarray]] = golden.inputs.u8_set("a")
    return found
