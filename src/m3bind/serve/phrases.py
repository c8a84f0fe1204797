"""Phrases near to a query, an item or an upload: a hint why an item was found, never a report.

* `phrases_for`: the vocabulary: the prompt files' phrases for modalities of the space, labels of the index, and the
  operator's own. * `Vocabulary`: the same, encoded.

Some phrases are near to everything. So a phrase t is scored by how much nearer it is to q than to a reference R:

    z = (<t, q> - mean_{r in R} <t, r>) / sd_{r in R} <t, r>        percentile = 100 * share of R with <t, r> < <t, q>

R are the calibration's items of q's modality (of all modalities if there are few) if q is an item or upload, else the
phrases. The highest z come first; for an item or upload only phrases for its modality.

Shapes: p phrases, r reference rows, d dimension.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from m3bind.evaluate.prompt_files import load_prompts, prompt_sets
from m3bind.index.calibration import FEW, FLAT
from m3bind.models.embedding import Array
from m3bind.serve.settings import TEXT_CHARS

MAX_PHRASES = 4000
Phrases = dict[str, set[str]]  # text -> its modalities; empty: any


class Vocabulary:
    """Phrases and their vectors (p, d); empty until it was encoded."""

    def __init__(self, phrases: Phrases | None = None, rows: Array | None = None) -> None:
        self.texts, self._of = list(phrases or {}), list((phrases or {}).values())
        self.rows = np.empty((0, 0), np.float32) if rows is None else rows

    def __len__(self) -> int:
        return len(self.texts)

    def near(self, row: Array, k: int, others: Array | None = None, modality: str = "") -> list[dict[str, object]]:
        """The k best phrases for a unit vector (d,).

        Args:
            row: the vector.
            k: maximum of phrases.
            others: (r, d) reference; default: the phrases.
            modality: of the vector; phrases for others are left out.
        """
        fits = [at for at, names in enumerate(self._of) if not modality or not names or modality in names]
        if not fits:
            return []
        rows = self.rows[fits].astype(np.float64)  # in float32 the last digit shown depends on a row's place
        reference = self.rows if others is None or len(others) < FEW else others
        score = rows @ row.astype(np.float64)
        usual = rows @ reference.T.astype(np.float64)
        z = (score - usual.mean(axis=1)) / np.maximum(usual.std(axis=1), FLAT)
        below = 100 * (usual < score[:, None] - 1e-6).mean(axis=1)
        return [
            {
                "text": self.texts[fits[at]],
                "score": round(float(score[at]), 5),
                "percentile": round(float(below[at]), 2),
            }
            for at in np.argsort(-z, kind="stable")[:k]
        ]


def phrases_for(modalities: Sequence[str], labels: Mapping[str, Sequence[str]], more: Iterable[str] = ()) -> Phrases:
    """Distinct phrases: the operator's `more` first, labels of the index, then prompt files."""
    found: Phrases = {}
    spelled: dict[str, str] = {}
    named = [(label.replace("_", " "), name) for name, values in labels.items() for label in values]
    for text, modality in (*((text, "") for text in more), *named, *_prompts(modalities)):
        plain = " ".join(text.split())[:TEXT_CHARS]
        if not plain:
            continue
        plain = spelled.setdefault(plain.lower(), plain)
        if plain not in found:
            found[plain] = {modality} - {""}
        elif found[plain] and modality:
            found[plain].add(modality)
    return dict(list(found.items())[:MAX_PHRASES])


def _prompts(modalities: Sequence[str]) -> list[tuple[str, str]]:
    """Names and sentences of classes with explicit texts, with their modality."""
    found = []
    for name in prompt_sets():
        for task in load_prompts(name).content.tasks.values():
            if task.modality not in modalities or isinstance(task.classes, str):
                continue
            for key, entry in task.classes.items():
                own = [] if entry is None else [*entry.names, *entry.prompts]
                texts = own or ([key] if entry is None or not entry.parts else [])
                found += [(text, task.modality) for text in texts]
    return found
