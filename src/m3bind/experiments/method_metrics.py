"""Metrics of a binding method: zero-shot, cross-modal search and text agreement of a state, after each post step.

* `measure_methods`: all metrics with their bootstrap replicates. * `POST`: the post steps.
"""

from collections.abc import Mapping, Sequence
from itertools import permutations
from typing import Any

import numpy as np

from m3bind.align.post import GAPS, linear_projectors
from m3bind.config import PostConfig
from m3bind.data.records import Record
from m3bind.evaluate.agreement import text_agreement
from m3bind.evaluate.classification import classification
from m3bind.evaluate.confidence import Estimate, Resampling, average
from m3bind.evaluate.instance_search import Search, search_estimates
from m3bind.evaluate.retrieval import PairMean, add_concept_pair
from m3bind.evaluate.stage_results import Matrix
from m3bind.evaluate.tasks import concepts_for, tasks_for
from m3bind.evaluate.zero_shot import class_embeddings
from m3bind.pipeline import stages
from m3bind.pipeline.stages import Setup, Sides, State

POST: dict[str, PostConfig] = {"": PostConfig(), **{gap: PostConfig(gap=gap) for gap in GAPS[1:]}}
ISO_SHARE = 8  # IsoCLIP removes 1/8 of the smallest joint dimension at the top and at the bottom of the spectrum
Metrics = dict[str, tuple[Estimate, float | None]]  # metric -> estimate, size of the gallery


def measure_methods(state: State, setup: Setup, sides: Sides) -> dict[str, Any]:
    """{"metrics": {post step: {metric: value, chance, n, gallery, replicates}}} of a state.

    `sides`: training embeddings for fitting post steps, see `stages.training_embeddings`.
    """
    resamples = setup.config.evaluate.bootstrap
    measured: dict[str, dict[str, Any]] = {}
    for name, post in {**POST, **_iso(state)}.items():
        after = stages.with_post(state, setup, post, sides)
        images = {m: stages.embed_images(after, setup, m, "test") for m in setup.modalities}
        values: Metrics = {"zero-shot": (_zero_shot(after, setup, images, resamples), None)}
        values |= _patients(setup, images, resamples) | _concepts(setup, images, resamples)
        if not name:
            values |= _agreement(after, setup, resamples)
        measured[name] = {key: _plain(estimate, gallery) for key, (estimate, gallery) in values.items()}
    return {"metrics": measured}


def _iso(state: State) -> dict[str, PostConfig]:
    """IsoCLIP, if the projectors of all towers are linear."""
    models = list(state.models.values())
    if any(linear_projectors(model) is None for model in models):
        return {}
    drop = min(model.joint_dim for model in models) // ISO_SHARE
    return {"iso": PostConfig(iso=(drop, drop))}


def _plain(estimate: Estimate, gallery: float | None) -> dict[str, Any]:
    drawn = [] if estimate.replicates is None else [round(float(x), 6) for x in estimate.replicates]
    numbers = {"value": estimate.value, "chance": estimate.chance}
    known = {k: float(v) if np.isfinite(v) else None for k, v in numbers.items()}
    counts = {"n": estimate.n, "patients": estimate.patients, "freedom": float(estimate.freedom)}
    return {**known, **counts, "gallery": gallery, "replicates": drawn if np.isfinite(drawn).all() else []}


def _zero_shot(state: State, setup: Setup, images: Mapping[str, Matrix], resamples: int) -> Estimate:
    """Mean over single-label tasks of their own metric, texts by the modality's own tower."""
    parts: list[Estimate] = []
    files, patients = 0, set[str]()
    test, train = _records(setup, "test"), _records(setup, "train")
    for task in tasks_for(_all(test), _all(train), setup.config.evaluate.tasks or None):
        m = task.modality
        y = np.asarray(task.labels(test[m]))
        if y.ndim > 1:
            continue
        texts, owner = task.prompts()
        inside = y >= 0
        classes = class_embeddings(stages.embed_text(state, setup, texts, m), owner)
        scores = images[m][inside].astype(np.float64) @ classes.T
        people = np.array([r.patient for r in test[m]])[inside]
        parts.append(classification(y[inside], scores, Resampling(people, resamples))[task.metric])
        files, patients = files + len(people), patients | set(people)
    return average(parts, files, len(patients))


def _records(setup: Setup, split: str) -> dict[str, Sequence[Record]]:
    return {m: setup.dataset.records[m][split] for m in setup.modalities}


def _all(records: Mapping[str, Sequence[Record]]) -> list[Record]:
    return [r for rows in records.values() for r in rows]


def _patients(setup: Setup, images: Mapping[str, Matrix], resamples: int) -> Metrics:
    """Image -> image of the same patient, mean over ordered pairs of modalities; empty without shared patients."""
    test = _records(setup, "test")
    pairs = PairMean()
    for a, b in permutations(images, 2):
        keys, gallery = (np.array([r.patient for r in test[m]]) for m in (a, b))
        shared = np.isin(keys, gallery)
        if not shared.any():
            continue
        search = Search(images[a][shared], images[b], keys[shared], gallery, keys[shared], gallery)
        pairs.add(search_estimates([search], ["R@1", "R@10"], resamples), a, shared, keys[shared], len(gallery))
    return _means(pairs, {"R@1": "patient R@1", "R@10": "patient R@10"})


def _means(pairs: PairMean, names: Mapping[str, str]) -> Metrics:
    means = pairs.means()
    return {names[name]: (value, float(np.mean(pairs.sizes))) for name, value in means.items()}


def _concepts(setup: Setup, images: Mapping[str, Matrix], resamples: int) -> Metrics:
    """Image -> image of the same concept, mean over concepts and ordered pairs of the modalities that have it."""
    test, train = _records(setup, "test"), _records(setup, "train")
    people = {m: [r.patient for r in records] for m, records in test.items()}
    pairs = PairMean()
    for concept in concepts_for(_all(test), _all(train), setup.config.evaluate.tasks or None):
        classes = {m: concept.labels(test[m], m) for m in concept.modalities}
        for modalities in permutations(concept.modalities, 2):
            add_concept_pair(pairs, images, classes, people, modalities, 5, resamples)
    return _means(pairs, {"auc": "concept AUC", "precision@5": "concept P@5"})


def _agreement(state: State, setup: Setup, resamples: int) -> Metrics:
    """Agreement of the towers on held-out texts: cos, cos' (other texts, same tower), ccos and R@1."""
    texts = setup.dataset.table.take(setup.dataset.held_out)
    names = {"cos": "cos", "cos_within": "cos'", "ccos": "ccos", "R@1": "text R@1"}
    rows = text_agreement([stages.embed_text(state, setup, texts, m) for m in setup.modalities], resamples)
    return {shown: (rows[name], float(len(texts)) if name == "R@1" else None) for name, shown in names.items()}
