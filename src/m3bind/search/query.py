"""Queries: texts, files, items of the index, or a weighted mix, also with negative weights.

* `Query`: one query. * `QueryPart`: one text, file or item of it. * `parse_query`: a query from a command line.
* `TEXT`: the kind of a text; that of a file or an item is its modality.

Parts are added as vectors: with unit embeddings e_i and weights w_i the query is  sum_i w_i e_i,  normalised.
"""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from m3bind.errors import ConfigError
from m3bind.index.base import Array
from m3bind.modalities.formats.detect import recognise

TEXT = ""
AGAINST = 0.5  # default weight of texts to avoid
CANCELLED = 0.1  # minimum length of the sum, as a share of sum_i |w_i|; below it the parts cancel out


@dataclass(frozen=True)
class QueryPart:
    """A text, a path, or an id, with its weight (< 0: to avoid)."""

    kind: Literal["text", "file", "item"]
    value: str
    weight: float = 1.0
    modality: str = ""  # of a file
    tower: str | None = None  # of a text, see `Space.encode_text`

    def __str__(self) -> str:
        return {"text": f'"{self.value}"', "file": f"a file ({self.modality})", "item": f"item {self.value}"}[self.kind]


@dataclass(frozen=True)
class Query:
    """A query of one or more parts, each with a weight.

    `a + b` searches for both; `a - b` searches for a and avoids b; `2 * a` doubles the weight of a.

    >>> Query.text("pneumonia") + Query.file("scan.png", "xray", weight=0.5)
    "pneumonia" + 0.5 a file (xray)
    >>> Query.text("pneumonia") - 0.5 * Query.text("pleural effusion")
    "pneumonia" - 0.5 "pleural effusion"
    """

    parts: tuple[QueryPart, ...]

    def __post_init__(self) -> None:
        weights = [part.weight for part in self.parts]
        if not weights or not np.isfinite(weights).all() or 0 in weights:
            raise ConfigError("a query needs parts with weights other than 0")

    @classmethod
    def text(cls, text: str, weight: float = 1.0, tower: str | None = None) -> Self:
        """A text; `tower`: `encoder=` of `Space.encode_text`."""
        return cls((QueryPart("text", text, weight, tower=tower),))

    @classmethod
    def file(cls, path: Path | str, modality: str, weight: float = 1.0) -> Self:
        """A file of any modality of the space."""
        return cls((QueryPart("file", str(path), weight, modality=modality),))

    @classmethod
    def item(cls, id: str, weight: float = 1.0) -> Self:
        """An item of the index; it is not among the hits."""
        return cls((QueryPart("item", id, weight),))

    def __add__(self, other: Self) -> Self:
        return type(self)(self.parts + other.parts)

    def __sub__(self, other: Self) -> Self:
        return self + -1 * other

    def __mul__(self, factor: float) -> Self:
        return type(self)(tuple(replace(part, weight=factor * part.weight) for part in self.parts))

    __rmul__ = __mul__

    def __repr__(self) -> str:
        text = ""
        for part in self.parts:
            sign = " - " if part.weight < 0 else " + "
            number = "" if abs(part.weight) == 1 else f"{abs(part.weight):g} "
            text += f"{sign}{number}{part}"
        return text.removeprefix(" + ").lstrip()

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {"parts": [asdict(part) for part in self.parts]}

    def by_kind(self, rows: Array, kinds: Sequence[str]) -> dict[str, Array]:
        """The unit vector (d,) of what is searched for of each kind, without parts to avoid.

        Args:
            rows: unit vectors (parts, d).
            kinds: of each part, a modality or `TEXT`.
        """
        sums: dict[str, Array] = {}
        for part, kind, row in zip(self.parts, kinds, rows, strict=True):
            if part.weight > 0:
                sums[kind] = sums.get(kind, 0) + np.float32(part.weight) * row
        return {kind: total / np.linalg.norm(total) for kind, total in sums.items() if total.any()}

    def combine(self, rows: Array) -> Array:
        """The unit vector (d,) of the query, from the unit vectors (parts, d) of its parts.

        Raises:
            ConfigError: negative weights outweigh positive ones, or the parts cancel each other out.
        """
        weights = np.array([part.weight for part in self.parts])
        if weights.sum() < 0:
            raise ConfigError(f"{self}: the negative weights outweigh the others; nothing is left to look for")
        total = weights @ rows.astype(np.float64)
        length = float(np.linalg.norm(total))
        if length < CANCELLED * np.abs(weights).sum():
            raise ConfigError(f"{self}: the parts cancel each other out; give the parts to avoid a smaller weight")
        return np.asarray(total / length, np.float32)


def parse_query(
    texts: Sequence[str], files: Sequence[str], items: Sequence[str], without: Sequence[str], modalities: Sequence[str]
) -> Query:
    """A query from command-line arguments; "*NUMBER" at the end of an argument is its weight.

    Args:
        texts: texts.
        files: PATH:MODALITY, or PATH alone, whose modality is then recognised.
        items: ids of the index.
        without: texts to avoid; default weight 0.5.
        modalities: of the space.

    Raises:
        ConfigError: no arguments.
        ReadError: a file whose modality cannot be recognised.

    >>> parse_query(["pneumonia"], ["a.png:xray*2"], [], ["effusion"], ["xray"])
    "pneumonia" + 2 a file (xray) - 0.5 "effusion"
    """
    queries = [Query.text(*_weighted(text)) for text in texts]
    for text in files:
        value, weight = _weighted(text)
        path, colon, name = value.rpartition(":")
        if not colon or name not in modalities:
            path, name = value, recognise(Path(value), modalities).modality
        queries.append(Query.file(path, name, weight))
    queries += [Query.item(*_weighted(text)) for text in items]
    for text in without:
        value, weight = _weighted(text, AGAINST)
        queries.append(Query.text(value, -weight))
    if not queries:
        raise ConfigError("nothing to search for; give --text, --file or --item")
    return Query(tuple(part for query in queries for part in query.parts))


def _weighted(text: str, weight: float = 1.0) -> tuple[str, float]:
    """The text before "*NUMBER", and the number."""
    match = re.fullmatch(r"(.*\S)\s*\*\s*(-?\d*\.?\d+)\s*", text, re.DOTALL)
    return (match[1], float(match[2])) if match else (text, weight)
