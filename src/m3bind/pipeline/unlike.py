"""Fits how unlike the training data an input is, from the training data of a run.

* `measures`: one measure per modality, for the space.

Shapes: n inputs, f width of the trunk's features, S statistics.
"""

import math
from collections.abc import Callable

import numpy as np
import torch

from m3bind.core.progress import progress
from m3bind.data.batching import rng
from m3bind.data.records import Records
from m3bind.data.splits import carve_valid
from m3bind.models.base import DualEncoder
from m3bind.pipeline.features import FeatureExtractor
from m3bind.pipeline.run import Run
from m3bind.pipeline.stored_inputs import Inputs
from m3bind.space.input_statistics import Floats, input_statistics, thinned
from m3bind.space.unlike import WIDE, UnlikeMeasure, fit_unlike

INPUTS = 1000  # maximum of each kind
ENOUGH = 50  # held-out inputs, below which training patients are held out too
EXAMPLES, FEWEST = 128, 8  # inputs that are degraded
TOGETHER = 64 << 20  # bytes of inputs in memory
DEGRADED = 256 << 20  # and of those that are degraded, if they are more than `FEWEST`
HELD = 0.2  # share of training patients that are held out


def measures(run: Run) -> dict[str, UnlikeMeasure]:
    """The measure of each modality with enough training data, for the run's finished image towers.

    Fitted on training inputs, with thresholds chosen on the valid split. If that has fewer than `ENOUGH` inputs, a
    fifth of the training patients are held out from the fit and used for the thresholds too (a trained tower has seen
    them, so more of new inputs may then be beyond the threshold).
    """
    found = {}
    for m in run.dataset.modalities:
        model, extractor = run.state.models[m], run.extractor
        train, held = _divided(run.dataset.records[m]["train"], run.dataset.records[m]["valid"], run.config.seed)
        train, held = (_some(part, run.config.seed) for part in (train, held))
        with progress(f"unlike {m}", len(train) + len(held)) as bar:
            statistics = [_statistics(extractor.inputs(part, model), bar.advance) for part in (train, held)]
        examples = _examples(extractor.inputs(train, model))
        features = [_features(extractor, part, model) for part in (train, held)]
        measure = fit_unlike(features[0], statistics[0], features[1], statistics[1], examples)
        if measure is not None:
            found[m] = measure
    return found


def _divided(train: Records, valid: Records, seed: int) -> tuple[Records, Records]:
    """Training records, and held-out ones of other patients."""
    if len(valid) >= ENOUGH:
        return train, valid
    carved = carve_valid(train, HELD, seed)
    return carved.where(split="train"), Records.concatenate([carved.where(split="valid"), valid])


def _some(records: Records, seed: int) -> Records:
    """At most `INPUTS` records, chosen at random."""
    return records.take(np.sort(rng(seed, "unlike").permutation(len(records))[:INPUTS]))


def _statistics(inputs: Inputs, advance: Callable[[int], None]) -> Floats:
    """(n, S) of stored inputs, some at a time."""
    found = []
    size = max(1, TOGETHER // (4 * math.prod(inputs.shape[1:])))
    for start in range(0, len(inputs), size):
        part = inputs[start : start + size]
        found.append(input_statistics(torch.from_numpy(part)))
        advance(len(part))
    return np.concatenate(found) if found else np.empty((0, 0), np.float32)


def _examples(inputs: Inputs) -> torch.Tensor:
    """Some inputs, with as many slices as their statistics take into account."""
    found: list[torch.Tensor] = []
    for at in range(min(EXAMPLES, len(inputs))):
        found.append(thinned(torch.from_numpy(np.array(inputs[at : at + 1]))))
        if len(found) >= FEWEST and found[0].nbytes * len(found) >= DEGRADED:
            break
    return torch.cat(found) if found else torch.zeros(0)


def _features(extractor: FeatureExtractor, records: Records, model: DualEncoder) -> Floats:
    """(n, f) of the trunk, or the joint embeddings if those are too wide."""
    if getattr(model.image_head, "in_features", 0) > WIDE:
        return extractor.image_embeddings(records, model)
    return extractor.image_features(records, model).reshape(len(records), -1)
