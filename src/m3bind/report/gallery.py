"""Gallery of cross-modal hits: queries drawn by lot, and the files of the other modalities nearest to each.

* `search`: draw queries, rank the other modalities, judge every hit.
* `gallery_html`: pictures and verdicts as HTML without scripts.

A hit is right if it is of the same patient or of the same concept as the query, and not judged where the two modalities
share neither patients nor a concept. Queries are drawn at random (seeded), not picked.
"""

import base64
import html
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from m3bind.errors import M3BindError
from m3bind.evaluate.points import Points, same_concept, same_patient
from m3bind.report.plots import color

Thumbnail = Callable[[str, Any], Image.Image]  # (modality, path) -> picture
RIGHT = ("patient", "concept")
VERDICTS = {"patient": "same patient", "concept": "same finding", "different": "different", "unknown": "not comparable"}
SIGNS = {"different": "✗", "unknown": "○"}


@dataclass(frozen=True)
class GalleryHit:
    """One file found: row of its modality, cosine to the query, and a key of `VERDICTS`."""

    modality: str
    index: int
    score: float
    verdict: str


@dataclass(frozen=True)
class GalleryQuery:
    """One query and its hits in every other modality; `chance`: share of right files among those judged."""

    modality: str
    index: int
    hits: Mapping[str, list[GalleryHit]]
    chance: float


def _known(values: Any, index: int) -> str:
    return str(values[index]) if len(values) else ""


def verdicts(points: Mapping[str, Points], modality: str, index: int, other: str) -> list[str]:
    """For every file of `other`, a key of `VERDICTS`: why it is a right answer to the query, or why not."""
    query, found = points[modality].subset(np.array([index])), points[other]
    patient, patients_known = same_patient(query, found)
    concept, concepts_known = same_concept(query, found)
    known = patients_known | concepts_known
    return [
        "patient" if p else "concept" if c else "different" if k else "unknown"
        for p, c, k in zip(patient[0], concept[0], known[0])
    ]


def search(points: Mapping[str, Points], per_modality: int = 2, hits: int = 3, seed: int = 0) -> list[GalleryQuery]:
    """`per_modality` random queries of each modality with their `hits` nearest files in every other modality.

    Only files with at least one right answer somewhere can be drawn.
    """
    rng = np.random.default_rng(seed)
    queries: list[GalleryQuery] = []
    for modality, part in points.items():
        drawn = 0
        for index in rng.permutation(len(part.vectors)):
            if drawn == per_modality:
                break
            judged = {other: verdicts(points, modality, int(index), other) for other in points if other != modality}
            flat = [verdict in RIGHT for one in judged.values() for verdict in one if verdict != "unknown"]
            if not any(flat):
                continue
            drawn += 1
            found = {}
            for other, verdict in judged.items():
                scores = points[other].vectors @ part.vectors[index]
                best = np.argsort(-scores, kind="stable")[:hits]
                found[other] = [GalleryHit(other, int(i), float(scores[i]), verdict[i]) for i in best]
            queries.append(GalleryQuery(modality, int(index), found, float(np.mean(flat))))
    return queries


def share_right(queries: list[GalleryQuery]) -> tuple[float, float, int]:
    """Share of right hits among those shown that can be judged, the share expected by chance, and how many."""
    judged = [
        (hit.verdict in RIGHT, query.chance)
        for query in queries
        for hits in query.hits.values()
        for hit in hits
        if hit.verdict != "unknown"
    ]
    right, chance = np.mean(judged, axis=0) if judged else (np.nan, np.nan)
    return float(right), float(chance), len(judged)


def picture_uri(image: Image.Image, size: int = 168) -> str:
    """A picture of at most `size` pixels as a data URI: JPEG without any metadata."""
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

    Labels are printed; file names and patient identifiers only with `identifiers`. A file that cannot be drawn leaves a
    note.
    """
    cache: dict[tuple[str, int], str] = {}

    def figure(modality: str, index: int, mark: str, kind: str) -> str:
        part = points[modality]
        label = _known(part.labels, index).replace("_", " ").replace("|", ", ")
        alt = f"{titles.get(modality, modality)}{': ' + label if label else ''}"
        if (modality, index) not in cache:
            cache[modality, index] = _drawn(thumbnails, modality, part, index, alt)
        lines = [
            f'<span class="mark">{mark}</span>',
            f'<span class="what">{html.escape(label)}</span>' if label else "",
        ]
        if identifiers:
            name = f"{_known(part.patients, index)} {_known(part.paths, index)}".strip()
            lines.append(f'<span class="id">{html.escape(name)}</span>')
        return f'<figure class="hit {kind}">{cache[modality, index]}<figcaption>{"".join(lines)}</figcaption></figure>'

    articles = []
    for query in queries:
        columns = []
        for other, hits in query.hits.items():
            shown = "".join(figure(other, hit.index, _mark(hit), _kind(hit)) for hit in hits)
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


def _mark(hit: GalleryHit) -> str:
    return f"{SIGNS.get(hit.verdict, '✓')} {VERDICTS[hit.verdict]} <small>cos {hit.score:.2f}</small>"


def _drawn(thumbnails: Thumbnail, modality: str, part: Points, index: int, alt: str) -> str:
    try:
        uri = picture_uri(thumbnails(modality, part.paths[index] if len(part.paths) else index))
    except (OSError, M3BindError, ValueError):
        return '<div class="missing">picture not readable</div>'
    return f'<img src="{uri}" alt="{html.escape(alt, quote=True)}" loading="lazy">'
