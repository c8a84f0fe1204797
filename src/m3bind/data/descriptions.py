"""Captions and concepts of all rows of a manifest: `texts.describe`, once for each distinct combination of labels.

* `describe_rows`: captions as indices of texts, concepts as indices of names. * `Described`: the result.

Shapes: N rows, G distinct combinations of set, modality and labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from m3bind.data.batching import IntArray, distinct_ids
from m3bind.data.ragged import Ragged
from m3bind.data.text_table import TextTable
from m3bind.data.texts import MAX_CAPTIONS, described, find_template, label_texts, text_key, unique_texts

Labelled = tuple[str, str, str, tuple[str, ...]]  # set, modality, label, labels
_CAPTION = -1  # in a list of texts: the row's own caption


@dataclass(frozen=True)
class Described:
    """Captions of N rows as indices in a TextTable, and concepts as indices in `names`."""

    captions: Ragged
    concepts: Ragged
    names: dict[str, int]


def describe_rows(
    groups: Sequence[Labelled],
    group: IntArray,
    caption: IntArray,
    texts: TextTable,
    names: dict[str, int],
    folder: Path | None = None,
) -> Described:
    """Captions and concepts of N rows.

    Args:
        groups: the G combinations.
        group: (N,) that of each row.
        caption: (N,) index in `texts` of a row's cleaned caption, -1 if it has none.
        texts: new texts are added to it.
        names: concepts known so far and their numbers; new ones are added.
        folder: of further templates.
    """
    pool = _Pool(texts, names)
    keys: set[str] = set()  # of all sentences about labels
    usual = np.zeros(len(groups), bool)  # whether captions are only placed before or after these sentences
    for number, (set_name, modality, label, labels) in enumerate(groups):
        template = find_template(set_name, modality, folder)
        usual[number] = not template.caption_sentences and not template.caption_concepts
        without, concepts = described(template, modality, label, labels, "")
        sentences = unique_texts(label_texts(template, modality, label, labels))
        keys |= set(map(text_key, sentences))
        own = texts.ids(sentences).tolist()
        pool.add(texts.ids(without).tolist(), concepts)
        if template.canonical == "caption_only":
            pool.add([_CAPTION], concepts)
        else:
            placed = [*own, _CAPTION] if template.canonical == "labels" else [_CAPTION, *own]
            pool.add(placed[:MAX_CAPTIONS], concepts)
    entry = 2 * group + (caption >= 0)
    unusual = np.flatnonzero((caption >= 0) & ~(usual[group] & ~_among(keys, caption, texts)))
    pairs, inverse = np.unique(np.stack([group[unusual], caption[unusual]]), axis=1, return_inverse=True)
    entry[unusual] = len(pool) + inverse.reshape(-1)
    for number, text in pairs.T.tolist():
        set_name, modality, label, labels = groups[number]
        template = find_template(set_name, modality, folder)
        captions, concepts = described(template, modality, label, labels, texts[text])
        pool.add(texts.ids(captions).tolist(), concepts)
    return pool.rows(entry, caption)


class _Pool:
    """Distinct lists of captions with lists of concepts."""

    def __init__(self, texts: TextTable, names: dict[str, int]) -> None:
        self.texts, self.names = texts, names
        self._captions: list[list[int]] = []
        self._concepts: list[list[int]] = []

    def __len__(self) -> int:
        return len(self._captions)

    def add(self, captions: list[int], concepts: Sequence[str]) -> None:
        self._captions.append(captions)
        self._concepts.append([self.names.setdefault(name, len(self.names)) for name in concepts])

    def rows(self, entry: IntArray, caption: IntArray) -> Described:
        """The lists of rows, with their own captions."""
        captions, concepts = Ragged.of(self._captions).take(entry), Ragged.of(self._concepts).take(entry)
        own = np.repeat(caption, captions.lengths)
        values = np.where(captions.values == _CAPTION, own, captions.values)
        return Described(Ragged(captions.offsets, values), concepts, self.names)


def _among(keys: set[str], caption: IntArray, texts: TextTable) -> "np.ndarray[tuple[int], np.dtype[np.bool_]]":
    """(N,) whether a row's caption is, but for case and spaces, one of `keys`. No key is shorter than its text."""
    equal = np.zeros(len(texts) + 1, bool)  # the last one for rows without caption
    longest = max(map(len, keys), default=0)
    used = distinct_ids(caption[caption >= 0])
    short = used[texts.lengths(used) <= longest]
    equal[short] = [text_key(text) in keys for text in texts.take(short)]
    return equal[caption]
