"""Zero-shot classification: the predicted class is the one whose prompts are most similar to the image.

* `unit`: rows normalised to unit length.
* `class_embeddings`: prompts -> one vector per class; `class_directions`: those of a task, for adapters.
* `probabilities`: softmax over scaled cosines.
* `task_logits`: a task's prompts and images -> scores, by the task's own rule.
* `known_rows`: the images of a task with truth and patients; `evaluate_task`: result rows of one task.

Rules (fields of a task): the normalised mean of a class's prompts (most systems), the plain mean (FLAIR), or the best
prompt's similarity, standardised over the images (GLoRIA). With several labels, one prompt per label and its cosine
(MERL), or a prompt for present and one for absent and the softmax over the pair (CT-CLIP).

Shapes: n images, p prompts, c classes or labels, d dimensions.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from itertools import compress

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit

from m3bind.errors import ConfigError
from m3bind.evaluate.classification import MULTI, softmax
from m3bind.evaluate.confidence import Floats, Resampling
from m3bind.evaluate.prompt_files import Labelled
from m3bind.evaluate.results import Context, Row
from m3bind.evaluate.scoring import score_rows
from m3bind.evaluate.tasks import Task

Encode = Callable[[Sequence[str]], ArrayLike]
Part = tuple[ArrayLike, Sequence[Labelled]]  # unit rows (n, d) and their records
_USUAL = {
    "binary": ("auc", "balanced_accuracy"),
    "multiclass": ("balanced_accuracy", "accuracy", "macro_f1"),
    "multilabel": ("auroc", *MULTI),
}


def unit(rows: ArrayLike) -> NDArray[np.float64]:
    """Rows (n, d) divided by their norm; zero rows stay zero."""
    rows = np.asarray(rows, dtype=np.float64)
    length = np.linalg.norm(rows, axis=-1, keepdims=True)
    return np.asarray(rows / np.where(length > 0, length, 1))


def class_embeddings(prompts: ArrayLike, owner: ArrayLike, renormalise: bool = True) -> NDArray[np.float64]:
    """Mean embedding of each class's prompts: (p, d), class number of each prompt (p,) -> (c, d).

    `renormalise` makes the means unit rows; otherwise a class with diverse prompts scores lower, as in some models' own
    code.

    Raises:
        ConfigError: numbers and prompts differ in count, or a class has no prompt.
    """
    vectors, numbers = np.asarray(prompts, dtype=np.float64), np.asarray(owner)
    if len(vectors) != len(numbers) or not len(numbers):
        raise ConfigError(f"{len(vectors)} prompt embeddings for {len(numbers)} prompts; give one class per prompt.")
    members = np.arange(numbers.max() + 1)[:, None] == numbers
    if not members.any(1).all():
        raise ConfigError("a class has no prompt; write at least one per class.")
    means = np.asarray((members / members.sum(1, keepdims=True)) @ vectors)
    return unit(means) if renormalise else means


def class_directions(task: Task, encode_text: Encode) -> NDArray[np.float64]:
    """One vector per class (c, d) whose product with an image is the class's score: for pairs, present minus absent."""
    sides = [task.prompts(), task.opposites()] if task.paired else [task.prompts()]
    means = [class_embeddings(encode_text(texts), owner, task.ensemble != "plain_mean") for texts, owner in sides]
    return means[0] - means[1] if task.paired else means[0]


def probabilities(images: ArrayLike, classes: ArrayLike, scale: float = 1.0) -> NDArray[np.float64]:
    """Softmax over `scale` x (images . classes): unit rows (n, d), (c, d) -> (n, c), rows sum to one."""
    return softmax(scale * (np.asarray(images, dtype=np.float64) @ np.asarray(classes, dtype=np.float64).T))


def task_logits(task: Task, images: ArrayLike, encode_text: Encode, scale: float = 1.0) -> Floats:
    """Scores of unit rows (n, d) by the task's rule: (n, c).

    `scale` times the similarity to the class; for pairs the log-odds of present against absent, whose logistic function
    is the softmax over the two; with `zscore` standardised over the n images, which makes `scale` meaningless.
    """
    images = np.asarray(images, dtype=np.float64)
    if task.ensemble == "max":
        texts, owner = task.prompts()
        similar = images @ np.asarray(encode_text(texts), dtype=np.float64).T
        if task.paired:
            similar -= images @ np.asarray(encode_text(task.opposites()[0]), dtype=np.float64).T
        scores = np.stack([similar[:, owner == c].max(1) for c in range(len(task.classes))], axis=1)
    else:
        scores = images @ class_directions(task, encode_text).T
    if not task.zscore:
        return np.asarray(scale * scores)
    spread = scores.std(0)
    return np.asarray((scores - scores.mean(0)) / np.where(spread > 0, spread, 1))


def known_rows(task: Task, part: Part) -> tuple[Floats, NDArray[np.int64], list[str]]:
    """Images (n, d) of `part` that are part of the task, their truth and their patients."""
    images, records = part
    y = task.labels(records)
    inside = np.asarray((y >= 0).any(1) if task.multilabel else y >= 0)
    patients = [record.patient for record in compress(records, inside)]
    return np.asarray(images, dtype=np.float64)[inside], y[inside], patients


def evaluate_task(
    task: Task,
    images: ArrayLike,
    records: Sequence[Labelled],
    encode_text: Encode,
    context: Context,
    *,
    valid: Part | None = None,
    scale: float = 1.0,
    resamples: int = 1000,
) -> list[Row]:
    """Rows of `task`: its primary metric, then the further ones it names, then the default ones of its kind.

    Args:
        task: classes, prompts and rule.
        images: (n, d) unit rows.
        records: of the images; those that are not part of the task are excluded. Their patients are resampled.
        encode_text: texts -> (p, d) unit rows.
        context: common fields of the rows.
        valid: images and records on which thresholds of several labels are chosen; without it only those chosen on the
            evaluated images are used.
        scale: the model's factor on cosines. The predicted class does not depend on it; a pair's probability does.
        resamples: of the bootstrap.
    """
    cached = cache(lambda texts: encode_text(list(texts)))
    known, y, patients = known_rows(task, (images, records))
    if not len(y):
        return []
    names = tuple(dict.fromkeys((task.metric, *task.metrics, *_USUAL[task.kind])))
    place = replace(context, dataset=task.dataset, modality=task.modality, task=task.name, prompts=task.prompts_hash)

    def scores(rows: ArrayLike) -> Floats:
        logits = task_logits(task, rows, lambda texts: cached(tuple(texts)), scale)
        return np.asarray(expit(logits)) if task.paired else logits

    chosen_on = None
    if valid is not None and task.multilabel:
        valid_images, valid_y, _ = known_rows(task, valid)
        chosen_on = (valid_y, scores(valid_images)) if len(valid_y) else None
    draw = Resampling(patients, resamples)
    span = (0.0, 1.0) if task.paired else None
    return score_rows("zero_shot", y, scores(known), place, draw, names=names, valid=chosen_on, span=span)
