"""Inputs to compare an exported tower with the original.

* `read_inputs`: files of a manifest. Without a manifest:
* `sample_texts`: prompts of the space, and texts of every length.
* `sample_inputs`: generated images, volumes and ECGs, preprocessed by the model.
"""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from m3bind.data.manifest import read_manifest
from m3bind.errors import ConfigError
from m3bind.modalities.formats.isolation import allow
from m3bind.models.base import DualEncoder
from m3bind.models.embedding import PROBES
from m3bind.models.weights.reference import fixed_images, fixed_samples
from m3bind.space.bundle import Space
from m3bind.space.prompts import fill_template

GENERATED, REAL = 3, 8  # generated inputs per tower, files per modality


def sample_texts(space: Space) -> list[str]:
    """Short and long texts."""
    templates = chain.from_iterable(space.info.prompts.values())
    prompts = [fill_template(template, "pneumonia") for template in templates]
    return list(dict.fromkeys([*PROBES, *prompts]))


def sample_inputs(model: DualEncoder) -> list[Tensor]:
    """A few inputs of a model, without the batch axis; [] if it accepts none of the generated samples."""
    small: tuple[int, ...] = getattr(model, "check_shape", ())
    if small:
        return list(fixed_images((GENERATED, *small)))
    for sample in fixed_samples():
        try:
            first = model.preprocess(sample)
        except (ConfigError, ValueError, IndexError, RuntimeError):
            continue
        noise = fixed_images((GENERATED, *first.shape)) if first.ndim > 1 else torch.randn(GENERATED, *first.shape)
        return [first, *(first + 0.2 * float(first.std()) * value for value in noise[1:])]
    return []


def read_inputs(
    space: Space, manifest: Path | str, workers: int = 1, root: Path | str | None = None
) -> dict[str, list[Tensor]]:
    """The first `REAL` files of each modality of a manifest, as `Space.read` returns them; `workers` processes read.

    `root`: the folder of the manifest's paths, by default its own.

    Raises:
        ManifestError: the manifest cannot be used.
        ReadError: a file is damaged.
    """
    chosen: dict[str, list[Path]] = {}
    for record in read_manifest(manifest, root, modalities=space.modalities).records:
        paths = chosen.setdefault(record.modality, [])
        if len(paths) < REAL:
            paths.append(record.path)
    allow(workers)
    with ThreadPoolExecutor(workers) as pool:
        return {name: list(pool.map(partial(space.read, modality=name), paths)) for name, paths in chosen.items()}
