"""The protocols of a table's jobs, applied to one data set and one model.

* `Measurable`: the interface of a model. `Measure`: seeds and resamples.
* `run_job`: the rows of a job (jobs.py). `find_task`, `task_hash`: a task by name, and the hash of its prompt file.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from m3bind.data.records import BadRow, Record
from m3bind.errors import ConfigError, UnknownNameError
from m3bind.evaluate.adapters import Adapter, Samples
from m3bind.evaluate.calibration import calibration_rows
from m3bind.evaluate.confidence import Resampling
from m3bind.evaluate.cross_modal import through_text, visit_retrieval_rows
from m3bind.evaluate.datasets import Dataset
from m3bind.evaluate.few_shot import FewShotSettings, few_shot_rows
from m3bind.evaluate.jobs import Job
from m3bind.evaluate.prompt_files import load_prompts, prompt_sets
from m3bind.evaluate.results import Context, Row
from m3bind.evaluate.retrieval import (
    concept_retrieval_rows,
    distinct_texts,
    patient_retrieval_rows,
    text_retrieval_rows,
)
from m3bind.evaluate.scoring import score_rows
from m3bind.evaluate.tasks import Task, concepts_for, tasks_for
from m3bind.evaluate.zero_shot import Encode, class_directions, evaluate_task, known_rows, task_logits

Array = NDArray[np.float32]
FINETUNE = "lora_finetune"  # the only few-shot method that needs the tower instead of its features
MAX_TRAINING = 20_000  # training images that a modality's mean is estimated on


class Measurable(Protocol):
    """The interface of a model for protocols (`m3bind.experiments.evaluated_model.EvaluatedModel` implements it)."""

    name: str
    seed: int

    def readable(self, records: Sequence[Record]) -> tuple[list[Record], list[BadRow]]:
        """Records of one modality whose files can be read, and the others with reasons."""

    def images(self, records: Sequence[Record]) -> Array:
        """(n, d) unit rows."""

    def features(self, records: Sequence[Record]) -> Array:
        """(n, f) before the projection."""

    def text_encoder(self, modality: str, asked: str = "") -> str:
        """Name of the text tower: `asked`, or the model's default for `modality`."""

    def texts(self, texts: Sequence[str], path: str) -> Array:
        """(p, d) unit rows."""

    def scale(self, modality: str) -> float:
        """Factor on cosines."""

    def training_data(self, modality: str) -> tuple[str, ...]:
        """Names of the data sets on its model's card."""

    def label_scores(self, records: Sequence[Record]) -> tuple[tuple[str, ...], NDArray[np.float64]]:
        """Label names and (n, k) scores of a model trained on labels."""

    def finetune(self, records: Sequence[Record]) -> Adapter:
        """The few-shot method that adapts its image tower, for files of these records."""


@dataclass(frozen=True)
class Measure:
    """Seeds and resamples of the metrics."""

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)  # of few-shot lists
    resamples: int = 1000  # of the bootstrap
    shots: Path | None = None  # folder of the few-shot lists


Rows = tuple[list[Row], list[BadRow]]  # result rows, and quarantined files


def run_job(job: Job, model: Measurable, data: Dataset, measure: Measure) -> Rows:
    """The rows of a job, and the quarantined files.

    Raises:
        M3BindError: the job cannot be computed; the message states the reason.
    """
    return {
        "zero_shot": _zero_shot,
        "few_shot": _few_shot,
        "text_retrieval": _text_retrieval,
        "cross_modal": _cross_modal,
        "classifier": _classifier,
    }[job.protocol](job, model, data, measure)


def find_task(name: str, data: Dataset) -> Task:
    """The task `name` of the prompt files, for the records of `data`.

    Raises:
        UnknownNameError: no such task, or no record is part of it.
    """
    tasks = {task.name: task for task in tasks_for(data.records, data.split("train"))}
    if name not in tasks:
        raise UnknownNameError(f"task for {data.name}", name, tasks)
    return tasks[name]


def task_hash(name: str) -> str:
    """Hash of the prompt file that contains the task `name`; "" if no file does."""
    sets = map(load_prompts, prompt_sets())
    return next((prompts.hash for prompts in sets if name in prompts.content.tasks), "")


def _files(
    model: Measurable, data: Dataset, split: str, modality: str, needed: bool = True
) -> tuple[list[Record], list[BadRow]]:
    """Readable records of a split.

    Raises:
        ConfigError: `needed`, and no record is readable.
    """
    selected = data.split(split, modality) if split != "all" else [r for r in data.records if r.modality == modality]
    records, bad = model.readable(selected)
    if needed and not records:
        raise ConfigError(f"{data.name}: no readable {modality} file in the {split} split")
    return records, bad


