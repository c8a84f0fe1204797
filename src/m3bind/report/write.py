"""report.html: one self-contained page about a run, for offline use, small screens, dark mode and colour-blind readers.

* `write_report`: metrics, embeddings and logs of a run (`ReportContent`) -> run_dir/report.html.

The page has no scripts and no network requests: images are data URIs. It contains no patient identifiers and no file
names unless requested.
"""

import html
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from m3bind.core.files import write_text
from m3bind.evaluate.calibration import Answers
from m3bind.evaluate.compare import unresolved
from m3bind.evaluate.embedded_files import Points
from m3bind.evaluate.pivot import Pivot, headline, html_table, number, pivot
from m3bind.evaluate.results import PROTOCOLS, Row
from m3bind.evaluate.stage_results import Matrix
from m3bind.evaluate.tasks import title as modality_title
from m3bind.models.embedding import correct_gap
from m3bind.report import gallery, plots
from m3bind.report.page import figure, page
from m3bind.report.reliability import reliability_plot
from m3bind.report.robustness import robustness_section

MAP_POINTS = 800
Reliability = Mapping[str, Sequence[tuple[str, Answers]]]


@dataclass(frozen=True)
class ReportContent:
    """The content of a report."""

    results: Iterable[Row]  # of all stages
    history: Sequence[Mapping[str, Any]]  # rows of log.jsonl (step, stage, losses, lr)
    embeddings: Mapping[str, Points]  # modality -> points of the final space
    thumbnails: gallery.Thumbnail  # (modality, path) -> image
    notes: Sequence[str] = ()  # paragraphs at the top
    before: Mapping[str, Points] | None = None  # the same files in the unbound space, for comparison
    means: Mapping[str, Matrix] | None = None  # modality -> (d,): enables gap correction of map, similarity and gallery
    synthetic: bool | None = None  # print the banner; None: if a result's data set is of virtual patients
    name: str = ""  # of the run; default: its folder
    identifiers: bool = False  # print patients and paths in the gallery
    seed: int = 0
    reliability: Reliability = field(default_factory=dict)  # heading -> predictions by task, for the calibration plots
    robustness: Iterable[Row] = ()  # test files passed through shifts


@dataclass(frozen=True)
class _Scene:
    """Points for the plots, after gap correction."""

    now: Mapping[str, Points]
    before: Mapping[str, Points] | None
    titles: Mapping[str, str]
    corrected: bool


def write_report(run_dir: Path | str, content: ReportContent) -> Path:
    """Write `run_dir`/report.html and return its path."""
    rows, seed = list(content.results), content.seed
    scene = _scene(content)
    synthetic = content.synthetic
    if synthetic is None:
        synthetic = any("phantom" in row.dataset.split("+") for row in rows)
    sections = [
        ("results", "Before and after", _headline_section(rows)),
        ("map", "Map of the shared space", _map_section(scene, seed)),
        ("similarity", "Similarity of modalities", _similarity_section(scene, seed)),
        ("gallery", "Search across modalities", _gallery_section(scene, content)),
        ("calibration", "Calibration", _calibration_section(content.reliability)),
        ("robustness", "Robustness", robustness_section(content.robustness)),
        ("training", "Training", _training_section(content.history)),
        ("all", "All metrics", _all_section(pivot(rows))),
        ("reading", "How to read", GLOSSARY),
    ]
    sections = [section for section in sections if section[2]]
    target = Path(run_dir) / "report.html"
    text = page(
        content.name or Path(run_dir).resolve().name,
        sections,
        lead=f'<p class="files">{_files(scene)}</p>',
        tiles=_tiles(rows),
        notes=content.notes,
        synthetic=synthetic,
    )
    write_text(target, text)
    return target


def _scene(content: ReportContent) -> _Scene:
    now, before, means = dict(content.embeddings), content.before, content.means
    if means is not None:  # the unbound space is corrected by the means of its own files
        now = _corrected(now, means)
        before = before and _corrected(before, {m: points.vectors.mean(0) for m, points in before.items()})
    return _Scene(now, before, {m: modality_title(m) for m in now}, means is not None)


def _corrected(points: Mapping[str, Points], means: Mapping[str, Matrix]) -> dict[str, Points]:
    return {m: replace(part, vectors=correct_gap(part.vectors, means[m])) for m, part in points.items()}


# ---------------------------------------------------------------------------------------------- metrics


