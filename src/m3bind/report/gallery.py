"""Gallery of cross-modal search: random queries, and the nearest files of the other modalities.

* `search`: draws queries, ranks the other modalities, and compares every hit to the query (`verdicts`).
* `share_right`: share of correct hits. * `gallery_html`: images and verdicts as HTML. * `picture_uri`: a data URI.

A hit is correct if it has the patient or the concept of the query, and not comparable if the two modalities share
neither patients nor a concept. Queries are drawn at random (seeded), not selected.
"""

import base64
import html
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from m3bind.errors import M3BindError
from m3bind.evaluate.embedded_files import Points, same_concept, same_patient
from m3bind.report.plots import color

Thumbnail = Callable[[str, Any], Image.Image]  # (modality, path) -> image
RIGHT = ("patient", "concept")
VERDICTS = {"patient": "same patient", "concept": "same finding", "different": "different", "unknown": "not comparable"}
SIGNS = {"different": "✗", "unknown": "○"}


@dataclass(frozen=True)
class GalleryHit:
    """A hit: row of its modality, cosine to the query, and a key of `VERDICTS`."""

    modality: str
    index: int
    score: float
    verdict: str


@dataclass(frozen=True)
class GalleryQuery:
    """A query and its hits in every other modality; `chance`: share of correct files among comparable ones."""

    modality: str
    index: int
    hits: Mapping[str, list[GalleryHit]]
    chance: float


def _known(values: Sequence[object], index: int) -> str:
    return str(values[index]) if len(values) else ""


def verdicts(points: Mapping[str, Points], modality: str, index: int, other: str) -> list[str]:
    """For every file of `other`, a key of `VERDICTS`: how it is related to the query."""
    query, files = points[modality].subset(np.array([index])), points[other]
    patient, patients_known = same_patient(query, files)
    concept, concepts_known = same_concept(query, files)
    known = patients_known | concepts_known
    return [
        "patient" if p else "concept" if c else "different" if k else "unknown"
        for p, c, k in zip(patient[0], concept[0], known[0])
    ]


def search(points: Mapping[str, Points], per_modality: int = 2, hits: int = 3, seed: int = 0) -> list[GalleryQuery]:
    """`per_modality` random queries of each modality with their `hits` nearest files in every other modality.

    Only files with at least one correct answer in another modality are drawn.
    """
    rng = np.random.default_rng(seed)
    queries: list[GalleryQuery] = []
    for modality, part in points.items():
        drawn = 0
        for index in rng.permutation(len(part.vectors)):
            if drawn == per_modality:
                break
            related = {other: verdicts(points, modality, int(index), other) for other in points if other != modality}
            right = [verdict in RIGHT for row in related.values() for verdict in row if verdict != "unknown"]
            if not any(right):
                continue
            drawn += 1
            nearest = {}
            for other, verdict in related.items():
                scores = points[other].vectors @ part.vectors[index]
                best = np.argsort(-scores, kind="stable")[:hits]
                nearest[other] = [GalleryHit(other, int(i), float(scores[i]), verdict[i]) for i in best]
            queries.append(GalleryQuery(modality, int(index), nearest, float(np.mean(right))))
    return queries


def share_right(queries: list[GalleryQuery]) -> tuple[float, float, int]:
    """Share of correct hits among the comparable ones, the share expected by chance, and their number."""
    shown = [(hit.verdict, query.chance) for query in queries for hits in query.hits.values() for hit in hits]
    compared = [(verdict in RIGHT, chance) for verdict, chance in shown if verdict != "unknown"]
    right, chance = np.mean(compared, axis=0) if compared else (np.nan, np.nan)
    return float(right), float(chance), len(compared)


def picture_uri(image: Image.Image, size: int = 168) -> str:
    """An image of at most `size` pixels as a data URI: JPEG without metadata."""
    image = Image.fromarray(np.asarray(image.convert("RGB")))
    image.thumbnail((size, size))
    buffer = io.BytesIO()
    image.save(buffer, "jpeg", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def gallery_html(
    queries: list[GalleryQuery],
    points: Mapping[str, Points],
    thumbnails: Thumbnail,
    titles: Mapping[str, str],
    identifiers: bool = False,
) -> str:
    """One article per query: the query, then the nearest files of each other modality with verdict and cosine.

    Labels are printed; file names and patient identifiers only with `identifiers`. An unreadable file is noted as such.
    """
    cache: dict[tuple[str, int], str] = {}

    def figure(modality: str, index: int, mark: str, kind: str) -> str:
        part = points[modality]
        label = _known(part.labels, index).replace("_", " ").replace("|", ", ")
        alt = f"{titles.get(modality, modality)}{': ' + label if label else ''}"
        if (modality, index) not in cache:
            cache[modality, index] = _drawn(thumbnails, modality, part, index, alt)
        lines = f'<span class="mark">{mark}</span>'
        if label:
            lines += f'<span class="what">{html.escape(label)}</span>'
        if identifiers:
            name = f"{_known(part.patients, index)} {_known(part.paths, index)}".strip()
            lines += f'<span class="id">{html.escape(name)}</span>'
        return f'<figure class="hit {kind}">{cache[modality, index]}<figcaption>{lines}</figcaption></figure>'

    articles = []
    for query in queries:
        columns = []
        for other, hits in query.hits.items():
            shown = ""
            for hit in hits:
                mark = f"{SIGNS.get(hit.verdict, '✓')} {VERDICTS[hit.verdict]} <small>cos {hit.score:.2f}</small>"
                shown += figure(other, hit.index, mark, _kind(hit))
            columns.append(
                f'<div class="hits">{_heading(other, titles, "nearest")}<div class="row">{shown}</div></div>'
            )
        asked = _heading(query.modality, titles, "query") + figure(query.modality, query.index, "query", "asked")
        found = "".join(columns)
        articles.append(
            f'<article class="query"><div class="ask">{asked}</div><div class="found">{found}</div></article>'
        )
    return "\n".join(articles)


def _heading(modality: str, titles: Mapping[str, str], role: str) -> str:
    dot = f'<span class="dot" style="background:{html.escape(color(modality))}"></span>'
    return f"<h4>{dot}{html.escape(titles.get(modality, modality))} <small>{role}</small></h4>"


def _kind(hit: GalleryHit) -> str:
    return f"right {hit.verdict}" if hit.verdict in RIGHT else {"different": "wrong"}.get(hit.verdict, "open")


def _drawn(thumbnails: Thumbnail, modality: str, part: Points, index: int, alt: str) -> str:
    try:
        uri = picture_uri(thumbnails(modality, part.paths[index] if len(part.paths) else index))
    except (OSError, M3BindError, ValueError):
        return '<div class="missing">image not readable</div>'
    return f'<img src="{uri}" alt="{html.escape(alt, quote=True)}" loading="lazy">'
