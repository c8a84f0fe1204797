"""Exact search over an encoded archive: from words or from a file of any modality to the nearest items.

* `search`: one query. * `nearest`: many query vectors at once, blocked over the memory-mapped embeddings.

Shapes: q queries, n items, d dimension of the space, k hits.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m3bind.errors import ConfigError, SpaceError, UnknownNameError
from m3bind.space.bundle import Space
from m3bind.space.compute import Array, correct_gap, similarity
from m3bind.space.encode import Encoded, open_encoded

BLOCK = 16384  # items compared at once


@dataclass(frozen=True)
class Hit:
    """One found item. `score` is the cosine, `row` the row of embeddings.npy."""

    score: float
    modality: str
    path: str
    row: int

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def search(
    space: Space,
    encoded: Encoded | Path | str,
    query: str | Path,
    k: int = 10,
    *,
    modality: str | None = None,
    within: Sequence[str] | str | None = None,
    gap_correction: bool = False,
    text: str | None = None,
) -> list[Hit]:
    """The k items nearest to a text or to a file, best first.

    Args:
        space: the space the archive was encoded with.
        encoded: the archive, opened or as a folder.
        query: a text; or the path of a file, if `modality` says which kind.
        k: number of hits; fewer where there are fewer items.
        modality: of the query file.
        within: modality or modalities to search; default all.
        gap_correction: for a query file: compare without the modalities' mean embeddings, which otherwise dominate
            scores between images of different modalities. An archive encoded with gap_correct needs it.
        text: text tower of a text query (see `Space.encode_text`).

    Raises:
        ConfigError: k < 1, a file without its modality, or gap correction asked for a text.
        SpaceError: the archive belongs to another space, or was gap-corrected and the query is not.
        UnknownNameError: no such modality in the space or the archive.
        ReadError: the query file cannot be read.
    """
    archive = encoded if isinstance(encoded, Encoded) else open_encoded(encoded)
    if k < 1:
        raise ConfigError(f"k is {k}; ask for at least one hit")
    if archive.fingerprint != space.fingerprint:
        raise SpaceError(f"{archive.folder} was encoded with another space; encode it again with this one")
    if modality is None:
        if isinstance(query, Path):
            raise ConfigError(f"which modality is {query}? Give modality=")
        if gap_correction:
            raise ConfigError("gap correction is for files only; switch it off for a text")
        rows = space.encode_text([query], text)
    else:
        rows = space.encode_image([query], modality)
        if gap_correction:
            rows = correct_gap(rows, space.image_mean(modality))
    if archive.gap_corrected and not gap_correction:
        how = "search with gap_correction" if modality else "encode it again without"
        raise SpaceError(f"{archive.folder} was encoded with gap correction; {how}")
    correct = gap_correction and not archive.gap_corrected
    means = {name: space.image_mean(name) for name in _searched(archive, within)} if correct else {}
    scores, found = nearest(archive, rows, k, within, means)
    items = archive.items.iloc[found[0]]
    return [
        Hit(float(score), str(kind), str(path), int(row))
        for score, kind, path, row in zip(scores[0], items["modality"], items["path"], found[0])
    ]


def nearest(
    archive: Encoded,
    queries: Array,
    k: int,
    within: Sequence[str] | str | None = None,
    means: Mapping[str, Array] | None = None,
) -> tuple[Array, NDArray[np.int64]]:
    """Scores and rows, both (q, min(k, n)), of the items nearest to each query (q, d), best first, exactly.

    Equal scores come in the order of the rows. `means` (d,) per modality are taken from the items before comparing.

    Raises:
        UnknownNameError: the archive holds no such modality.
    """
    kinds = archive.items["modality"].to_numpy()
    names = _searched(archive, within)
    best = np.empty((len(queries), 0), np.float32)
    rows = np.empty((len(queries), 0), np.int64)
    for start in range(0, len(archive), BLOCK):
        block = np.array(archive.embeddings[start : start + BLOCK])
        kind = kinds[start : start + BLOCK]
        for name, mean in (means or {}).items():
            block[kind == name] = correct_gap(block[kind == name], mean)
        at = np.flatnonzero(np.isin(kind, names))
        scores = similarity(queries, block[at])
        best = np.concatenate([best, scores], axis=1)
        rows = np.concatenate([rows, np.broadcast_to(at + start, scores.shape)], axis=1)
        best, rows = _best(best, rows, k)
    return best, rows


def _searched(archive: Encoded, within: Sequence[str] | str | None) -> tuple[str, ...]:
    """The modalities to search."""
    names = tuple(archive.modalities) if within is None else (within,) if isinstance(within, str) else tuple(within)
    for name in names:
        if name not in archive.modalities:
            raise UnknownNameError("modality of this archive", name, archive.modalities)
    return names


def _best(scores: Array, rows: NDArray[np.int64], k: int) -> tuple[Array, NDArray[np.int64]]:
    """The k best of each line, sorted by falling score, then by row."""
    k = min(k, scores.shape[1])
    order = np.empty((len(scores), k), np.int64)
    for line, (score, row) in enumerate(zip(scores, rows)):
        enough = np.partition(score, -k)[-k] if k else 0  # the k-th best; all that equal it are looked at
        near = np.flatnonzero(score >= enough)
        order[line] = near[np.lexsort((row[near], -score[near]))[:k]]
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)