def _tiles(rows: Sequence[Row]) -> str:
    """The mean of each kind of metric in large type, last stage against the first."""
    lines = headline(rows).lines
    across = [line for line in lines if line.protocol == "image_to_image"]
    groups = {
        "Zero-shot, mean over tasks (AUC or balanced accuracy)": [x for x in lines if x.protocol == "zero_shot"],
        "Same patient among 10 hits, across modalities": [line for line in across if line.metric == "R@10"],
        "Same concept found, across modalities (AUC)": [line for line in across if line.metric == "auc"],
        "Texts recognised by another tower (R@1)": [x for x in lines if x.task == "towers" and x.metric == "R@1"],
    }
    tiles = []
    for label, group in groups.items():
        group = [line for line in group if line.cells]
        if not group:
            continue
        firsts, lasts = ([list(line.cells.values())[i] for line in group] for i in (0, -1))
        now, was = (float(np.mean([cell.value for cell in cells])) for cells in (lasts, firsts))
        chance = float(np.mean([cell.chance for cell in lasts]))
        moved = f"before {number(was)}, " if any(len(line.cells) > 1 for line in group) else ""
        low, high = (number(getattr(lasts[0], side)) for side in ("ci_low", "ci_high"))
        single = len(group) == 1
        span = f"interval {low}…{high}, " if single else "intervals and n in the table, "
        files = f", n = {lasts[0].counted}" if single else f", {len(group)} tasks"
        small = f"{span}{moved}chance {number(chance)}{files}"
        tiles.append(
            f'<div class="tile"><div class="big">{number(now)}</div><div class="name">{html.escape(label)}</div>'
            f'<div class="small">{small}</div></div>'
        )
    return f'<div class="tiles">{"".join(tiles)}</div>' if tiles else ""


def _headline_section(rows: Sequence[Row]) -> str:
    data = headline(rows)
    if not data.lines:
        return ""
    caption = (
        "Value with its 95 % interval below. Change: last stage minus first with the half-width of its 95 % interval, "
        "same patients in both; better or worse only if the interval excludes zero."
    )
    note = unresolved(line.difference for line in data.lines if line.difference)
    return html_table(data, caption) + (f'<p class="caption">{html.escape(note)}</p>' if note else "")


def _all_section(data: Pivot) -> str:
    parts = []
    for protocol in dict.fromkeys([*PROTOCOLS, *(line.protocol for line in data.lines)]):
        lines = tuple(line for line in data.lines if line.protocol == protocol)
        if lines:
            used = tuple(c for c in data.columns if any(c in line.cells for line in lines))
            label = PROTOCOLS.get(protocol, protocol.replace("_", " "))
            shown = html_table(Pivot(used, lines), label, group=False)
            parts.append(f"<details><summary>{html.escape(label)} ({len(lines)} metrics)</summary>{shown}</details>")
    return "".join(parts)


# ---------------------------------------------------------------------------------------------- plots


def _calibration_section(reliability: Reliability) -> str:
    """Reliability diagrams."""
    if not reliability:
        return ""
    text = "Share of correct predictions by confidence. On the diagonal both are equal: perfect calibration."
    figures = "".join(figure(reliability_plot(parts, heading), heading) for heading, parts in reliability.items())
    return f'<p class="caption">{text}</p><div class="plots">{figures}</div>'


def _training_section(history: Sequence[Mapping[str, Any]]) -> str:
    curves = plots.training_curves(history)
    if not curves:
        return ""
    steps = Counter(str(entry.get("stage", "training")) for entry in history)
    shown = "".join(
        figure(plot, stage, f"{steps[stage]:,} logged steps; thin lines: logged values, thick lines: running mean.")
        for stage, plot in curves.items()
    )
    return f'<div class="plots">{shown}</div>'


