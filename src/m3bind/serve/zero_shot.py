"""Which of some typed labels fits an item or an upload, how sure that is, and when no answer is given.

* `ZeroShooter`: answers.

There is no answer where the best label is less likely than the threshold, or where the thing is unlike what the index
holds of its modality (`space.zero_shot`).
"""

import numpy as np

from m3bind.serve.archive import ArchiveState
from m3bind.serve.query import Questions, need_texts
from m3bind.serve.schemas import ZeroShot


class ZeroShooter:
    """For threads."""

    def __init__(self, questions: Questions) -> None:
        self._questions = questions

    def answer(self, state: ArchiveState, asked: ZeroShot) -> dict[str, object]:
        """The values of `ZeroShotAnswer`."""
        need_texts(state)
        row, modality = self._questions.source(state, asked.source)
        predictions = state.classifier.classify(row[None], modality, asked.labels, asked.template)
        chances = predictions.probabilities[0]
        best = float(chances.max())
        if predictions.unlike[0]:
            why = "The file is unlike what this archive holds of its kind; a label would mean nothing."
        elif best < asked.threshold:
            why = f"The likeliest label reaches {100 * best:.0f} %, less than {100 * asked.threshold:.0f} %."
        else:
            why = ""
        return {
            "modality": modality,
            "probabilities": np.round(chances, 6).tolist(),
            "calibrated": predictions.calibrated,
            "abstain": bool(why),
            "why": why or "The likeliest label reaches the threshold, and the file is like others of its kind.",
        }
