"""Displays queries and their hits.

* `hits_as_text`: lines for a terminal, with paths as stored in the index. * `in_its_modality`: a hit's rank there.
* `search_page`: images on one self-contained HTML page; file names only if they cannot identify a person.
"""

import html
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from m3bind import modalities
from m3bind.core.files import write_text
from m3bind.errors import ConfigError, ReadError
from m3bind.index.roots import Roots
from m3bind.privacy import redact_path
from m3bind.search.query import Query, QueryPart
from m3bind.search.searcher import Hit, Searcher
from m3bind.search.thumbnails import thumbnail

SIDE = 168  # pixels of an image
SILENT = 0.1  # relevance below which a modality has little to say to a query
GRID = "grid-template-columns:repeat(auto-fill,minmax(132px,1fr));gap:14px 12px"


def hits_as_text(query: Query, hits: Sequence[Hit]) -> str:
    """A heading and one line per hit: score z, rank within its modality, cosine, modality, label, and path or id."""
    lines = [f"{query}", "      z     in its modality  cosine"]
    for rank, hit in enumerate(hits, 1):
        numbers = f"{rank:3d}  {hit.calibrated:+6.2f}  {in_its_modality(hit):>15s}  {hit.score:+.3f}"
        label = hit.fields.get("label", "")
        lines.append(f"{numbers}  {hit.modality:10s} {hit.path or hit.id}" + (f"  [{label}]" if label else ""))
        if hit.incomplete:
            lines.append(f"     may be incomplete: {hit.incomplete}")
        if hit.unlike:
            lines.append(f"     unusual: {hit.unlike}")
    silent = sorted({hit.modality for hit in hits if hit.relevance < SILENT})
    if silent:
        lines.append(f"little to say to this query: {', '.join(silent)}")
    return "\n".join(lines if hits else [f"{query}", "nothing found: no item fits the conditions"])


def in_its_modality(hit: Hit) -> str:
    """The rank of a hit within its modality, e.g. "top 0.4 %", in steps of the calibration's sample."""
    above = 100 - hit.percentile
    return f"top {above:.1f} %" if above >= 0.2 else "top 0.2 %"


def search_page(
    searcher: Searcher,
    results: Sequence[tuple[Query, Sequence[Hit]]],
    target: Path | str,
    grouped: bool = False,
    roots: Roots | None = None,
) -> None:
    """Write a page with a section per query: the query, then its hits with ranks and scores.

    Args:
        searcher: the searcher of the results.
        results: queries and their hits.
        target: the .html file.
        grouped: hits are grouped by modality.
        roots: folders whose files may be shown; default: any.

    Raises:
        DiskError: it cannot be written.
    """
    from m3bind.report.page import page

    sections = [
        (f"q{number}", str(query), _section(searcher, query, hits, grouped, roots))
        for number, (query, hits) in enumerate(results, 1)
    ]
    counts = ", ".join(f"{modalities.get(name).title} {n}" for name, n in searcher.index.counts().items())
    lead = (
        f'<p class="files"><span>{len(searcher.index)} items searched: {html.escape(counts)}</span></p>'
        '<p class="small">Top: rank among the items of the same kind. z: by how many standard deviations a hit is '
        "nearer to the question than items of its kind usually are. Hits are ranked by z and by how much their kind "
        "has to say to the question; cosines (cos) of different kinds of files cannot be compared.</p>"
    )
    notes = ["The space was trained on virtual patients (synthetic)."] if searcher.space.synthetic else []
    write_text(target, page("Search", sections, kind="m3bind search", lead=lead, notes=notes))


def _section(searcher: Searcher, query: Query, hits: Sequence[Hit], grouped: bool, roots: Roots | None) -> str:
    """The parts of a query beside its hits."""
    ask = "".join(_asked(searcher, part, roots) for part in query.parts)
    found, rank = "", 1
    for _, group in groupby(hits, lambda hit: hit.modality if grouped else ""):
        members = list(group)
        faint = " · little to say to this question" if grouped and members[0].relevance < SILENT else ""
        heading = f"<h4>{_title(members[0].modality)}{faint}</h4>" if grouped else "<h4>Hits</h4>"
        figures = "".join(_hit(number, hit, roots) for number, hit in enumerate(members, rank))
        rank += len(members)
        found += f'<div class="hits">{heading}<div class="row" style="{GRID}">{figures}</div></div>'
    found = found or '<p class="none">Nothing found: no item fits the conditions.</p>'
    return (
        f'<article class="query"><div class="ask"><h4>Asked</h4>{ask}</div>'
        f'<div class="found" style="grid-template-columns:1fr">{found}</div></article>'
    )


def _asked(searcher: Searcher, part: QueryPart, roots: Roots | None) -> str:
    """One part of a query: a text, or the image of a file or item."""
    mark = ("avoid" if part.weight < 0 else "find") + (f" × {abs(part.weight):g}" if abs(part.weight) != 1 else "")
    if part.kind == "text":
        body = f'<p class="name">“{html.escape(part.value)}”</p>'
    else:
        modality, path, allowed = part.modality, part.value, None  # a file in the query may be shown
        if part.kind == "item":
            item = searcher.index.items([part.value]).iloc[0]
            modality, path, allowed = str(item["modality"]), str(item.get("path", "")), roots
        body = _figure(modality, path, [_title(modality)], "asked", allowed)
    return f'<div><span class="small">{mark}</span>{body}</div>'


def _hit(rank: int, hit: Hit, roots: Roots | None) -> str:
    """Image, ranks and scores of a hit."""
    label = hit.fields.get("label", "").replace("_", " ").replace("|", ", ")
    lines = [
        f"{rank} · {_title(hit.modality)}",
        f"<strong>{in_its_modality(hit)}</strong> · z {hit.calibrated:.2f}".replace("-", "−"),
        html.escape(label),
        f"<small>cos {hit.score:.2f}</small>".replace("-", "−"),
        f"<small>{html.escape(redact_path(hit.path))}</small>" if hit.path else "",
        f"<small>may be incomplete: {html.escape(hit.incomplete)}</small>" if hit.incomplete else "",
        f"<small>unusual: {html.escape(hit.unlike)}</small>" if hit.unlike else "",
    ]
    return _figure(hit.modality, hit.path, lines, "", roots)


def _figure(modality: str, path: str, lines: Sequence[str], kind: str, roots: Roots | None) -> str:
    """An image with lines of HTML below it."""
    from m3bind.report.gallery import picture_uri

    try:
        source = picture_uri(thumbnail(modality, path, SIDE, roots), SIDE)
        drawn = f'<img src="{source}" alt="{html.escape(modalities.get(modality).title, quote=True)}" loading="lazy">'
    except (ReadError, ConfigError) as error:
        reason = error.reason if isinstance(error, ReadError) else str(error)
        drawn = f'<div class="missing">{html.escape(reason)}</div>'
    caption = f'<span class="mark">{lines[0]}</span>'
    caption += "".join(f'<span class="what">{line}</span>' for line in lines[1:] if line)
    return f'<figure class="hit {kind}">{drawn}<figcaption>{caption}</figcaption></figure>'


def _title(modality: str) -> str:
    dot = f'<span class="dot" style="background:{html.escape(modalities.get(modality).color)}"></span>'
    return dot + html.escape(modalities.get(modality).title or modality)
