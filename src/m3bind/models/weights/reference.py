"""Does a published model compute here what it computed where it was compared with its authors' code?

* `generated_state`: weights that follow from their names alone, so that no file is needed.
* `fixed_images`, `fixed_tokens`: inputs that follow from their shapes.
* `Reference`: embeddings of those inputs, stored as JSON; one file per model comes with the package.
* `check_model`: the comparison, and what can be said about a checkpoint: `m3bind check-model`.

A changed library (another activation, resize or attention) shows as another embedding. n items, d_m joint dimension.
"""

import base64
import importlib.metadata
import math
import os
import re
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from m3bind.core.files import write_json
from m3bind.core.stored import read_json
from m3bind.errors import CheckpointError, ConfigError
from m3bind.modalities.base import Sample
from m3bind.models import registry
from m3bind.models.base import DualEncoder, Tokens
from m3bind.models.published import PublishedModel
from m3bind.models.weights.checkpoint import LoadReport, hash_state, listed, resolve, without_initialisation

FOLDER = Path(__file__).with_name("references")  # comes with the package
VARIABLE = "M3BIND_REFERENCES"  # folder of the references that a user saved
COSINE = 0.999  # of embeddings with the stored ones, below which a check fails
DIFFERENT = 5e-4  # entry of a unit row above which it fails too: another activation moves cosines by 2e-4 only
NOTICEABLE = 1e-5  # and above which it is told: rounding moves entries by about 1e-6
STEADY = 1e-4  # largest difference of a unit row between batches
UNIT = 1e-4  # of a row's length
_PROBED = 32  # values of a preprocessed input that are stored, of all of it and of its middle
_PREPROCESSED = 0.02  # difference of preprocessed values, relative to their spread
_TABLES = re.compile(r"(embeddings?|embed|token|embedding)(\.weight)?$")
_LIBRARIES = ("torch", "torchvision", "transformers", "timm", "open_clip_torch", "numpy", "pillow")


# ---- weights and inputs from names


def _normal(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Standard normal numbers of a stream that belongs to `name`."""
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    return np.asarray(generator.standard_normal(shape, dtype=np.float32))


def generated(name: str, like: Tensor) -> Tensor:
    """The weight called `name`, of the shape of `like`; whole and single numbers stay as they were built.

    Scales (one axis, `.weight` or `gamma`) are near 1, other vectors near 0, variances above 1, tables 0.5, matrices
    and kernels divided by the root of their fan-in: activations keep their size through any depth.
    """
    if not like.is_floating_point() or like.numel() <= 1:
        return like.clone()
    values, last = _normal(name, tuple(like.shape)), name.rpartition(".")[2]
    if last == "running_var":
        values = 1 + np.float32(0.1) * np.abs(values)
    elif like.ndim == 1 and (last in ("weight", "gamma") or last.endswith("scale")):
        values = 1 + np.float32(0.1) * values
    elif like.ndim == 1 or last == "running_mean":
        values *= np.float32(0.1)
    elif _TABLES.search(name):
        values *= np.float32(0.5)
    else:
        values *= np.float32(1 / math.sqrt(max(1, math.prod(like.shape[1:]))))
    return torch.from_numpy(values).to(like.dtype)


@torch.no_grad()
def fill(model: nn.Module) -> None:
    """Give every weight and buffer of the state dict its generated value."""
    for name, value in model.state_dict().items():
        value.copy_(generated(name, value))


def fixed_images(shape: tuple[int, ...]) -> Tensor:
    """(n, ...) in -1..1: coarse blocks and noise, each item and channel with its own level and contrast."""
    coarse = _normal("coarse", (*shape[:2], *(min(8, size) for size in shape[2:])))
    for axis in range(2, len(shape)):
        coarse = np.take(coarse, np.arange(shape[axis]) * coarse.shape[axis] // shape[axis], axis=axis)
    each = (*shape[:2], *(1 for _ in shape[2:]))
    values = coarse + np.float32(0.5) * _normal("fine", shape)
    values = values * (np.float32(0.2) + np.float32(0.2) * np.abs(_normal("contrast", each)))
    return torch.from_numpy(np.clip(values + np.float32(0.3) * _normal("level", each), -1, 1))


def fixed_tokens(vocabulary: int, longest: int) -> Tokens:
    """Three texts of 9, 14 and 5 tokens, padded on the right with 0; CLIP's or BERT's marks at both ends."""
    first, last = (vocabulary - 2, vocabulary - 1) if vocabulary == 49408 else (101, 102)
    if vocabulary < 2000:
        first, last = 1, 2
    lengths = [min(length, longest) for length in (9, 14, 5)]
    ids = torch.zeros(3, max(lengths), dtype=torch.int64)
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(b"tokens")))
    for row, length in enumerate(lengths):
        body = generator.integers(min(1000, vocabulary // 2), min(vocabulary, 21000), length - 2)
        ids[row, :length] = torch.tensor([first, *body.tolist(), last])
    return {"input_ids": ids, "attention_mask": (ids > 0).long()}


def fixed_samples() -> list[Sample]:
    """One decoded sample of each kind that models take: a colour picture, a CT volume, a 12-lead ECG."""
    picture = (fixed_images((1, 3, 300, 420))[0].permute(1, 2, 0).numpy() + 1) / 2
    volume = 1000 * fixed_images((1, 1, 60, 50, 40))[0, 0].numpy() - 300
    signal = fixed_images((1, 12, 5000))[0].numpy()
    return [
        Sample("picture", picture.astype(np.float32)),
        Sample("ct", volume.astype(np.float32), spacing=(2.5, 0.9, 0.9)),
        Sample("ecg", signal.astype(np.float32), rate=500.0),
    ]


# ---- references


@dataclass
class Reference:
    """What one model with certain weights computed on the fixed inputs."""

    model: str
    weights: str  # "generated", or the hash of a checkpoint's weights
    names: int  # CRC of names and shapes of the state dict
    shape: list[int]  # of the images
    image: list[list[float]]  # (n, d_m) unit rows; encoded in the file
    text: list[list[float]] | None  # None: no text tower
    input: list[float] | None  # values of a preprocessed sample
    versions: dict[str, str] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write as JSON, numbers as base64 of float32.

        Raises:
            DiskError: the file system refused.
        """
        packed = {key: _pack(getattr(self, key)) for key in ("image", "text", "input")}
        write_json(path, asdict(self) | packed)

    @classmethod
    def load(cls, path: Path) -> "Reference":
        """Read what `save` wrote.

        Raises:
            CheckpointError: damaged.
        """
        try:
            content = read_json(path)
            unpacked = {key: _unpack(content[key]) for key in ("image", "text", "input")}
            return cls(**(content | unpacked))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path}: a damaged reference ({error}); delete it, or save it again.") from error


