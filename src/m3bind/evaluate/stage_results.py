"""All metrics of one state of the space: before binding, closed form, after stage 1, after stage 2.

* `View`: the state for evaluation: embedded images of one split, and a function that embeds texts.
* `measure`: zero-shot (every text path), image<->text, image<->image by patient and by concept, text agreement, probe.

Shapes: n images of a modality, d dimension of the space.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from m3bind.config import EvaluateConfig
from m3bind.data.records import Record
from m3bind.evaluate import adapters
from m3bind.evaluate.adapters import FewShotProblem, Samples
from m3bind.evaluate.agreement import agreement_rows
from m3bind.evaluate.confidence import Resampling
from m3bind.evaluate.results import Context, Row
from m3bind.evaluate.retrieval import (
    concept_retrieval_rows,
    distinct_texts,
    patient_retrieval_rows,
    text_retrieval_rows,
)
from m3bind.evaluate.scoring import score_rows
from m3bind.evaluate.tasks import Task, concepts_for, tasks_for
from m3bind.evaluate.zero_shot import evaluate_task

Matrix = NDArray[np.float32]


@dataclass
class View:
    """One state of the space, on the images of one split (and, for the probe, of the training split)."""

    stage: str  # one of results.STAGES
    images: Mapping[str, Matrix]  # modality -> (n, d) unit rows, in the order of `records`
    records: Mapping[str, Sequence[Record]]
    train_images: Mapping[str, Matrix]
    train_records: Mapping[str, Sequence[Record]]
    # (texts, modality of the teacher or "student") -> (n, d) unit rows
    encode_text: Callable[[Sequence[str], str], Matrix]
    student: bool = False
    stored_means: Mapping[str, Matrix] | None = None  # (d,) per modality; None: those of `train_images`
    scales: Mapping[str, float] | None = None  # the teachers' factors on cosines; None: 1 / .07
    # post step -> modality -> (n, d): the images after it, for retrieval across modalities
    posted: Mapping[str, Mapping[str, Matrix]] = field(default_factory=dict)

    @property
    def means(self) -> Mapping[str, Matrix]:
        """Mean training embedding of each modality, (d,), which gap correction subtracts."""
        return self.stored_means or {m: rows.mean(0) for m, rows in self.train_images.items()}

    @property
    def everything(self) -> list[Record]:
        """The records of all modalities."""
        return [r for records in self.records.values() for r in records]

    @property
    def training(self) -> list[Record] | None:
        """The training records of all modalities; None if empty."""
        return [r for records in self.train_records.values() for r in records] or None

    @property
    def patients(self) -> dict[str, list[str]]:
        """Patient of each row."""
        return {m: [r.patient for r in records] for m, records in self.records.items()}


def measure(view: View, held_out: Sequence[str], settings: EvaluateConfig, split: str, seed: int) -> list[Row]:
    """All metrics of one state. `held_out`: texts that no stage was trained on, for text agreement."""
    context = Context(split=split, stage=view.stage, seed=seed)
    rows = _zero_shot(view, settings, context)
    rows += _texts(view, settings, context)
    rows += _across(view, settings, context)
    if len(view.images) > 1 and len(held_out) > 1:
        towers = {m: view.encode_text(held_out, m) for m in view.images}
        student = view.encode_text(held_out, "student") if view.student else None
        rows += agreement_rows(towers, context, student, settings.bootstrap)
    if settings.probe and view.stage == "unbound":
        rows += _probe(view, settings, context)
    return rows


def _zero_shot(view: View, settings: EvaluateConfig, context: Context) -> list[Row]:
    """Every task with the text of the modality's own teacher, of every other tower, and of the student."""
    rows: list[Row] = []
    for task in tasks_for(view.everything, view.training, settings.tasks or None):
        m = task.modality
        scale = (view.scales or {}).get(m, 1 / 0.07)
        paths = {"teacher": m}
        if view.stage != "unbound":
            paths |= {f"teacher:{other}": other for other in view.images if other != m}
        if view.student:
            paths["student"] = "student"
        for path, source in paths.items():

            def encode(texts: Sequence[str], source: str = source) -> Matrix:
                return view.encode_text(texts, source)

            place = replace(context, text_encoder=path)
            images, records = view.images[m], view.records[m]
            rows += evaluate_task(task, images, records, encode, place, scale=scale, resamples=settings.bootstrap)
    return rows


def _texts(view: View, settings: EvaluateConfig, context: Context) -> list[Row]:
    """Image -> text and text -> image over the distinct canonical captions of each modality."""
    rows: list[Row] = []
    for m, records in view.records.items():
        if not records:
            continue
        texts, owner = distinct_texts([r.captions[0] for r in records])
        sets = "+".join(sorted({r.set for r in records}))
        for path, source in {"teacher": m, **({"student": "student"} if view.student else {})}.items():
            place = replace(context, dataset=sets, modality=m, text_encoder=path)
            embedded, patients = view.encode_text(texts, source), view.patients[m]
            rows += text_retrieval_rows(view.images[m], embedded, owner, place, patients, resamples=settings.bootstrap)
    return rows


def _across(view: View, settings: EvaluateConfig, context: Context) -> list[Row]:
    """Image -> image across modalities: by patient and by concept, if the modalities share any."""
    rows: list[Row] = []
    states: list[tuple[Mapping[str, Matrix], Mapping[str, Matrix] | None, str]]
    states = [(view.images, None, ""), *((images, None, name) for name, images in view.posted.items())]
    if settings.gap_correction:
        states.insert(1, (view.images, view.means, ""))
    sets = "+".join(sorted({r.set for r in view.everything}))
    for embedded, means, variant in states:
        place = replace(context, dataset=sets, variant=variant)
        rows += patient_retrieval_rows(embedded, view.patients, place, means, resamples=settings.bootstrap)
        for concept in concepts_for(view.everything, view.training, settings.tasks or None):
            classes = {m: concept.labels(view.records[m], m) for m in concept.modalities}
            place = replace(place, dataset=concept.dataset, task=concept.name, prompts=concept.prompts_hash)
            images = {m: embedded[m] for m in concept.modalities}
            rows += concept_retrieval_rows(images, classes, place, view.patients, means, resamples=settings.bootstrap)
    return rows


def _probe(view: View, settings: EvaluateConfig, context: Context) -> list[Row]:
    """Linear probe on the image embeddings: the quality of the image towers, independent of the text."""
    rows: list[Row] = []
    for task in tasks_for(view.everything, view.training, settings.tasks or None):
        m = task.modality
        if not task.answerable(view.train_records[m]):
            continue
        train = _samples(task, view.train_images[m], view.train_records[m])
        test = _samples(task, view.images[m], view.records[m])
        if not task.multilabel:
            test = test.take(np.isin(test.labels, train.labels))
            if len(set(test.labels)) < 2:
                continue
        place = replace(context, dataset=task.dataset, modality=m, task=task.name)
        problem = FewShotProblem(np.zeros((len(task.classes), test.embeddings.shape[1])), modality=m)
        scores = adapters.get("linear_probe_standard").fit(train, None, problem)(test)
        draw = Resampling(test.patients, settings.bootstrap)
        rows += score_rows("linear_probe", test.labels, scores, place, draw)
    return rows


def _samples(task: Task, images: Matrix, records: Sequence[Record]) -> Samples:
    """The images with a known label of the task; their embeddings are the features."""
    patients, ids = [r.patient for r in records], [r.id for r in records]
    return Samples(images, images, task.labels(records), patients, ids).known()
