"""Compare a published model with its stored reference, and check a checkpoint: `m3bind check-model`.

* `check_model`: the comparison. * `Result`, `Check`: its outcome. * `published`: the models with references.

A changed library (another activation, resize or attention) shows as another embedding. n items, d_m joint dimension.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from m3bind.core.device import CPU, device_of, float32_arithmetic
from m3bind.errors import ConfigError
from m3bind.models import registry
from m3bind.models.base import DualEncoder
from m3bind.models.published import PublishedModel
from m3bind.models.weights.checkpoint import LoadReport, hash_state, without_initialisation
from m3bind.models.weights.hub import resolve
from m3bind.models.weights.reference import Reference, fill, fixed_images, make_reference, reference_path, texts_for
from m3bind.models.weights.weight_files import listed

_MIN_COSINE = 0.999  # of embeddings with the stored ones
_MAX_DIFFERENCE = 5e-4  # of entries of unit rows, since another activation changes cosines by 2e-4 only
_ROUNDING = 1e-5  # a larger difference is reported; rounding changes entries by about 1e-6
_BATCH = 1e-4  # largest difference of a unit row between batches
_UNIT = 1e-4  # of a row's length from 1
_PREPROCESSED = 0.02  # difference of preprocessed values, relative to their range


@dataclass(frozen=True)
class Check:
    """One check. `passed` None: a note, not a check."""

    name: str
    passed: bool | None
    told: str


@dataclass
class Result:
    """The checks of `check_model`."""

    model: str
    checks: list[Check] = field(default_factory=list)
    load: LoadReport | None = None
    weights_hash: str = ""
    saved: str = ""

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return all(check.passed is not False for check in self.checks)

    def add(self, name: str, passed: bool | None, told: str) -> None:
        """Append one check."""
        self.checks.append(Check(name, passed, told))

    def as_text(self) -> str:
        """For the terminal."""
        word = {True: "ok  ", False: "FAIL", None: "note"}
        lines = [f"{word[check.passed]}  {check.name}: {check.told}" for check in self.checks]
        if self.load:
            lines += [f"      ignored {key}" for key in self.load.ignored]
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        load = self.load and {"loaded": len(self.load.loaded), "ignored": list(self.load.ignored)}
        own = {"model": self.model, "passed": self.passed, "weights_hash": self.weights_hash, "saved": self.saved}
        return own | {"load": load, "checks": [asdict(check) for check in self.checks]}


def check_model(
    name: str,
    checkpoint: Path | str | None = None,
    revision: str = "",
    save: bool = False,
    device: torch.device = CPU,
    **settings: Any,
) -> Result:
    """Compare a published model with its stored reference, then check a checkpoint.

    Args:
        name: a published model.
        checkpoint: file, folder or hub id of weights; by default only the reference is compared.
        revision: commit of a hub id.
        save: store the current embeddings as the reference: of the checkpoint's weights, else of the model itself.
        device: where the model computes, in exact float32.
        settings: arguments of the constructor.

    Raises:
        UnknownNameError: no such model or setting.
        ConfigError: a model without published weights.
        CheckpointError: the checkpoint is damaged, unsafe to read, or does not fit.
    """
    if not issubclass(registry.get(name), PublishedModel):
        raise ConfigError(f"{name} is not one of the published models: {', '.join(published())}.")
    path = None if checkpoint is None else resolve(checkpoint, revision)
    with float32_arithmetic():
        return _check(name, path, save, device, settings)


def _check(name: str, path: Path | None, save: bool, device: torch.device, settings: dict[str, Any]) -> Result:
    result = Result(name)
    with without_initialisation():
        model = registry.build(name, **settings).eval().to(device)
    fill(model)
    now = make_reference(model, name)
    if save and path is None:
        result.saved = _saved(now)
    elif settings:
        result.add("reference", None, "not compared, since settings were given")
    else:
        _compare(result, now, reference_path(name))
    if path is not None:
        _check_checkpoint(result, model, path, save)
    return result


def published() -> list[str]:
    """Names of the published models."""
    return [name for name in registry.names() if issubclass(registry.get(name), PublishedModel)]


def _saved(reference: Reference) -> str:
    path = reference_path(reference.model, reference.weights)
    reference.save(path)
    return str(path)


@torch.no_grad()
def _check_checkpoint(result: Result, model: DualEncoder, path: Path, save: bool) -> None:
    result.load = model.load_checkpoint(path)
    result.weights_hash = hash_state(model.state_dict())
    loaded, ignored = len(result.load.loaded), len(result.load.ignored)
    result.add("load", True, f"{loaded} tensors, strictly; {ignored} of the file ignored by name")
    bad = [name for name, value in model.state_dict().items() if not bool(torch.isfinite(value).all())]
    result.add("weights finite", not bad, f"not in {listed(bad)}" if bad else result.weights_hash[:16])
    now = make_reference(model, result.model, result.weights_hash)
    texts = texts_for(model)
    device = device_of(model)
    alone = model.encode_image(fixed_images(tuple(now.shape))[:1].to(device)).cpu()
    _check_rows(result, "images", torch.tensor(now.image), alone)
    if texts is not None and now.text is not None:
        length = int(texts["attention_mask"][0].sum())
        alone = model.encode_text({key: value[:1, :length].to(device) for key, value in texts.items()}).cpu()
        _check_rows(result, "texts", torch.tensor(now.text), alone)
    stored = reference_path(result.model, result.weights_hash)
    if save:
        result.saved = _saved(now)
    elif stored.is_file():
        _compare(result, now, stored)
    else:
        result.add("reference of this checkpoint", None, "none saved yet; use --save-reference")


def _check_rows(result: Result, what: str, rows: Tensor, alone: Tensor) -> None:
    """Finite, of length 1, and the first item independent of the other items and their padding."""
    away = float((rows.norm(dim=1) - 1).abs().max())
    result.add(f"{what} finite, unit length", away < _UNIT, f"length within {away:.1e} of 1")  # also fails for NaN
    apart = float((alone - rows[:1]).abs().max())
    result.add(f"{what} alone as in a batch", apart < _BATCH, f"largest difference {apart:.1e}")


def _compare(result: Result, now: Reference, path: Path) -> None:
    """Compare the current embeddings with the stored ones."""
    if not path.is_file():
        result.add("reference", None, f"none stored for {now.model}, so not compared")
        return
    stored = Reference.load(path)
    if (stored.names, stored.shape) != (now.names, now.shape):
        changed = _changed(stored, now)
        result.add("reference", False, f"names or shapes of the network differ from the stored ones{changed}")
        return
    for what, then, today in (("images", stored.image, now.image), ("texts", stored.text, now.text)):
        if then is not None and today is not None:
            _compare_rows(result, what, torch.tensor(then), torch.tensor(today), _changed(stored, now))
    _compare_inputs(result, stored, now)


def _compare_rows(result: Result, what: str, then: Tensor, today: Tensor, changed: str) -> None:
    """(n, d_m) each; cosines of rows, and of centred rows: a network may map all inputs close together."""
    if then.shape != today.shape:
        result.add(f"{what} as stored", False, f"{tuple(today.shape)}, stored {tuple(then.shape)}{changed}")
        return
    cosine = float(F.cosine_similarity(then, today).min())
    apart = float((then - today).abs().max())
    if float((then - then.mean(0)).abs().max()) > 100 * _ROUNDING:
        cosine = min(cosine, float(F.cosine_similarity(then - then.mean(0), today - today.mean(0)).min()))
    passed = cosine >= _MIN_COSINE and apart <= _MAX_DIFFERENCE  # both fail for NaN
    told = f"cosine {cosine:.6f}, largest difference {apart:.1e}"
    limits = f"; expected at least {_MIN_COSINE} and at most {_MAX_DIFFERENCE:g}{changed}"
    result.add(f"{what} as stored", passed, told + ("" if passed else limits))
    if passed and apart > _ROUNDING:
        result.add(f"{what}", None, f"they changed by more than rounding{changed}")


def _compare_inputs(result: Result, stored: Reference, now: Reference) -> None:
    if stored.input is None or now.input is None:
        return
    then, today = torch.tensor(stored.input), torch.tensor(now.input)
    apart = float((then - today).abs().max())
    passed = apart <= _PREPROCESSED * float(then.max() - then.min())
    told = f"largest difference {apart:.1e}" + ("" if passed else _changed(stored, now))
    result.add("preprocessing as stored", passed, told)


def _changed(stored: Reference, now: Reference) -> str:
    """The libraries whose version has changed since the reference was stored."""
    pairs = [f"{k} {v} -> {now.versions.get(k)}" for k, v in stored.versions.items() if now.versions.get(k) != v]
    return f" (since then: {', '.join(pairs)})" if pairs else " (with the same libraries as then)"