def _pack(values: Any) -> Any:
    if values is None:
        return None
    array = np.asarray(values, dtype="<f4")
    return {"shape": list(array.shape), "float32": base64.b64encode(array.tobytes()).decode()}


def _unpack(packed: Any) -> Any:
    if packed is None:
        return None
    return np.frombuffer(base64.b64decode(packed["float32"]), "<f4").reshape(packed["shape"]).tolist()


def own_folder() -> Path:
    """Where references of checkpoints are saved: $M3BIND_REFERENCES, else in the user's cache folder."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get(VARIABLE) or Path(cache) / "m3bind" / "references").expanduser()


def reference_path(name: str, weights: str = "generated") -> Path:
    """The file of a model's reference: in the package for generated weights, else in the user's folder."""
    return FOLDER / f"{name}.json" if weights == "generated" else own_folder() / f"{name}-{weights[:16]}.json"


def make_reference(model: DualEncoder, name: str, weights: str = "generated") -> Reference:
    """What `model` computes now. It must be in eval mode."""
    sample = _preprocessed(model)
    shape = _shape(model, sample)
    texts = _texts(model)
    names = "\n".join(f"{key} {tuple(value.shape)}" for key, value in sorted(model.state_dict().items()))
    return Reference(
        name,
        weights,
        zlib.crc32(names.encode()),
        list(shape),
        _rows(model.encode_image, fixed_images(shape)),
        None if texts is None else _rows(model.encode_text, texts),
        _probe(sample),
        {library: importlib.metadata.version(library) for library in _LIBRARIES},
    )


def _preprocessed(model: DualEncoder) -> Tensor:
    """The input the model makes of the first of the fixed samples that it takes."""
    for sample in fixed_samples():
        try:
            return model.preprocess(sample)
        except ConfigError:
            continue
    raise ConfigError(f"{model.registered_name}: takes none of the samples that check-model has.")


def _shape(model: DualEncoder, sample: Tensor) -> tuple[int, ...]:
    """Of the images: two items of the model's `check_shape`; else as preprocessed, and one item where that is large."""
    small: tuple[int, ...] = getattr(model, "check_shape", ())
    count = 1 if not small and sample.numel() > 1 << 24 else 2
    return (count, *(small or tuple(sample.shape)))


def _texts(model: DualEncoder) -> Tokens | None:
    """Fixed tokens, or None for a model without a text tower."""
    trunk = getattr(model, "text_trunk", None)
    tables = [m.num_embeddings for m in (trunk.modules() if trunk else ()) if isinstance(m, nn.Embedding)]
    return fixed_tokens(max(tables), model.max_tokens) if tables else None


