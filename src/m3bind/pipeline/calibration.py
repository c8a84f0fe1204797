"""Calibration of a run's zero-shot predictions.

* `task_scores`: truth and logits by task and split. * `temperatures`: fitted on the valid split, for the space.
* `reliability`: predictions on the test split with and without a temperature, for the report.

Shapes: n samples, c classes or labels.
"""

from collections import defaultdict
from collections.abc import Iterator
from functools import partial

import numpy as np
from numpy.typing import NDArray

from m3bind import modalities
from m3bind.evaluate.calibration import Answers, answers, fit_temperature
from m3bind.evaluate.confidence import Floats
from m3bind.evaluate.tasks import Task, tasks_for
from m3bind.evaluate.zero_shot import known_rows, task_logits
from m3bind.pipeline.run import Run

Scores = dict[str, tuple[NDArray[np.int64], Floats]]  # split -> truth (n,) or (n, c), logits (n, c)


def task_scores(run: Run) -> Iterator[tuple[Task, Scores]]:
    """Zero-shot tasks with probabilities, and their scores on test and valid, where these have samples of the task.

    Texts are encoded by the student if the run has one.
    """
    records = {s: {m: run.dataset.records[m][s] for m in run.dataset.modalities} for s in ("train", "valid", "test")}
    everything, train = ([r for rows in records[s].values() for r in rows] for s in ("test", "train"))
    everything = everything or [r for rows in records["valid"].values() for r in rows]
    for task in tasks_for(everything, train, run.config.evaluate.tasks or None):
        m = task.modality
        if task.zscore or (task.multilabel and not task.paired):
            continue
        encode = partial(run.embed_text, encoder="student" if run.state.student is not None else m)
        scale = float(run.state.models[m].logit_scale.detach())
        scored = {}
        for split in ("test", "valid"):
            if len(records[split][m]):
                images, y, _ = known_rows(task, (run.embed_images(m, split), records[split][m]))
                if len(y):
                    scored[split] = y, task_logits(task, images, encode, scale)
        yield task, scored


def temperatures(run: Run) -> dict[str, float]:
    """The geometric mean of the temperatures of each modality's tasks, fitted on valid and weighted by samples.

    At least 1: a small valid split without errors would make every answer certain.
    """
    total: dict[str, float] = defaultdict(float)
    samples: dict[str, int] = defaultdict(int)
    for task, scored in task_scores(run):
        if "valid" in scored:
            count = len(scored["valid"][0])
            total[task.modality] += count * float(np.log(fit_temperature(*scored["valid"])))
            samples[task.modality] += count
    return {m: max(1.0, float(np.exp(total[m] / samples[m]))) for m in total}


def reliability(run: Run) -> dict[str, list[tuple[str, Answers]]]:
    """Heading -> predictions on the test split by task: with the models' scales, with temperatures fitted on valid."""
    plain: list[tuple[str, Answers]] = []
    fitted: list[tuple[str, Answers]] = []
    for task, scored in task_scores(run):
        if "test" in scored:
            name = f"{modalities.get(task.modality).title}: {task.name.replace('_', ' ')}"
            plain.append((name, answers(*scored["test"])))
            if "valid" in scored:
                fitted.append((name, answers(*scored["test"], fit_temperature(*scored["valid"]))))
    headings = {"With the models' scales": plain, "With a fitted temperature": fitted}
    return {heading: parts for heading, parts in headings.items() if parts}
