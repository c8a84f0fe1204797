"""Phrases that a question, an item or an upload is near to: a hint why something was found, never a report.

* `phrases_for`: the vocabulary: what the prompt files say about modalities of the space, labels of the index, and what
  the operator gave. * `Vocabulary`: it, encoded.

Some phrases are near to everything. So a phrase t is judged by how much nearer it is to q than to other things R:

    z = (<t, q> - mean_{r in R} <t, r>) / sd_{r in R} <t, r>        percentile = 100 * share of R with <t, r> < <t, q>

R are the calibration's items of q's modality (of all, where there are few) where q is an item or upload, else the
phrases. The best z come
first.

Shapes: p phrases, r other things, d dimension.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from m3bind.evaluate.prompt_files import load_prompts, prompt_sets
from m3bind.space.calibrate import FEW, FLAT
from m3bind.space.compute import Array
from m3bind.space.serve.settings import TEXT_CHARS

MOST = 4000  # phrases


class Vocabulary:
    """Phrases and their vectors; empty until it was encoded."""

    def __init__(self, texts: Sequence[str] = (), rows: Array | None = None) -> None:
        self.texts = list(texts)
        self.rows = np.empty((0, 0), np.float32) if rows is None else rows

    def __len__(self) -> int:
        return len(self.texts)

    def near(self, row: Array, others: Array | None, k: int) -> list[dict[str, object]]:
        """The k best phrases for a unit vector (d,); `others` (r, d) are what they are judged among."""
        if not self.texts:
            return []
        reference = self.rows if others is None or len(others) < FEW else others
        score = self.rows @ row
        usual = self.rows.astype(np.float64) @ reference.T.astype(np.float64)
        z = (score - usual.mean(axis=1)) / np.maximum(usual.std(axis=1), FLAT)
        below = 100 * (usual < score[:, None] - 1e-6).mean(axis=1)
        best = np.argsort(-z, kind="stable")[:k]
        return [
            {"text": self.texts[at], "score": round(float(score[at]), 5), "percentile": round(float(below[at]), 2)}
            for at in best
        ]


def phrases_for(modalities: Sequence[str], labels: Mapping[str, Sequence[str]], more: Iterable[str] = ()) -> list[str]:
    """Distinct phrases: the operator's `more` first, labels of the index, then prompt files."""
    found: dict[str, str] = {}
    for text in (*more, *_said(labels), *_prompts(modalities)):
        plain = " ".join(text.split())[:TEXT_CHARS]
        if plain:
            found.setdefault(plain.lower(), plain)
    return list(found.values())[:MOST]


def _said(labels: Mapping[str, Sequence[str]]) -> list[str]:
    return [label.replace("_", " ") for values in labels.values() for label in values]


def _prompts(modalities: Sequence[str]) -> list[str]:
    """Names and sentences of classes that are written out."""
    found = []
    for name in prompt_sets():
        for task in load_prompts(name).content.tasks.values():
            if task.modality not in modalities or isinstance(task.classes, str):
                continue
            for key, entry in task.classes.items():
                own = [] if entry is None else [*entry.names, *entry.prompts]
                found += own or ([key] if entry is None or not entry.parts else [])
    return found
