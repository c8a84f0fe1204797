"""Tables of result rows: one line per metric, one column per training stage.

* `pivot`: rows as a table, seeds averaged (`cell_of`), with the paired change from first to last stage; `headline`: its
  main lines.
* `console`: a table for the terminal; `html_table`: for the report; `number`: a value as printed.
"""

import html
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.table import Table

from m3bind.evaluate.compare import Difference, paired
from m3bind.evaluate.confidence import interval, over_seeds
from m3bind.evaluate.results import LOW_IS_GOOD, PROTOCOLS, STAGES, Row, bounds_of
from m3bind.evaluate.tasks import title as modality_title

_RANKS = ("median_rank",)  # printed with one decimal
_NEUTRAL = ("cos_other", "cos_within", "temperature", "coverage")  # neither high nor low is better
_KEY = ("protocol", "task", "dataset", "modality", "split", "metric", "variant")  # rows that form one line


@dataclass(frozen=True)
class PivotCell:
    """One metric at one stage. Over several seeds: mean, spread (standard deviation) and interval of the mean."""

    value: float
    ci_low: float
    ci_high: float
    n: int
    chance: float
    seeds: int = 1
    spread: float = 0.0
    patients: int | None = None

    @property
    def counted(self) -> str:
        """n as text: "818 files", with patients if they are known and fewer."""
        return f"{self.n:,}" if self.patients in (None, 0, self.n) else f"{self.n:,} of {self.patients:,} patients"


@dataclass(frozen=True)
class PivotLine:
    """One metric at all stages; `cells` has a key per column of the pivot with a value."""

    protocol: str
    task: str
    dataset: str
    modality: str
    split: str
    metric: str
    variant: str
    text_encoder: str  # "" unless the text is of another modality's tower
    cells: Mapping[str, PivotCell]
    gallery: int | None = None
    difference: Difference | None = None  # last available column minus the first; None with one column

    @property
    def change(self) -> float:
        """Last available column minus the first; NaN with one column."""
        return self.difference.change if self.difference else float("nan")


@dataclass(frozen=True)
class Pivot:
    """Lines (metrics) by columns (stages, in the order of training)."""

    columns: tuple[str, ...]
    lines: tuple[PivotLine, ...]


def column(row: Row) -> str:
    """Column of a row: its stage; rows with the student's text have their own ("distilled, student text")."""
    name = row.stage.replace("_", " ") or "measured"
    return f"{name}, student text" if row.text_encoder == "student" else name