def _probe(sample: Tensor) -> list[float]:
    middle = sample
    for axis, size in enumerate(sample.shape):
        middle = middle.narrow(axis, size * 3 // 8, max(1, size // 4))
    flats = sample.flatten(), middle.flatten()
    return [float(flat[len(flat) * step // _PROBED]) for flat in flats for step in range(_PROBED)]


@torch.no_grad()
def _rows(encode: Callable[[Any], Tensor], batch: Any) -> list[list[float]]:
    found: list[list[float]] = encode(batch).float().tolist()
    return found


# ---- checks


@dataclass(frozen=True)
class Check:
    """One thing that was looked at. `passed` None: only told."""

    name: str
    passed: bool | None
    told: str


@dataclass
class Result:
    """Everything `check_model` found."""

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
        """Note one check."""
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
    name: str, checkpoint: Path | str | None = None, revision: str = "", save: bool = False, **settings: Any
) -> Result:
    """Compare a published model with its stored reference, then look at a checkpoint.

    Args:
        name: a published model.
        checkpoint: file, folder or hub id of weights; without it only the reference is compared.
        revision: commit of a hub id.
        save: store what is computed now as the reference: of the checkpoint's weights, else of the model itself.
        settings: arguments of the constructor.

    Raises:
        UnknownNameError: no such model or setting.
        ConfigError: a model without published weights.
        CheckpointError: the checkpoint is damaged, unsafe to read, or does not fit.
    """
    if not issubclass(registry.get(name), PublishedModel):
        raise ConfigError(f"{name} is not one of the published models: {', '.join(published())}.")
    found = None if checkpoint is None else resolve(checkpoint, revision)
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        return _check(name, found, save, settings)
    finally:
        torch.set_float32_matmul_precision(precision)


def _check(name: str, found: Path | None, save: bool, settings: dict[str, Any]) -> Result:
    result = Result(name)
    with without_initialisation():
        model = registry.build(name, **settings).eval()
    fill(model)
    now = make_reference(model, name)
    if save and found is None:
        result.saved = _saved(now)
    elif settings:
        result.add("reference", None, "not compared, since settings were given")
    else:
        _compare(result, now, reference_path(name))
    if found is not None:
        _check_checkpoint(result, model, found, save)
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
    told = f"{len(result.load.loaded)} tensors, strictly; {len(result.load.ignored)} of the file ignored by name"
    result.add("load", True, told)
    bad = [name for name, value in model.state_dict().items() if not bool(torch.isfinite(value).all())]
    result.add("weights finite", not bad, f"not in {listed(bad)}" if bad else result.weights_hash[:16])
    now = make_reference(model, result.model, result.weights_hash)
    shape, texts = tuple(now.shape), _texts(model)
    alone = model.encode_image(fixed_images(shape)[:1])
    _check_rows(result, "images", torch.tensor(now.image), alone)
    if texts is not None and now.text is not None:
        length = int(texts["attention_mask"][0].sum())
        alone = model.encode_text({key: value[:1, :length] for key, value in texts.items()})
        _check_rows(result, "texts", torch.tensor(now.text), alone)
    stored = reference_path(result.model, result.weights_hash)
    if save:
        result.saved = _saved(now)
    elif stored.is_file():
        _compare(result, now, stored)
    else:
        result.add("reference of this checkpoint", None, "none saved yet; --save-reference does")


def _check_rows(result: Result, what: str, rows: Tensor, alone: Tensor) -> None:
    """Finite, of length 1, and the first item the same `alone`, without the others and their padding."""
    away = float((rows.norm(dim=1) - 1).abs().max())
    result.add(f"{what} finite, unit length", away < UNIT, f"length within {away:.1e} of 1")  # also fails for NaN
    apart = float((alone - rows[:1]).abs().max())
    result.add(f"{what} alone as in a batch", apart < STEADY, f"largest difference {apart:.1e}")


def _compare(result: Result, now: Reference, path: Path) -> None:
    """Today's numbers with the stored ones."""
    if not path.is_file():
        result.add("reference", None, f"none stored for {now.model}; nothing to compare with")
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
    """(n, d_m) each; cosines of rows, and of rows less their mean: a network may map all inputs close together."""
    if then.shape != today.shape:
        result.add(f"{what} as stored", False, f"{tuple(today.shape)}, stored {tuple(then.shape)}{changed}")
        return
    cosine = float(F.cosine_similarity(then, today).min())
    apart = float((then - today).abs().max())
    if float((then - then.mean(0)).abs().max()) > 100 * NOTICEABLE:
        cosine = min(cosine, float(F.cosine_similarity(then - then.mean(0), today - today.mean(0)).min()))
    passed = cosine >= COSINE and apart <= DIFFERENT  # both fail for NaN
    told = f"cosine {cosine:.6f}, largest difference {apart:.1e}"
    limits = f"; expected at least {COSINE} and at most {DIFFERENT:g}{changed}"
    result.add(f"{what} as stored", passed, told + ("" if passed else limits))
    if passed and apart > NOTICEABLE:
        result.add(f"{what}", None, f"they moved by more than rounding explains{changed}")


def _compare_inputs(result: Result, stored: Reference, now: Reference) -> None:
    if stored.input is None or now.input is None:
        return
    then, today = torch.tensor(stored.input), torch.tensor(now.input)
    apart = float((then - today).abs().max())
    passed = apart <= _PREPROCESSED * float(then.max() - then.min())
    told = f"largest difference {apart:.1e}" + ("" if passed else _changed(stored, now))
    result.add("preprocessing as stored", passed, told)


def _changed(stored: Reference, now: Reference) -> str:
    """Which libraries are others than when the reference was stored."""
    pairs = [f"{k} {v} -> {now.versions.get(k)}" for k, v in stored.versions.items() if now.versions.get(k) != v]
    return f" (since then: {', '.join(pairs)})" if pairs else " (with the same libraries as then)"
