"""One job of a table: a protocol, carried out on one data set for one model.

* `Job`: what is computed together; columns that differ in metric, variant or amount alone share one.
* `Measurable`: what a model offers. * `run_job`: the rows of a job.
"""

from collections.abc import Callable, Sequence
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
from m3bind.evaluate.cross_modal import through_text, visit_retrieval_rows
from m3bind.evaluate.datasets import Dataset
from m3bind.evaluate.estimate import Resampling
from m3bind.evaluate.few_shot import few_shot_rows, shot_variant
from m3bind.evaluate.prompt_files import load_prompts, prompt_sets
from m3bind.evaluate.results import Context, Row
from m3bind.evaluate.retrieval import (
    concept_retrieval_rows,
    distinct_texts,
    patient_retrieval_rows,
    text_retrieval_rows,
)
from m3bind.evaluate.scoring import score_rows
from m3bind.evaluate.tables import Block, Column, TableRow
from m3bind.evaluate.tasks import Task, concepts_for, tasks_for
from m3bind.evaluate.zero_shot import class_directions, evaluate_task, known_rows, task_logits

Array = NDArray[np.float32]
FINETUNE = "lora_finetune"  # the one few-shot method that needs the tower and not its features
MOST_TRAINING = 20_000  # training images that a modality's mean is estimated on, at most


class Measurable(Protocol):
    """What a protocol asks of a model (`m3bind.experiments.evaluated_model.EvaluatedModel` has it)."""

    name: str
    seed: int

    def readable(self, records: Sequence[Record]) -> tuple[list[Record], list[BadRow]]:
        """Records of one modality whose files can be read, and the others with reasons."""

    def images(self, records: Sequence[Record]) -> Array:
        """(n, d) unit rows."""

    def features(self, records: Sequence[Record]) -> Array:
        """(n, f) before the projection."""

    def text_encoder(self, modality: str, asked: str = "") -> str:
        """The text tower that is meant."""

    def texts(self, texts: Sequence[str], path: str) -> Array:
        """(p, d) unit rows."""

    def scale(self, modality: str) -> float:
        """Factor on cosines."""

    def training_data(self, modality: str) -> tuple[str, ...]:
        """Names of the data sets its model has seen, from its card."""

    def label_scores(self, records: Sequence[Record]) -> tuple[tuple[str, ...], NDArray[np.float64]]:
        """Label names and (n, k) scores of a model trained on labels."""

    def finetune(self, records: Sequence[Record]) -> Adapter:
        """The few-shot method that adapts its image tower, for files of these records."""


@dataclass(frozen=True)
class Job:
    """What is computed together."""

    protocol: str
    dataset: str
    modality: str
    task: str = ""
    method: str = ""
    unit: str = ""
    amounts: tuple[int, ...] = ()
    metrics: tuple[str, ...] = ()
    direction: str = ""
    match: str = ""
    text: str = ""
    split: str = "test"

    @property
    def title(self) -> str:
        """For people."""
        parts = (self.protocol.replace("_", " "), self.dataset, self.task, self.method, self.direction, self.text)
        return " ".join(part for part in parts if part)


def job_of(block: Block, column: Column, line: TableRow) -> Job:
    """The job that gives the cell of `column` and `line`."""
    protocol = line.protocol or column.protocol
    job = partial(Job, protocol, column.dataset, column.direction or column.modality or block.modality)
    if protocol == "few_shot":
        same = (column.dataset, column.task, column.unit)
        alike = [c for c in block.columns if (c.dataset, c.task, c.unit) == same]
        alike = [c for c in alike if c.protocol == "few_shot"]
        amounts, metrics = (tuple(sorted({getattr(c, name) for c in alike})) for name in ("amount", "metric"))
        method = line.tuning or column.method
        return job(task=column.task, method=method, unit=column.unit, amounts=amounts, metrics=metrics)
    if protocol == "cross_modal":
        return job(direction=column.direction, match=column.match)
    if protocol == "classifier":
        figures = {c.metric for c in block.columns if (c.dataset, c.task) == (column.dataset, column.task)}
        return job(task=column.task, split=column.split, metrics=tuple(sorted(figures)))
    return job(task=column.task, text=line.text, split=column.split)


def matches(row: Row, column: Column, line: TableRow) -> bool:
    """Whether `row`, of the cell's job, is the figure the cell shows."""
    if row.metric != column.metric or row.protocol == "calibration":
        return False
    if column.protocol == "few_shot":
        named = shot_variant(line.tuning or column.method, column.amount, column.unit)
        return row.variant == ", ".join(filter(None, (named, column.variant)))
    if column.protocol == "cross_modal" and column.match == "visit":
        wanted = ", ".join(filter(None, (f"gallery={column.gallery or 'all'}", column.variant)))
        return row.variant == wanted
    if column.protocol == "cross_modal":
        return row.variant == column.variant and row.task == (column.task or "patient")
    if column.protocol == "text_retrieval":
        return row.protocol == "image_to_text"
    return row.variant == column.variant


