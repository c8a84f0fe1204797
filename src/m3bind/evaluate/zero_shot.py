"""Zero-shot classification: an image belongs to the class whose prompts it is most similar to.

Shapes: n images, p prompts, c classes, d dimensions.

* `class_embeddings`: prompts -> one vector per class.
* `probabilities`: softmax over scaled cosines.
* `zero_shot_rows`: result rows of one task from arrays; `evaluate_task` encodes the prompts itself.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from m3bind.errors import ConfigError
from m3bind.evaluate.metrics import Groups, Resampling, classification
from m3bind.evaluate.results import Context, Row
from m3bind.evaluate.tasks import Task


def unit(rows: ArrayLike) -> NDArray[np.float64]:
    """Rows (n, d) divided by their length; zero rows stay zero."""
    rows = np.asarray(rows, dtype=np.float64)
    length = np.linalg.norm(rows, axis=-1, keepdims=True)
    return np.asarray(rows / np.where(length > 0, length, 1))


def class_embeddings(prompts: ArrayLike, owner: ArrayLike, renormalise: bool = True) -> NDArray[np.float64]:
    """Mean embedding of each class's prompts: (p, d), class number of each prompt (p,) -> (c, d).

    `renormalise` makes the means unit rows; otherwise a class with scattered prompts scores lower, as some models' own
    code does.

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


def probabilities(images: ArrayLike, classes: ArrayLike, scale: float = 1.0) -> NDArray[np.float64]:
    """Softmax over `scale` x (images . classes): unit rows (n, d), (c, d) -> (n, c), rows sum to one."""
    logits = scale * (np.asarray(images, dtype=np.float64) @ np.asarray(classes, dtype=np.float64).T)
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(powers / powers.sum(1, keepdims=True))


def zero_shot_rows(
    task: Task,
    images: ArrayLike,
    classes: ArrayLike,
    labels: ArrayLike,
    context: Context,
    patients: Groups = None,
    resamples: int = 1000,
) -> list[Row]:
    """Rows of `task`: first its own metric, then the others of its kind.

    `images` (n, d) unit rows, `classes` (c, d), `labels` (n,) from `task.labels` (-1: left out), `patients` (n,) the
    unit of resampling. The scores are cosines: the softmax of any scale predicts alike and, for two classes, orders
    alike.
    """
    numbers = np.asarray(labels)
    inside = numbers >= 0
    y = numbers[inside]
    scores = np.asarray(images, dtype=np.float64)[inside] @ np.asarray(classes, dtype=np.float64).T
    context = replace(context, dataset=task.dataset, modality=task.modality, task=task.name, prompts=task.prompts_hash)
    found = classification(y, scores, Resampling(patients, resamples, context.seed).subset(inside))
    order = sorted(found, key=lambda name: name != task.metric)
    return [context.row("zero_shot", name, found[name]) for name in order]


def evaluate_task(
    task: Task,
    images: ArrayLike,
    labels: ArrayLike,
    encode_text: Callable[[Sequence[str]], NDArray[np.float32]],
    context: Context,
    patients: Groups = None,
    renormalise: bool = True,
    resamples: int = 1000,
) -> list[Row]:
    """`zero_shot_rows` with the task's prompts encoded by `encode_text` (texts -> (p, d) unit rows)."""
    texts, owner = task.prompts()
    classes = class_embeddings(encode_text(texts), owner, renormalise)
    return zero_shot_rows(task, images, classes, labels, context, patients, resamples)