def _context(job: Job, model: Measurable, path: str = "") -> Context:
    return Context(
        dataset=job.dataset,
        modality=job.modality,
        split=job.split,
        text_encoder="" if not path else "student" if path == "student" else "teacher",
        stage=model.name,
        seed=model.seed,
        task=job.task,
    )


def _test_and_valid(job: Job, model: Measurable, data: Dataset) -> tuple[list[Record], list[Record], list[BadRow]]:
    """Readable records that are evaluated, those of the validation split if the first are the test split, bad rows."""
    test, bad = _files(model, data, job.split, job.modality)
    valid, more = _files(model, data, "valid", job.modality, needed=False) if job.split == "test" else ([], [])
    return test, valid, bad + more


def _zero_shot(job: Job, model: Measurable, data: Dataset, measure: Measure) -> Rows:
    task = find_task(job.task, data)
    test, valid, bad = _test_and_valid(job, model, data)
    path = model.text_encoder(job.modality, job.text)
    encode = partial(model.texts, path=path)
    known = (model.images(valid), valid) if valid else None
    images, scale, context = model.images(test), model.scale(job.modality), _context(job, model, path)
    rows = evaluate_task(task, images, test, encode, context, valid=known, scale=scale, resamples=measure.resamples)
    rows += _calibration(task, (images, test), known, encode, scale, context, measure.resamples)
    return rows, bad


def _calibration(
    task: Task,
    test: tuple[Array, Sequence[Record]],
    valid: tuple[Array, Sequence[Record]] | None,
    encode: Encode,
    scale: float,
    context: Context,
    resamples: int,
) -> list[Row]:
    """Calibration error, and accuracy with abstention; empty for scores without a scale of their own."""
    if not task.has_probabilities:
        return []
    parts = [known_rows(task, part) for part in (test, valid) if part is not None]
    scored = [(y, task_logits(task, images, encode, scale)) for images, y, _ in parts if len(y)]
    if not scored:
        return []
    place = replace(context, prompts=task.prompts_hash)
    chosen_on = scored[1] if len(scored) > 1 else None
    return calibration_rows(*scored[0], place, parts[0][2], valid=chosen_on, resamples=resamples)


def _classifier(job: Job, model: Measurable, data: Dataset, measure: Measure) -> Rows:
    task = find_task(job.task, data)
    test, valid, bad = _test_and_valid(job, model, data)
    known = (task.labels(valid), _scores(task, model, valid)) if valid else None
    draw = Resampling([record.patient for record in test], measure.resamples)
    context = replace(_context(job, model), prompts=task.prompts_hash)
    scores = _scores(task, model, test)
    return score_rows("classifier", task.labels(test), scores, context, draw, names=job.metrics, valid=known), bad


def _scores(task: Task, model: Measurable, records: Sequence[Record]) -> NDArray[np.float64]:
    """(n, c): a classifier's scores of the task's classes; for a class of several labels the highest of theirs.

    Raises:
        ConfigError: the classifier was not trained on a class.
    """
    names, scores = model.label_scores(records)
    place = {name.casefold(): i for i, name in enumerate(names)}
    columns = []
    for spec in task.classes:
        known = [place[name.casefold()] for name in (spec.name, *spec.match.labels) if name.casefold() in place]
        if not known:
            raise ConfigError(f"{model.name} was not trained on the label {spec.name!r} of {task.name}")
        columns.append(scores[:, sorted(set(known))].max(1))
    return np.stack(columns, 1)


def _few_shot(job: Job, model: Measurable, data: Dataset, measure: Measure) -> Rows:
    task = find_task(job.task, data)
    bad: list[BadRow] = []
    records: dict[str, list[Record]] = {}
    for split in ("train", "valid", "test"):
        records[split], unread = _files(model, data, split, job.modality, needed=split == "test")
        bad += unread
    train, valid = (_samples(model, task, records[side]) if records[side] else None for side in ("train", "valid"))
    test = _samples(model, task, records["test"])
    method = model.finetune([r for side in records.values() for r in side]) if job.method == FINETUNE else job.method
    settings = FewShotSettings(
        amounts=job.amounts,
        unit="percent" if job.unit == "percent" else "shot",
        seeds=measure.seeds,
        resamples=measure.resamples,
        scale=model.scale(job.modality),
        names=job.metrics,
        folder=measure.shots and measure.shots / job.dataset / job.task,
    )
    classes = _class_texts(task, model, job.modality, test.embeddings.shape[1])
    context = replace(_context(job, model), prompts=task.prompts_hash)
    return few_shot_rows(method, train, valid, test, classes, context, settings), bad


