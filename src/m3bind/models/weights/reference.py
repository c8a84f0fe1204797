"""Reference embeddings of the published models, recorded when they agreed with their authors' code.

* `generated`, `fill`: weights that depend on their names only, so that no file is needed.
* `fixed_images`, `fixed_tokens`, `fixed_samples`: inputs that depend on their shapes only.
* `Reference`: embeddings of those inputs, stored as JSON; one file per model is in the package (`reference_path`).
* `make_reference`: the embeddings of a model now.

n items, d_m joint dimension.
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
from numpy.typing import NDArray
from torch import Tensor, nn

from m3bind.core.device import device_of
from m3bind.core.files import user_caches, write_json
from m3bind.core.stored import read_json
from m3bind.errors import CheckpointError, ConfigError
from m3bind.modalities.base import Sample
from m3bind.models.base import DualEncoder, Tokens

FOLDER = Path(__file__).with_name("references")  # in the package
VARIABLE = "M3BIND_REFERENCES"  # folder of the user's own references
_PROBED = 32  # values of a preprocessed input that are stored, of all of it and of its middle
_TABLES = re.compile(r"(embeddings?|embed|token|embedding)(\.weight)?$")
_LIBRARIES = ("torch", "torchvision", "transformers", "timm", "open_clip_torch", "numpy", "pillow")


# ---- weights and inputs from names


def _normal(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Standard normal numbers, seeded by `name`."""
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    return np.asarray(generator.standard_normal(shape, dtype=np.float32))


def generated(name: str, like: Tensor) -> Tensor:
    """The weight `name`, of the shape of `like`; integers and single numbers are unchanged.

    Scales (one axis, `.weight` or `gamma`) are near 1, other vectors near 0, variances above 1, tables 0.5, matrices
    and kernels divided by the root of their fan-in: the size of activations does not depend on the depth.
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
    """(n, ...) in -1..1: coarse blocks and noise; level and contrast differ between items and channels."""
    coarse = _normal("coarse", (*shape[:2], *(min(8, size) for size in shape[2:])))
    for axis in range(2, len(shape)):
        coarse = np.take(coarse, np.arange(shape[axis]) * coarse.shape[axis] // shape[axis], axis=axis)
    each = (*shape[:2], *[1] * len(shape[2:]))
    values = coarse + np.float32(0.5) * _normal("fine", shape)
    values = values * (np.float32(0.2) + np.float32(0.2) * np.abs(_normal("contrast", each)))
    return torch.from_numpy(np.clip(values + np.float32(0.3) * _normal("level", each), -1, 1))


def fixed_tokens(vocabulary: int, longest: int) -> Tokens:
    """Three texts of 9, 14 and 5 tokens, padded on the right with 0; CLIP's or BERT's special tokens at both ends."""
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
    """One decoded sample of each kind of input: a colour image, a CT volume, a 12-lead ECG."""
    image = (fixed_images((1, 3, 300, 420))[0].permute(1, 2, 0).numpy() + 1) / 2
    volume = 1000 * fixed_images((1, 1, 60, 50, 40))[0, 0].numpy() - 300
    signal = fixed_images((1, 12, 5000))[0].numpy()
    return [
        Sample("picture", image.astype(np.float32)),
        Sample("ct", volume.astype(np.float32), spacing=(2.5, 0.9, 0.9)),
        Sample("ecg", signal.astype(np.float32), rate=500.0),
    ]


# ---- references


@dataclass
class Reference:
    """The embeddings of the fixed inputs by one model with certain weights."""

    model: str
    weights: str  # "generated", or the hash of a checkpoint's weights
    names: int  # CRC of names and shapes of the state dict
    shape: list[int]  # of the images
    image: list[list[float]]  # (n, d_m) unit rows; encoded in the file
    text: list[list[float]] | None  # None: no text tower
    input: list[float] | None  # values of a preprocessed sample
    versions: dict[str, str] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write as JSON, arrays as base64 of float32.

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
    """The folder of references of checkpoints: $M3BIND_REFERENCES, else in the user's cache folder."""
    return Path(os.environ.get(VARIABLE) or user_caches() / "references").expanduser()


def reference_path(name: str, weights: str = "generated") -> Path:
    """The file of a model's reference: in the package for generated weights, else in the user's folder."""
    return FOLDER / f"{name}.json" if weights == "generated" else own_folder() / f"{name}-{weights[:16]}.json"


def make_reference(model: DualEncoder, name: str, weights: str = "generated") -> Reference:
    """The embeddings of `model`, in eval mode, now."""
    sample = _preprocessed(model)
    shape, texts, device = _shape(model, sample), texts_for(model), device_of(model)
    names = "\n".join(f"{key} {tuple(value.shape)}" for key, value in sorted(model.state_dict().items()))
    return Reference(
        name,
        weights,
        zlib.crc32(names.encode()),
        list(shape),
        _rows(model.encode_image, fixed_images(shape).to(device)),
        None if texts is None else _rows(model.encode_text, {key: value.to(device) for key, value in texts.items()}),
        _probe(sample),
        {library: importlib.metadata.version(library) for library in _LIBRARIES},
    )


def _preprocessed(model: DualEncoder) -> Tensor:
    """The model's input of the first fixed sample that it accepts."""
    for sample in fixed_samples():
        try:
            return model.preprocess(sample)
        except ConfigError:
            continue
    raise ConfigError(f"{model.registered_name}: accepts none of the samples of check-model.")


def _shape(model: DualEncoder, sample: Tensor) -> tuple[int, ...]:
    """Of the images: two items of the model's `check_shape`; else as preprocessed, one item if that is large."""
    small: tuple[int, ...] = getattr(model, "check_shape", ())
    count = 1 if not small and sample.numel() > 1 << 24 else 2
    return (count, *(small or tuple(sample.shape)))


def texts_for(model: DualEncoder) -> Tokens | None:
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
    return encode(batch).float().tolist()