def pivot(rows: Iterable[Row]) -> Pivot:
    """Arrange rows in lines and stage columns; rows that differ only in seed are averaged."""
    rows = list(rows)
    order = {stage: i for i, stage in enumerate(STAGES)}
    places = {column(row): (order.get(row.stage, len(order)), row.text_encoder == "student") for row in rows}
    columns = sorted(places, key=lambda name: places[name])
    groups: dict[tuple[str, ...], dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        other = row.text_encoder if row.text_encoder.startswith("teacher:") else ""
        groups[*(getattr(row, name) for name in _KEY), other][column(row)].append(row)
    lines = []
    for key, cells in groups.items():
        size = next(iter(cells.values()))[0].gallery
        names: dict[str, Any] = dict(zip((*_KEY, "text_encoder"), key))
        shown = [c for c in columns if c in cells]
        change = paired(cells[shown[0]], cells[shown[-1]]) if len(shown) > 1 else None
        lines.append(PivotLine(**names, cells={c: cell_of(cells[c]) for c in shown}, gallery=size, difference=change))
    return Pivot(tuple(columns), tuple(lines))


def cell_of(rows: Sequence[Row]) -> PivotCell:
    """One cell of rows that differ only in seed; several seeds without stored replicates have no interval."""
    values = np.array([row.value for row in rows])
    value, spread = float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else 0.0
    drawn = [row.replicates for row in rows if row.replicates is not None]
    if len(rows) == 1:
        low, high = rows[0].ci_low, rows[0].ci_high
    elif len(drawn) == len(rows) and len({len(d) for d in drawn}) == 1:
        freedom = min((row.freedom for row in rows if row.freedom is not None), default=math.inf)
        low, high = interval(value, *over_seeds(values, np.stack(drawn), freedom), bounds_of(rows[0].metric))
    else:
        low = high = math.nan
    chance = float(np.mean([row.chance for row in rows]))
    return PivotCell(value, low, high, rows[0].n, chance, len(rows), spread, rows[0].patients)


def number(value: float, metric: str = "") -> str:
    """A value as printed: three decimals, ranks with one, a dash if undefined."""
    if not math.isfinite(value):
        return "–"
    return f"{value:.1f}" if metric in _RANKS else f"{value:.3f}"


def _primary(lines: Sequence[PivotLine]) -> list[PivotLine]:
    """Primary metric of each zero-shot task: AUC with two classes, AUROC with several labels, otherwise ACA."""
    primary: dict[tuple[str, ...], str] = {}
    for line in lines:
        if line.metric == "auc" or "threshold=" in line.variant:
            primary[line.task, line.dataset, line.modality] = "auc" if line.metric == "auc" else "auroc"
    usual = "balanced_accuracy"
    return [line for line in lines if line.metric == primary.get((line.task, line.dataset, line.modality), usual)]


def headline(rows: Iterable[Row]) -> Pivot:
    """The main lines: zero-shot by task, retrieval across modalities (mean over pairs), text agreement."""
    data = pivot(rows)
    own = [line for line in data.lines if not line.text_encoder]
    lines = _primary([line for line in own if line.protocol == "zero_shot"])
    across = [line for line in own if line.protocol == "image_to_image" and line.modality == "mean"]
    lines += [line for line in across if line.metric in ("auc", "R@10")]
    lines += [line for line in own if line.protocol == "text_agreement"]
    return Pivot(tuple(c for c in data.columns if any(c in line.cells for line in lines)), tuple(lines))


def console(rows: Iterable[Row], title: str = "Results", intervals: bool = True) -> Table:
    """The pivot as a rich table for the terminal."""
    data = pivot(rows)
    table = Table(title=title, caption="value [95 % interval]; chance: an uninformed scorer")
    for name in ("task", "modality", "metric"):
        table.add_column(name, overflow="fold")
    for name in ("n", "chance", *data.columns, "change"):
        table.add_column(name, justify="right", no_wrap=True)
    for line in data.lines:
        first = next(iter(line.cells.values()))
        change = f"{line.change:+.3f}" if math.isfinite(line.change) else "–"
        name = " ".join(filter(None, (line.protocol.replace("_", " "), line.task, line.variant, line.text_encoder)))
        cells = [_console_cell(line.cells.get(c), line.metric, intervals) for c in data.columns]
        chance = number(first.chance, line.metric)
        table.add_row(name, line.modality, line.metric, first.counted, chance, *cells, change)
    return table


def _console_cell(cell: PivotCell | None, metric: str, intervals: bool) -> str:
    if cell is None:
        return "–"
    text = number(cell.value, metric)
    if cell.seeds > 1:
        return f"{text} ± {number(cell.spread, metric)}"
    return f"{text}\n\\[{number(cell.ci_low, metric)}, {number(cell.ci_high, metric)}]" if intervals else text


# ---------------------------------------------------------------------------------------------- HTML


def _html_cell(cell: PivotCell | None, metric: str) -> str:
    if cell is None:
        return '<td class="num none">–</td>'
    small = f"{number(cell.ci_low, metric)}…{number(cell.ci_high, metric)}"
    if cell.seeds > 1:
        small = f"± {number(cell.spread, metric)} over {cell.seeds} seeds<br>{small}"
    return f'<td class="num">{number(cell.value, metric)}<small>{small}</small></td>'


def _html_count(cell: PivotCell) -> str:
    files, _, people = cell.counted.partition(" ")
    return files + (f"<small>{people}</small>" if people else "")


def _change(line: PivotLine) -> str:
    """Last minus first; marked better or worse only if the interval of the paired difference excludes zero."""
    if line.difference is None or not math.isfinite(line.change):
        return '<td class="num none">–</td>'
    sure = line.difference.significant and line.metric not in _NEUTRAL
    better = (line.change > 0) != (line.metric in LOW_IS_GOOD)
    kind, word = (("up", "better") if better else ("down", "worse")) if sure else ("same", "")
    arrow = "▲" if line.change > 0 else "▼" if line.change < 0 else ""
    text = f"{line.change:+.1f}" if line.metric in _RANKS else f"{line.change:+.3f}"
    width = line.difference.half_width
    small = f"± {width:.3f} {word}" if math.isfinite(width) else word
    return f'<td class="num {kind}">{arrow} {text}<small>{small}</small></td>'


def _line_title(line: PivotLine) -> str:
    text = f"text of {line.text_encoder.removeprefix('teacher:')}" if line.text_encoder else ""
    name = " · ".join(filter(None, (line.task.replace("_", " "), line.variant, text)))
    where = " → ".join(modality_title(m) for m in line.modality.split("->"))
    if line.task.startswith("student"):
        where = "student and mean teacher"
    elif line.modality == "mean":
        where = "mean over ordered pairs" if line.protocol == "image_to_image" else "mean over pairs of towers"
    place = ", ".join(filter(None, (where, line.dataset.replace("+", " + "), line.split)))
    return f"{html.escape(name or PROTOCOLS.get(line.protocol, line.protocol))}<small>{html.escape(place)}</small>"


def html_table(data: Pivot, caption: str, group: bool = True, change: bool = True) -> str:
    """A pivot as an HTML table that scrolls sideways on small screens.

    `group`: a heading per protocol. `change`: a last column for last minus first, if columns are stages.
    """
    heads = "".join(f'<th scope="col" class="num">{html.escape(c)}</th>' for c in data.columns)
    several = change and len(data.columns) > 1
    wide = 5 + len(data.columns) + several
    body, seen = [], None
    for line in data.lines:
        if group and line.protocol != seen:
            seen = line.protocol
            label = html.escape(PROTOCOLS.get(seen, seen.replace("_", " ")))
            body.append(f'<tr class="group"><th colspan="{wide}" scope="colgroup"><span>{label}</span></th></tr>')
        first = next(iter(line.cells.values()))
        counted = _html_count(first) + (f"<small>{line.gallery:,} searched</small>" if line.gallery else "")
        body.append(
            f'<tr><th scope="row">{_line_title(line)}</th><td>{html.escape(line.metric.replace("_", " "))}</td>'
            f'<td class="num">{counted}</td><td class="num">{number(first.chance, line.metric)}</td>'
            + "".join(_html_cell(line.cells.get(c), line.metric) for c in data.columns)
            + (_change(line) if several else "")
            + "</tr>"
        )
    last = '<th scope="col" class="num">change</th>' if several else ""
    label = html.escape(caption, quote=True)
    return (
        f'<p class="caption">{html.escape(caption)}</p>'
        f'<div class="scroll" tabindex="0" role="region" aria-label="{label}">'
        f'<table aria-label="{label}"><thead><tr>'
        f'<th scope="col">task</th><th scope="col">metric</th><th scope="col" class="num">n</th>'
        f'<th scope="col" class="num">chance</th>{heads}{last}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )
