"""Probabilities of labels for an item or an upload, or an abstention.

* `ZeroShotAnswers`: answers, or abstains if the best label is less likely than the threshold, or if the sample is
  unlike the training data of the space.
"""

import numpy as np

from m3bind.serve.index_reload import ArchiveState
from m3bind.serve.query import Questions, need_texts
from m3bind.serve.schemas import ZeroShot
from m3bind.space.prompts import Labels


def _labels(asked: ZeroShot) -> Labels:
    """The labels, with their prompts if the request has any."""
    if asked.prompts is not None:
        return {label: asked.prompts[label] for label in asked.labels}
    if asked.template is not None:
        return {label: [asked.template.replace("{}", label)] for label in asked.labels}
    return asked.labels


class ZeroShotAnswers:
    """For threads."""

    def __init__(self, questions: Questions) -> None:
        self._questions = questions

    def answer(self, state: ArchiveState, asked: ZeroShot) -> dict[str, object]:
        """The values of `ZeroShotAnswer`."""
        need_texts(state)
        row, modality, unlike = self._questions.source(state, asked.source)
        predictions = state.classifier.classify(row[None], modality, _labels(asked))
        chances = predictions.probabilities[0]
        best = float(chances.max())
        if unlike:
            why = f"The file is unlike the data that the space was trained on: {unlike}. A label would mean nothing."
        elif best < asked.threshold:
            why = f"The likeliest label reaches {100 * best:.0f} %, less than {100 * asked.threshold:.0f} %."
        else:
            why = ""
        return {
            "modality": modality,
            "probabilities": np.round(chances, 6).tolist(),
            "calibrated": predictions.calibrated,
            "abstain": bool(why),
            "why": why or "The likeliest label reaches the threshold, and nothing about the file is unusual.",
        }
