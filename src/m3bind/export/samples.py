"""Inputs to compare an exported tower with the original.

* `read_inputs`: files of a manifest. Where none are given:
* `sample_texts`: prompts of the space, and texts of every length.
* `sample_inputs`: generated pictures, volumes and ECGs as the model's own preprocessing makes them.
"""

from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from m3bind.data.manifest import read_manifest
from m3bind.errors import ConfigError
from m3bind.models.base import DualEncoder
from m3bind.models.embedding import PROBES
from m3bind.models.weights.reference import fixed_images, fixed_samples
from m3bind.space.bundle import Space
from m3bind.space.prompts import fill_template

ITEMS = 3  # generated inputs per tower
REAL = 8  # files per modality


def sample_texts(space: Space) -> list[str]:
    """Short and long texts."""
    templates = chain.from_iterable(space.info.prompts.values())
    prompts = [fill_template(template, "pneumonia") for template in templates]
    return list(dict.fromkeys([*PROBES, *prompts]))


def sample_inputs(model: DualEncoder) -> list[Tensor]:
    """A few inputs of a model, without the batch axis; [] where none of the generated samples is of its kind."""
    small: tuple[int, ...] = getattr(model, "check_shape", ())
    if small:
        return list(fixed_images((ITEMS, *small)))
    for sample in fixed_samples():
        try:
            first = model.preprocess(sample)
        except (ConfigError, ValueError, IndexError, RuntimeError):
            continue
        noise = fixed_images((ITEMS, *first.shape)) if first.ndim > 1 else torch.randn(ITEMS, *first.shape)
        return [first, *(first + 0.2 * float(first.std()) * value for value in noise[1:])]
    return []


def read_inputs(space: Space, manifest: Path | str) -> dict[str, list[Tensor]]:
    """The first readable files of a manifest as `Space.read` gives them, at most `REAL` per modality.

    Raises:
        ManifestError: the manifest cannot be used.
        ReadError: a file of it is damaged.
    """
    records = read_manifest(manifest, modalities=space.modalities).records
    found: dict[str, list[Tensor]] = {}
    for record in records:
        rows = found.setdefault(record.modality, [])
        if len(rows) < REAL:
            rows.append(space.read(record.path, record.modality))
    return found
