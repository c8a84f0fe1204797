"""Which of some typed labels fits an item or an upload, how sure that is, and when no answer is given.

* `ZeroShooter`: judges.

Probabilities are the softmax of logit scale x cosine, as in `Space.classify`. Where the index has labelled items of all
the labels asked for, a temperature fitted on them (`evaluate.calibration`) makes them mean what they say. There is no
answer where the best label is less likely than the threshold, or where the thing is unlike what the index holds of its
modality: its mean cosine to the `NEIGHBOURS` nearest of the calibration's items is below that of 99 % of these items.

Shapes: c labels, r items of the reference, d dimension.
"""

import numpy as np

from m3bind.space.bundle import Space
from m3bind.space.calibrate import FEW
from m3bind.space.compute import Array, similarity
from m3bind.space.index.base import Where
from m3bind.space.serve.archive import State
from m3bind.space.serve.messages import ZeroShot
from m3bind.space.serve.questions import Questions, need_texts

NEIGHBOURS = 5
UNUSUAL = 0.01  # share of items that are less like the others
LABELLED = 500  # items a temperature is fitted on, at most
PER_LABEL = 5  # of each label, at least
SAME = 1 - 1e-5  # cosine from which an item is the thing itself


class ZeroShooter:
    """For threads."""

    def __init__(self, space: Space, questions: Questions) -> None:
        self._space, self._questions = space, questions

    def judge(self, state: State, asked: ZeroShot) -> dict[str, object]:
        """The values of `ZeroShotAnswer`."""
        need_texts(state)
        row, modality = self._questions.source(state, asked.source)
        if asked.template is None:
            classes = self._space.class_embeddings(asked.labels, modality)
        else:  # never str.format: a template of a stranger could ask for anything
            said = {label: [asked.template.replace("{}", label)] for label in asked.labels}
            classes = self._space.class_embeddings(asked.labels, modality, said)
        scale = self._space.logit_scale(modality)
        logits = scale * similarity(row[None], classes).astype(np.float64)[0]
        temperature = self._temperature(state, modality, asked.labels, classes, scale)
        weights = np.exp((logits - logits.max()) / (temperature or 1.0))
        chances = weights / weights.sum()
        why = self._doubt(state, modality, row)
        best = int(chances.argmax())
        if not why and chances[best] < asked.threshold:
            why = f"The likeliest label reaches {100 * chances[best]:.0f} %, less than {100 * asked.threshold:.0f} %."
        return {
            "modality": modality,
            "probabilities": np.round(chances, 6).tolist(),
            "calibrated": temperature is not None,
            "abstain": bool(why),
            "why": why or "The likeliest label reaches the threshold, and the file is like others of its kind.",
        }

    def _temperature(
        self, state: State, modality: str, labels: list[str], classes: Array, scale: float
    ) -> float | None:
        """Fitted on labelled items of the index; None where there are too few of any label."""
        if "label" not in state.index.columns:
            return None
        plain = {_plain(value): value for value in state.labels.get(modality, [])}
        known = [plain.get(_plain(label), "") for label in labels]
        if not all(known):
            return None
        ids, rows = state.index.sample(LABELLED, Where(modality=modality, label=tuple(known)))
        found = state.index.items(ids)["label"].tolist()
        number = {value: at for at, value in enumerate(known)}
        own = [[number[part] for part in value.split("|") if part in number] for value in found]
        one = [at for at, fits in enumerate(own) if len(fits) == 1]
        truth = np.array([own[at][0] for at in one], np.int64)
        if len(one) < FEW or np.bincount(truth, minlength=len(labels)).min() < PER_LABEL:
            return None
        from m3bind.evaluate.calibration import fit_temperature

        return fit_temperature(truth, scale * similarity(rows[one], classes))

    def _doubt(self, state: State, modality: str, row: Array) -> str:
        """Why a thing is not like what the index holds of its modality; "" where it is."""
        rows = state.searcher.calibration.rows.get(modality)
        if rows is None or len(rows) < FEW:
            return ""
        among = similarity(rows, rows)
        np.fill_diagonal(among, -1)
        usual = np.sort(among, axis=1)[:, -NEIGHBOURS:].mean(axis=1)
        near = similarity(row[None], rows)[0]
        near = np.sort(near[near < SAME])[-NEIGHBOURS:]
        if not len(near) or near.mean() >= np.quantile(usual, UNUSUAL):
            return ""
        return "The file is unlike what this archive holds of its kind; a label would mean nothing."


def _plain(text: str) -> str:
    """Labels as people type them."""
    return " ".join(text.lower().replace("_", " ").split())
