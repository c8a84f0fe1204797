"""Calibration of a run's zero-shot predictions.

* `temperatures`: fitted on patients that the models have not seen, for the space.
* `reliability`: predictions on the test split with and without the temperatures, for the report.

Shapes: n samples, c classes or labels.
"""

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from m3bind import modalities
from m3bind.data.records import Record, Records
from m3bind.data.splits import carve_valid
from m3bind.evaluate.calibration import Answers, answers, fit_temperature
from m3bind.evaluate.confidence import Floats
from m3bind.evaluate.tasks import Task, tasks_for
from m3bind.evaluate.zero_shot import known_rows, task_logits
from m3bind.pipeline import stages
from m3bind.pipeline.dataset import build_models
from m3bind.pipeline.run import Run
from m3bind.pipeline.stages import Setup, State

log = logging.getLogger(__name__)
HELD = 0.2  # share of the training patients that temperatures are fitted on without a valid split
Scores = tuple[NDArray[np.int64], Floats]  # truth (n,) or (n, c), logits (n, c)


def temperatures(run: Run) -> dict[str, float]:
    """Per modality the geometric mean of the temperatures of its tasks, weighted by samples, and at least 1.

    Fitted on the valid split. A modality without valid samples of its tasks uses a fifth of its training patients: a
    second stage 0 without them, in the run's folder `calibration`, gives the logits, by the modality's own text tower.
    Its models are used for nothing else, and those of the run are still trained on all patients. A model that stage 0
    does not train has not seen the images: it gives the logits of all training samples itself.

    The minimum of 1: a few samples without errors would make every answer certain.
    """
    tasks, fitted = _tasks(run), defaultdict[str, list[tuple[int, float]]](list)
    for task in tasks:
        _fit(fitted, task, _scores(task, run.state, run.setup, split="valid"))
    missing = dict.fromkeys(task.modality for task in tasks if task.modality not in fitted)
    unseen = [m for m in missing if not run.config.modalities[m].pretrain]
    trained = [m for m in missing if m not in unseen]
    held_out = _without_some(run, trained) if trained else (run.state, run.setup)
    for task in tasks:
        if task.modality in unseen:
            _fit(fitted, task, _scores(task, run.state, run.setup, split="train"))
        elif task.modality in trained:
            _fit(fitted, task, _scores(task, *held_out, split="valid"))
    found = {}
    for m, parts in fitted.items():
        counts, logs = zip(*parts)
        found[m] = max(1.0, float(np.exp(np.average(logs, weights=counts))))
    return found


def _fit(fitted: Mapping[str, list[tuple[int, float]]], task: Task, scores: Scores | None) -> None:
    """Append the number of samples and the logarithm of the temperature."""
    if scores is not None:
        fitted[task.modality].append((len(scores[0]), float(np.log(fit_temperature(*scores)))))


def _tasks(run: Run) -> list[Task]:
    """Zero-shot tasks with probabilities, of the test split, or of valid without one."""
    train, valid, test = (_records(run, split) for split in ("train", "valid", "test"))
    tasks = tasks_for(test or valid, train, run.config.evaluate.tasks or None)
    return [task for task in tasks if task.has_probabilities]


def _records(run: Run, split: str) -> Sequence[Record]:
    return [record for m in run.dataset.modalities for record in run.dataset.records[m][split]]


def _scores(task: Task, state: State, setup: Setup, split: str) -> Scores | None:
    """Truth and logits of the samples of a task in a split; None without any.

    Texts are encoded by the student if there is one.
    """
    m = task.modality
    if m not in setup.modalities or not len(setup.dataset.records[m][split]):
        return None
    records = setup.dataset.records[m][split]
    images, y, _ = known_rows(task, (stages.embed_images(state, setup, m, split), records))
    if not len(y):
        return None
    encode = partial(stages.embed_text, state, setup, encoder="student" if state.student is not None else m)
    return y, task_logits(task, images, encode, float(state.models[m].logit_scale.detach()))


def _without_some(run: Run, names: Sequence[str]) -> tuple[State, Setup]:
    """Stage 0 of some modalities without a fifth of the training patients, which are its valid split.

    A modality with too few patients for that has no valid samples and is not trained.
    """
    config = run.config
    records = {m: _splits(run.dataset.records[m]["train"], config.seed) for m in names}
    records = {m: splits for m, splits in records.items() if len(splits["valid"])}
    if records:
        text = "no valid split of %s: stage 0 is repeated without some patients, for temperatures"
        log.info(text, ", ".join(records))
    config = config.model_copy(update={"modalities": {m: config.modalities[m] for m in records}})
    setup = replace(run.setup, config=config, dataset=replace(run.dataset, records=records))
    models = build_models(config, run.pretrain_folder / "assets")
    state = State({m: model.to(run.compute.device) for m, model in models.items()})
    return stages.unbound(stages.pretrain(state, setup, run.folder / "calibration"), setup), setup


def _splits(train: Records, seed: int) -> dict[str, Records]:
    """The training records by split, a fifth of the patients in valid; none if they are too few."""
    carved = carve_valid(train, HELD, seed)
    return {split: carved.where(split=split) for split in ("train", "valid", "test")}


def reliability(run: Run, divisors: Mapping[str, float]) -> dict[str, list[tuple[str, Answers]]]:
    """Heading -> predictions on the test split by task: with the models' scales, and divided by `temperatures`."""
    plain: list[tuple[str, Answers]] = []
    fitted: list[tuple[str, Answers]] = []
    for task in _tasks(run):
        scores = _scores(task, run.state, run.setup, split="test")
        if scores is not None:
            name = f"{modalities.get(task.modality).title}: {task.name.replace('_', ' ')}"
            plain.append((name, answers(*scores)))
            if task.modality in divisors:
                fitted.append((name, answers(*scores, divisors[task.modality])))
    headings = {"With the models' scales": plain, "With the temperatures of the space": fitted}
    return {heading: parts for heading, parts in headings.items() if parts}