def _samples(model: Measurable, task: Task, records: Sequence[Record]) -> Samples:
    return Samples(
        model.features(records),
        model.images(records),
        task.labels(records),
        [record.patient for record in records],
        [record.id for record in records],
    )


def _class_texts(task: Task, model: Measurable, modality: str, dim: int) -> NDArray[np.float64]:
    """(c, d) class texts for methods that start from them; zeros for a model without text tower."""
    path = model.text_encoder(modality)
    try:
        return class_directions(task, partial(model.texts, path=path))
    except ConfigError:
        return np.zeros((len(task.classes), dim))


def _text_retrieval(job: Job, model: Measurable, data: Dataset, measure: Measure) -> Rows:
    records, bad = _files(model, data, "test", job.modality)
    path = model.text_encoder(job.modality, job.text)
    texts, owner = distinct_texts([record.captions[0] for record in records])
    patients, context = [record.patient for record in records], _context(job, model, path)
    images, embedded = model.images(records), model.texts(texts, path)
    return text_retrieval_rows(images, embedded, owner, context, patients, resamples=measure.resamples), bad


def _cross_modal(job: Job, model: Measurable, data: Dataset, measure: Measure) -> Rows:
    """Plain, gap-corrected, and through text."""
    source, _, target = job.direction.partition("->")
    records: dict[str, list[Record]] = {}
    bad: list[BadRow] = []
    for modality in (source, target):
        records[modality], unread = _files(model, data, "test", modality)
        bad += unread
    images = {m: model.images(files) for m, files in records.items()}
    context = _context(job, model)
    rows = _matched(job, images, records, context, None, measure.resamples)
    if means := _means(model, data, (source, target)):
        rows += _matched(job, images, records, context, means, measure.resamples)
    queries = _as_text(model, data, source, images[source])
    if queries is not None:
        described = _matched(job, {**images, source: queries}, records, context, None, measure.resamples)
        rows += [replace(row, variant=", ".join(filter(None, (row.variant, "through text")))) for row in described]
    return rows, bad


def _matched(
    job: Job,
    images: dict[str, Array],
    records: dict[str, list[Record]],
    context: Context,
    means: dict[str, Array] | None,
    resamples: int,
) -> list[Row]:
    source, target = images
    if job.match == "visit":
        visits = [r.visit for r in records[source]], [r.visit for r in records[target]]
        both = None if means is None else (means[source], means[target])
        patients = [r.patient for r in records[source]], [r.patient for r in records[target]]
        return visit_retrieval_rows(
            images[source], images[target], visits, patients, context, means=both, resamples=resamples
        )
    patients_of = {m: [r.patient for r in files] for m, files in records.items()}
    if job.match == "patient":
        rows = patient_retrieval_rows(images, patients_of, context, means, resamples=resamples)
    else:
        rows = []
        for concept in concepts_for([r for files in records.values() for r in files]):
            classes = {m: concept.labels(records[m], m) for m in images}
            if all(len(set(numbers) - {-1}) > 1 for numbers in classes.values()):
                place = replace(context, task=concept.name, prompts=concept.prompts_hash)
                rows += concept_retrieval_rows(images, classes, place, patients_of, means, resamples=resamples)
    return [row for row in rows if row.modality == job.direction]


def _means(model: Measurable, data: Dataset, names: Sequence[str]) -> dict[str, Array] | None:
    """Mean training embedding (d,) of each modality; None if a modality has no training images."""
    means = {}
    for name in names:
        records, _ = _files(model, data, "train", name, needed=False)
        if not records:
            return None
        means[name] = model.images(records[:MAX_TRAINING]).mean(0)
    return means


def _as_text(model: Measurable, data: Dataset, modality: str, images: Array) -> Array | None:
    """The images replaced by their nearest training reports (`through_text`); None without reports or text tower."""
    captions = [r.captions[0] for r in data.split("train", modality)][:MAX_TRAINING]
    if not captions:
        return None
    texts, _ = distinct_texts(captions)
    try:
        return through_text(images, model.texts(texts, model.text_encoder(modality)))
    except ConfigError:  # no text tower
        return None