def _sample(points: Mapping[str, Points], seed: int) -> dict[str, Points]:
    """At most MAP_POINTS in total, the same number of each modality, drawn at random."""
    maximum = max(1, MAP_POINTS // max(1, len(points)))
    rng = np.random.default_rng(seed)
    return {m: p.subset(np.sort(rng.permutation(len(p.vectors))[:maximum])) for m, p in points.items()}


def _maps(points: Mapping[str, Points], titles: Mapping[str, str], when: str, seed: int) -> str:
    points = _sample(points, seed)
    vectors = np.concatenate([p.vectors for p in points.values()])
    if len(vectors) < 3:
        return ""
    place, method = plots.project(vectors, seed=seed)
    shapes = [titles[m] for m, p in points.items() for _ in p.vectors]
    finding = [value.replace("_", " ") for p in points.values() for value in p.findings()]
    colors = {titles[m]: plots.color(m) for m in points}
    count = ", ".join(f"{len(p.vectors)} {titles[m]}" for m, p in points.items())
    alt = f"Map of the space {when}: {count}; coloured by "
    note = (
        f"{method} of {len(vectors):,} test files ({count}); one marker per modality. "
        "Near points are similar; the axes have no meaning."
    )
    figures = figure(plots.map_plot(place, shapes, shapes, colors, alt + "modality."), f"{when}, by modality", note)
    if len(set(finding)) > 1:
        by_finding = plots.map_plot(place, finding, shapes, {}, alt + "finding.")
        figures += figure(by_finding, f"{when}, by finding", "The same points, coloured by finding.")
    return figures


def _map_section(scene: _Scene, seed: int) -> str:
    if not scene.now:
        return ""
    maps = "".join(_maps(points, scene.titles, when, seed) for when, points in _moments(scene))
    return f'{_note(scene)}<div class="plots">{maps}</div>'


def _note(scene: _Scene) -> str:
    return "<p>Each modality's mean is subtracted (gap correction).</p>" if scene.corrected else ""


def _moments(scene: _Scene) -> list[tuple[str, Mapping[str, Points]]]:
    before = [("Before binding", scene.before)] if scene.before else []
    return [*before, ("After binding", scene.now)]


def _similarity_section(scene: _Scene, seed: int) -> str:
    parts, tables = [], []
    measured = [(when, plots.similarity(points)) for when, points in _moments(scene)]
    limit = max((data.largest for _, data in measured), default=0.0)
    for when, data in measured:
        if not data.gain:
            continue
        pairs = ", ".join(f"{scene.titles[a]} to {scene.titles[b]} {g.value:+.2f}" for (a, b), g in data.gain.items())
        plot = plots.similarity_plot(data, scene.titles, limit, f"{when}: same {data.match} minus others: {pairs}.")
        count = sum(gain.n for gain in data.gain.values())
        caption = (
            f"Upper number: mean cosine of files of the same {data.match}; lower: of all others. "
            f"Mean difference across modalities {number(data.mean_gain)}, chance 0, {count:,} queries."
        )
        parts.append(figure(plot, when, caption))
        tables.append(_gain_table(data, scene.titles, when))
    if not parts:
        return ""
    details = f"<details><summary>The same as tables, with n and intervals</summary>{''.join(tables)}</details>"
    return f'{_note(scene)}<div class="plots">{"".join(parts)}</div>{details}'


def _gain_table(data: plots.Similarity, titles: Mapping[str, str], when: str) -> str:
    body = ""
    for (a, b), gain in data.gain.items():
        at = data.names.index(a), data.names.index(b)
        body += (
            f'<tr><th scope="row">{html.escape(titles[a])} → {html.escape(titles[b])}</th>'
            f'<td class="num">{gain.n:,}</td><td class="num">{number(data.matched[at])}</td>'
            f'<td class="num">{number(data.other[at])}</td><td class="num">{gain.value:+.3f}'
            f"<small>{number(gain.ci_low)} to {number(gain.ci_high)}</small></td></tr>"
        )
    heads = "".join(
        f'<th scope="col" class="num">{h}</th>' for h in ("n", f"same {data.match}", "others", "difference")
    )
    return (
        f'<p class="caption">{when}; chance of the difference: 0</p>'
        f'<div class="scroll" tabindex="0" role="region" aria-label="{when}"><table aria-label="{when}"><thead><tr>'
        f'<th scope="col">query → searched</th>{heads}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _gallery_section(scene: _Scene, content: ReportContent) -> str:
    queries = gallery.search(scene.now, seed=content.seed) if len(scene.now) > 1 else []
    if not queries:
        return ""
    right, chance, compared = gallery.share_right(queries)
    corrected = " Each modality's mean is subtracted before searching." if scene.corrected else ""
    text = (
        f"<p>{len(queries)} files drawn at random, not selected, each with the three nearest files of every other "
        f"modality, best first.{corrected} Correct (✓) means the same patient or the same finding: "
        f"<strong>{right:.0%}</strong> of the {compared} comparable hits; by chance {chance:.0%}. "
        "Modalities that share neither patients nor a concept cannot be compared (○).</p>"
    )
    return text + gallery.gallery_html(queries, scene.now, content.thumbnails, scene.titles, content.identifiers)


def _files(scene: _Scene) -> str:
    """The number of files of each modality, with its colour."""
    return "".join(
        f'<span><i class="dot" style="background:{html.escape(plots.color(m))}"></i>{html.escape(scene.titles[m])} '
        f"{len(points.vectors):,}</span>"
        for m, points in scene.now.items()
    )


GLOSSARY = """<dl>
<dt>chance</dt><dd>The expected value of a scorer without information: .5 for AUC, 1 / classes for balanced accuracy,
the share of the commonest class for accuracy, exact for search (from the size of the gallery and the number
of correct answers), the mean over shuffled predictions for macro F1.</dd>
<dt>interval</dt><dd>95 % interval from a bootstrap over patients, not files (Student's t, on the logit scale for
shares). In search the patients of queries and gallery are resampled. It covers other training seeds only where
several were run, and never another hospital.</dd>
<dt>n</dt><dd>Files, and patients if some have several. A file that is a query in several pairs of modalities counts
once.</dd>
<dt>zero-shot</dt><dd>An image gets the class whose prompts are most similar to it, without training on labelled
images of these classes. AUC with two classes, balanced accuracy with more.</dd>
<dt>R@K</dt><dd>Share of queries with at least one correct answer among the first K. Ties count with their
expected value.</dd>
<dt>image to image, by patient</dt><dd>The query is a file of one modality, the gallery all files of another;
correct is the same patient.</dd>
<dt>image to image, by concept</dt><dd>Probability that a file of the same concept is more similar to the
query than a file of another concept (AUC), with equal weight of the classes, averaged over ordered pairs of
modalities.</dd>
<dt>gap-corrected</dt><dd>Each modality's mean embedding over the training files is subtracted before images
are compared.</dd>
<dt>cos, cos other, cos within, ccos</dt><dd>Mean cosine of the same text in two towers, of different texts in
two towers, of different texts in one tower, and of the same text after each tower's mean is subtracted. Cos
alone is not sufficient: if towers give every text the same vector, it is 1, and so are cos other and cos
within.</dd>
</dl>"""