def skip_reason(job: Job, column: Column, rows: Sequence[Row]) -> str:
    """Why the rows of a job lack the figure of `column`."""
    if job.protocol == "cross_modal" and column.gallery and rows:
        pairs = max(row.gallery or 0 for row in rows)
        return f"{pairs} pairs are fewer than the gallery of {column.gallery}"
    return f"no figure {column.metric} {column.variant} among: {', '.join(sorted({row.metric for row in rows}))}"


@dataclass(frozen=True)
class Measure:
    """How figures are drawn."""

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)  # of few-shot lists
    resamples: int = 1000  # of the bootstrap
    shots: Path | None = None  # folder where few-shot lists are kept


def run_job(job: Job, model: Measurable, data: Dataset, measure: Measure) -> tuple[list[Row], list[BadRow]]:
    """The rows of a job, and the files that were set aside.

    Raises:
        M3BindError: the job cannot be done; says why.
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
    found = {task.name: task for task in tasks_for(data.records, data.split("train"))}
    if name not in found:
        raise UnknownNameError(f"task for {data.name}", name, found)
    return found[name]


def task_hash(name: str) -> str:
    """Hash of the prompt file that holds the task `name`; "" where no file does."""
    sets = (load_prompts(one) for one in prompt_sets())
    return next((one.hash for one in sets if name in one.content.tasks), "")


def _files(
    model: Measurable, data: Dataset, split: str, modality: str, needed: bool = True
) -> tuple[list[Record], list[BadRow]]:
    """Readable records of a split.

    Raises:
        ConfigError: `needed` and there are none.
    """
    wanted = data.split(split, modality) if split != "all" else [r for r in data.records if r.modality == modality]
    records, bad = model.readable(wanted)
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


def _zero_shot(job: Job, model: Measurable, data: Dataset, measure: Measure) -> tuple[list[Row], list[BadRow]]:
    task = find_task(job.task, data)
    test, bad = _files(model, data, job.split, job.modality)
    valid, more = _files(model, data, "valid", job.modality, needed=False) if job.split == "test" else ([], [])
    path = model.text_encoder(job.modality, job.text)
    known = (model.images(valid), valid) if valid else None
    images, scale, context = model.images(test), model.scale(job.modality), _context(job, model, path)

    def encode(texts: Sequence[str]) -> Array:
        return model.texts(texts, path)

    rows = evaluate_task(task, images, test, encode, context, valid=known, scale=scale, resamples=measure.resamples)
    rows += _calibration(task, (images, test), known, encode, scale, context, measure.resamples)
    return rows, bad + more


def _calibration(
    task: Task,
    test: tuple[Array, Sequence[Record]],
    valid: tuple[Array, Sequence[Record]] | None,
    encode: Callable[[Sequence[str]], Array],
    scale: float,
    context: Context,
    resamples: int,
) -> list[Row]:
    """Calibration error, and what abstaining gives; nothing where scores have no scale of their own."""
    if task.zscore or (task.multilabel and not task.paired):
        return []
    parts = [known_rows(task, part) for part in (test, valid) if part is not None]
    scored = [(y, task_logits(task, images, encode, scale)) for images, y, _ in parts if len(y)]
    if not scored:
        return []
    place = replace(context, prompts=task.prompts_hash)
    chosen_on = scored[1] if len(scored) > 1 else None
    return calibration_rows(*scored[0], place, parts[0][2], valid=chosen_on, resamples=resamples)


def _classifier(job: Job, model: Measurable, data: Dataset, measure: Measure) -> tuple[list[Row], list[BadRow]]:
    task = find_task(job.task, data)
    test, bad = _files(model, data, job.split, job.modality)
    valid, more = _files(model, data, "valid", job.modality, needed=False) if job.split == "test" else ([], [])
    known = (task.labels(valid), _scores(task, model, valid)) if valid else None
    draw = Resampling([record.patient for record in test], measure.resamples, model.seed)
    context = replace(_context(job, model), prompts=task.prompts_hash)
    scores = _scores(task, model, test)
    rows = score_rows("classifier", task.labels(test), scores, context, draw, names=job.metrics, valid=known)
    return rows, bad + more


def _scores(task: Task, model: Measurable, records: Sequence[Record]) -> NDArray[np.float64]:
    """(n, c): a classifier's scores of the task's classes; a class of several labels has the highest of theirs.

    Raises:
        ConfigError: it does not know a class.
    """
    names, scores = model.label_scores(records)
    place = {name.casefold(): i for i, name in enumerate(names)}
    columns = []
    for spec in task.classes:
        wanted = [place[name.casefold()] for name in (spec.name, *spec.match.labels) if name.casefold() in place]
        if not wanted:
            raise ConfigError(f"{model.name} was not trained on the label {spec.name!r} of {task.name}")
        columns.append(scores[:, sorted(set(wanted))].max(1))
    return np.stack(columns, 1)


def _few_shot(job: Job, model: Measurable, data: Dataset, measure: Measure) -> tuple[list[Row], list[BadRow]]:
    task = find_task(job.task, data)
    bad: list[BadRow] = []
    records: dict[str, list[Record]] = {}
    for split in ("train", "valid", "test"):
        records[split], unread = _files(model, data, split, job.modality, needed=split == "test")
        bad += unread
    train, valid = (_samples(model, task, records[side]) if records[side] else None for side in ("train", "valid"))
    test = _samples(model, task, records["test"])
    rows = few_shot_rows(
        model.finetune([r for side in records.values() for r in side]) if job.method == FINETUNE else job.method,
        train,
        valid,
        test,
        _class_texts(task, model, job.modality, test.embeddings.shape[1]),
        replace(_context(job, model), prompts=task.prompts_hash),
        amounts=job.amounts,
        unit="percent" if job.unit == "percent" else "shot",
        seeds=measure.seeds,
        resamples=measure.resamples,
        scale=model.scale(job.modality),
        names=job.metrics,
        folder=measure.shots and measure.shots / job.dataset / job.task,
    )
    return rows, bad


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
        return class_directions(task, lambda texts: model.texts(texts, path))
    except ConfigError:
        return np.zeros((len(task.classes), dim))


def _text_retrieval(job: Job, model: Measurable, data: Dataset, measure: Measure) -> tuple[list[Row], list[BadRow]]:
    records, bad = _files(model, data, "test", job.modality)
    path = model.text_encoder(job.modality, job.text)
    texts, owner = distinct_texts([record.captions[0] for record in records])
    patients = [record.patient for record in records]
    rows = text_retrieval_rows(
        model.images(records),
        model.texts(texts, path),
        owner,
        _context(job, model, path),
        patients,
        resamples=measure.resamples,
    )
    return rows, bad


def _cross_modal(job: Job, model: Measurable, data: Dataset, measure: Measure) -> tuple[list[Row], list[BadRow]]:
    """Plain, gap-corrected, and through text."""
    source, _, target = job.direction.partition("->")
    sides = [_files(model, data, "test", m) for m in (source, target)]
    bad = [fault for _, faults in sides for fault in faults]
    records = {m: found for m, (found, _) in zip((source, target), sides)}
    images = {m: model.images(found) for m, found in records.items()}
    context = _context(job, model)
    means = _means(model, data, (source, target))
    said = {"": images[source], **_said(model, data, source, images[source])}
    rows: list[Row] = []
    for way, queries in said.items():
        for correction in [None, means] if means and not way else [None]:
            both = {source: queries, target: images[target]}
            found = _matched(job, both, records, context, correction, measure.resamples)
            rows += [_named(row, way) for row in found]
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
        visits = tuple([r.visit for r in records[m]] for m in (source, target))
        both = None if means is None else (means[source], means[target])
        patients = [r.patient for r in records[source]]
        return visit_retrieval_rows(
            images[source], images[target], (visits[0], visits[1]), patients, context, means=both, resamples=resamples
        )
    patients_of = {m: [r.patient for r in found] for m, found in records.items()}
    if job.match == "patient":
        rows = patient_retrieval_rows(images, patients_of, context, means, resamples=resamples)
    else:
        everything = [r for found in records.values() for r in found]
        rows = []
        for concept in concepts_for(everything):
            classes = {m: concept.labels(records[m], m) for m in images}
            if all(len(set(found) - {-1}) > 1 for found in classes.values()):
                place = replace(context, task=concept.name, prompts=concept.prompts_hash)
                rows += concept_retrieval_rows(images, classes, place, patients_of, means, resamples=resamples)
    return [row for row in rows if row.modality == job.direction]


def _means(model: Measurable, data: Dataset, names: Sequence[str]) -> dict[str, Array] | None:
    """Mean training embedding (d,) of each modality; None where there are no training images of one."""
    found = {}
    for name in names:
        records, _ = _files(model, data, "train", name, needed=False)
        if not records:
            return None
        found[name] = model.images(records[:MOST_TRAINING]).mean(0)
    return found


def _said(model: Measurable, data: Dataset, modality: str, images: Array) -> dict[str, Array]:
    """The images as their nearest training reports say them."""
    captions = [r.captions[0] for r in data.split("train", modality)][:MOST_TRAINING]
    if not captions:
        return {}
    try:
        texts, _ = distinct_texts(captions)
        return {"through text": through_text(images, model.texts(texts, model.text_encoder(modality)))}
    except ConfigError:  # no text tower
        return {}


def _named(row: Row, way: str) -> Row:
    return replace(row, variant=", ".join(filter(None, (row.variant, way)))) if way else row
