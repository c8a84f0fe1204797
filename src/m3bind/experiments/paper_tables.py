"""The paper's tables and ours: values, differences, intervals, differences of the set-up, missing cells with reasons.

* `as_text`: for the terminal. * `write_page`: tables.html. * `coverage`: data set x protocol. * `few_shot_plots`:
  accuracy against shots (the paper's Figure 3). * `significance`: each line against its block's reference, paired.
* `ours`: our result of a cell. * `conflicts`, `contaminated`: notes on the paper's values and on training data.
"""

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from matplotlib.figure import Figure

from m3bind.core.files import write_text
from m3bind.evaluate.compare import Difference, holm, paired
from m3bind.evaluate.pivot import cell_of, html_table, pivot
from m3bind.evaluate.results import Row
from m3bind.evaluate.tables import Block, TableFile
from m3bind.experiments.suite import TableCell
from m3bind.report.page import Section, figure, page
from m3bind.report.plots import Plot, Theme, draw
from m3bind.report.text_table import aligned

SHAPES = "osD^vP*X"


@dataclass(frozen=True)
class OurResult:
    """Our value in the paper's units: mean over seeds, spread, interval of the bootstrap (patients)."""

    value: float
    spread: float | None
    low: float
    high: float
    n: str  # files, and patients
    chance: float
    gallery: int | None


def ours(cell: TableCell) -> OurResult | None:
    """Our result of a cell; None if it is missing."""
    if not cell.rows:
        return None
    mean, scale = cell_of(cell.rows), 100.0 if cell.column.percent else 1.0
    spread = mean.spread * scale if mean.seeds > 1 else None
    values = (mean.value * scale, mean.ci_low * scale, mean.ci_high * scale, mean.chance * scale)
    return OurResult(values[0], spread, values[1], values[2], mean.counted, values[3], cell.rows[0].gallery)


def _number(value: float | None, percent: bool) -> str:
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:.2f}" if percent else f"{value:.3f}"


def _paper(cell: TableCell) -> str:
    if cell.paper is None:
        return "–"
    scale = 100 if cell.column.percent else 1
    text = _number(cell.paper.value * scale, cell.column.percent)
    if cell.paper.std is not None:
        text += f" ± {_number(cell.paper.std * scale, cell.column.percent)}"
    return text + (" [!]" if cell.paper.conflict else "")


def _mine(mine: OurResult, percent: bool) -> str:
    return _number(mine.value, percent) + (f" ± {_number(mine.spread, percent)}" if mine.spread is not None else "")


def _difference(cell: TableCell, mine: OurResult) -> str:
    if cell.paper is None:
        return "–"
    change = mine.value - cell.paper.value * (100 if cell.column.percent else 1)
    return f"{change:+.2f}" if cell.column.percent else f"{change:+.3f}"


def significance(cells: Sequence[TableCell]) -> dict[tuple[int, str, str, str], Difference]:
    """Table, block, method and column -> the cell minus the block's reference line; p corrected (Holm) per table."""
    tested: dict[tuple[int, str, str, str], Difference] = {}
    for number, group in groupby(cells, key=lambda cell: cell.table.number):
        place = {(c.block.name, c.line.method, c.column.name): c for c in group}
        differences: dict[tuple[int, str, str, str], Difference] = {}
        for (block, method, column), cell in place.items():
            reference = cell.block.reference or cell.block.rows[-1].method
            other = place[block, reference, column]
            if method != reference and cell.rows and other.rows:
                differences[number, block, method, column] = paired(other.rows, cell.rows)
        corrected = holm([d.p for d in differences.values()])
        tested |= {key: replace(d, p=p) for (key, d), p in zip(differences.items(), corrected)}
    return tested


def _key(cell: TableCell) -> tuple[int, str, str, str]:
    return cell.table.number, cell.block.name, cell.line.method, cell.column.name


def _against(cell: TableCell, difference: Difference | None) -> str:
    """The difference to the reference line as text; "" for the reference itself."""
    if difference is None:
        return ""
    change = difference.change * (100 if cell.column.percent else 1)
    text = f"{change:+.2f}" if cell.column.percent else f"{change:+.3f}"
    if difference.why:
        return f"{text} ({difference.why})"
    scale = 100 if cell.column.percent else 1
    width = _number(difference.half_width * scale, cell.column.percent)
    return f"{text}, p {difference.p:.2g}" + (" *" if difference.significant else f", not resolved (±{width})")


def conflicts(cells: Iterable[TableCell]) -> list[str]:
    """Contradicting statements of the paper about its values, one sentence per cell."""
    return [f"{cell.title}: {cell.paper.conflict}" for cell in cells if cell.paper and cell.paper.conflict]


def contaminated(cells: Iterable[TableCell]) -> list[str]:
    """Methods and data sets that the models were trained on, by their cards."""
    return list(dict.fromkeys(f"{c.line.method}, {c.column.dataset}: {', '.join(c.seen)}" for c in cells if c.seen))


def _blocks(cells: Sequence[TableCell]) -> list[tuple[int, str, Block, list[TableCell]]]:
    groups = groupby(cells, key=lambda cell: (cell.table.number, cell.table.title, cell.block.name))
    return [(number, title, (own := list(part))[0].block, own) for (number, title, _), part in groups]


# ---- for the terminal ------------------------------------------------------------------------------------------------


def as_text(cells: Sequence[TableCell]) -> str:
    """Every cell: paper | ours | difference | interval, or the reason why it is missing; conflicts and notes below."""
    lines: list[str] = []
    differences = significance(cells)
    for number, title, block, part in _blocks(cells):
        lines += ["", f"Table {number}, {block.name} ({title})"]
        rows = [("method", "metric", "paper", "ours", "difference", "interval", "n", "chance", "against the reference")]
        for cell in part:
            mine = ours(cell)
            head = (cell.line.method, cell.column.name, _paper(cell))
            if mine is None:
                rows.append((*head, "missing", "", "", "", "", ""))
                continue
            percent = cell.column.percent
            values = (
                _mine(mine, percent),
                _difference(cell, mine),
                f"{_number(mine.low, percent)} to {_number(mine.high, percent)}",
                mine.n,
                _number(mine.chance, percent),
                _against(cell, differences.get(_key(cell))),
            )
            rows.append((*head, *values))
        lines += [f"  {row}" for row in aligned(rows)]
        lines += [f"  note: {block.note}"] if block.note else []
        lines += [f"  note: {line.method}: {line.note}" for line in block.rows if line.note]
        lines += [f"  [!] {text}" for text in conflicts(part)]
        lines += [f"  seen in training: {text}" for text in contaminated(part)]
        reasons = {f"{cell.line.model}: {cell.missing}": None for cell in part if cell.missing}
        lines += [f"  missing: {reason}" for reason in reasons]
    computed = sum(bool(cell.rows) for cell in cells)
    how = "reference: the line without a test; * p < .05, paired bootstrap over patients and seeds, Holm per table"
    return "\n".join([*lines[1:], "", how, f"{computed} of {len(cells)} cells computed"])


# ---- coverage --------------------------------------------------------------------------------------------------------


def coverage(cells: Sequence[TableCell]) -> dict[tuple[str, str], tuple[int, int]]:
    """(data set, protocol) -> cells computed, cells of the paper."""
    counts: dict[tuple[str, str], tuple[int, int]] = {}
    for cell in cells:
        key = (cell.column.dataset, cell.line.protocol or cell.column.protocol)
        computed, total = counts.get(key, (0, 0))
        counts[key] = (computed + bool(cell.rows), total + 1)
    return counts


def coverage_text(cells: Sequence[TableCell]) -> str:
    """The same as a table: one line per data set, one column per protocol, "computed/total"."""
    protocols, counts = _coverage_rows(cells)
    rows = [["data set", *protocols]]
    for name, parts in counts:
        rows.append([name, *(f"{part[0]}/{part[1]}" if part else "" for part in parts)])
    return "\n".join(aligned(rows))


def _coverage_rows(cells: Sequence[TableCell]) -> tuple[list[str], list[tuple[str, list[tuple[int, int] | None]]]]:
    """The names of the protocols, and each data set with its counts per protocol."""
    counts = coverage(cells)
    protocols = list(dict.fromkeys(protocol for _, protocol in counts))
    rows = [(name, [counts.get((name, p)) for p in protocols]) for name in dict.fromkeys(name for name, _ in counts)]
    return [p.replace("_", " ") for p in protocols], rows


# ---- page ------------------------------------------------------------------------------------------------------------


def write_page(
    cells: Sequence[TableCell], tables: TableFile, folder: Path, name: str, calibration: Sequence[Row] = ()
) -> Path:
    """folder/tables.html with every table, few-shot plots, calibration, coverage and conflicts; returns its path."""
    sections: list[Section] = []
    differences = significance(cells)
    for number, group in groupby(_blocks(cells), key=lambda part: part[0]):
        parts = list(group)
        body = "".join(_html_block(block, own, differences) for _, _, block, own in parts)
        sections.append((f"table{number}", f"Table {number}. {parts[0][1]}", body))
    plots = few_shot_plots(cells)
    if plots:
        body = "".join(figure(plot, heading) for heading, plot in plots.items())
        sections.append(("shots", "Accuracy against shots", f'<div class="plots">{body}</div>'))
    if calibration:
        text = "Calibration of zero-shot probabilities"
        sections.append(("calibration", "Calibration", html_table(pivot(calibration), text, group=False, change=False)))
    sections.append(("coverage", "Coverage", _html_coverage(cells)))
    known = [*tables.notes, *conflicts(cells)]
    if known:
        items = "".join(f"<li>{html.escape(text)}</li>" for text in known)
        sections.append(("conflicts", "Contradictions within the paper", f"<ul>{items}</ul>"))
    computed = sum(bool(cell.rows) for cell in cells)
    notes = [
        f"{computed} of {len(cells)} cells computed; intervals are 95 % bootstrap intervals over patients.",
        "To reference: difference to the line without a test; *: p < .05 in a paired bootstrap over patients and "
        "training seeds (if several), corrected by Holm's method within a table.",
    ]
    target = folder / "tables.html"
    write_text(target, page(name, sections, kind="m3bind experiments", notes=notes))
    return target


def _html_block(
    block: Block, cells: Sequence[TableCell], differences: Mapping[tuple[int, str, str, str], Difference]
) -> str:
    heads = "".join(f'<th scope="col" class="num">{html.escape(column.name)}</th>' for column in block.columns)
    body = []
    for _, group in groupby(cells, key=lambda cell: cell.line.method):
        line = list(group)
        shown = "".join(_html_cell(cell, differences.get(_key(cell))) for cell in line)
        note = f"<small>{html.escape(line[0].line.note)}</small>" if line[0].line.note else ""
        body.append(f'<tr><th scope="row">{html.escape(line[0].line.method)}{note}</th>{shown}</tr>')
    reasons = {f"{cell.line.model}: {cell.missing}": None for cell in cells if cell.missing}
    missing = "".join(f"<li>{html.escape(reason)}</li>" for reason in reasons)
    seen = "; ".join(contaminated(cells))
    label = html.escape(block.name, quote=True)
    return (
        f"<h3>{html.escape(block.name)}</h3>"
        + (f'<p class="caption">{html.escape(block.note)}</p>' if block.note else "")
        + f'<div class="scroll" tabindex="0" role="region" aria-label="{label}"><table aria-label="{label}"><thead><tr>'
        f'<th scope="col">method</th>{heads}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'
        + (f'<p class="caption">Seen in training: {html.escape(seen)}</p>' if seen else "")
        + (f"<details><summary>Missing ({len(reasons)})</summary><ul>{missing}</ul></details>" if reasons else "")
    )


def _html_cell(cell: TableCell, test: Difference | None) -> str:
    mine, percent = ours(cell), cell.column.percent
    printed = f"<small>paper {html.escape(_paper(cell))}</small>" if cell.paper else ""
    if mine is None:
        return f'<td class="num none">missing{printed}</td>'
    parts = [f"{_number(mine.low, percent)}…{_number(mine.high, percent)}"]
    parts.append(f"n {mine.n}" + (f", {mine.gallery:,} searched" if mine.gallery else ""))
    parts.append(f"chance {_number(mine.chance, percent)}")
    change = f"<small>difference {_difference(cell, mine)}</small>" if cell.paper else ""
    small = "".join(f"<small>{part}</small>" for part in parts)
    if test is not None:
        kind = ("up" if test.better else "down") if test.significant else "same"
        small += f'<small class="{kind}">to reference {html.escape(_against(cell, test))}</small>'
    return f'<td class="num">{_mine(mine, percent)}{small}{printed}{change}</td>'


def _html_coverage(cells: Sequence[TableCell]) -> str:
    protocols, counts = _coverage_rows(cells)
    heads = "".join(f'<th scope="col" class="num">{html.escape(p)}</th>' for p in protocols)
    body = ""
    for name, parts in counts:
        shown = "".join(
            '<td class="num none">–</td>' if part is None else f'<td class="num">{part[0]} of {part[1]}</td>'
            for part in parts
        )
        body += f'<tr><th scope="row">{html.escape(name)}</th>{shown}</tr>'
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="coverage"><table aria-label="coverage"><thead><tr>'
        f'<th scope="col">data set</th>{heads}</tr></thead><tbody>{body}</tbody></table></div>'
    )


# ---- Figure 3 --------------------------------------------------------------------------------------------------------


def few_shot_plots(cells: Sequence[TableCell]) -> dict[str, Plot]:
    """Heading -> plot of a metric against the amount of training data, a line per method, the paper's values dashed.

    One plot for each data set, task and metric with at least one of our values.
    """
    groups: dict[tuple[str, str, str], list[TableCell]] = {}
    for cell in cells:
        if cell.column.protocol == "few_shot":
            name = f"{cell.column.dataset}, {cell.column.task.replace('_', ' ')}"
            groups.setdefault((name, cell.column.metric, cell.column.unit), []).append(cell)
    plots: dict[str, Plot] = {}
    for (name, metric, unit), part in groups.items():
        if any(cell.rows for cell in part):
            plots[f"{name}, {metric.replace('_', ' ')}"] = few_shot_plot(part, name, metric, unit)
    return plots


def few_shot_plot(cells: Sequence[TableCell], name: str, metric: str, unit: str) -> Plot:
    """The plot of one data set, task and metric."""
    methods = list(dict.fromkeys(cell.line.method for cell in cells))
    amounts = sorted({cell.column.amount for cell in cells})
    label = "training examples per class" if unit == "shot" else "per cent of the training data"

    def paint(canvas: Figure, theme: Theme) -> None:
        axes = canvas.add_subplot()
        for i, method in enumerate(methods):
            mine = {c.column.amount: c for c in cells if c.line.method == method}
            color = theme.hues[i % len(theme.hues)]
            place = [a for a in amounts if a in mine and mine[a].rows]
            means = [cell_of(mine[a].rows) for a in place]
            axes.errorbar(
                place, [m.value for m in means], [m.spread for m in means], color=color, marker=SHAPES[i % len(SHAPES)],
                label=method, capsize=3,
            )  # fmt: skip
            theirs = {a: p for a in amounts if a in mine and (p := mine[a].paper)}
            axes.plot(
                list(theirs), [p.value for p in theirs.values()], color=color, linestyle="--", linewidth=1,
                marker=SHAPES[i % len(SHAPES)], markerfacecolor="none", alpha=0.7,
            )  # fmt: skip
        axes.set_xscale("symlog", linthresh=1)
        axes.set_xticks(amounts, [str(a) for a in amounts])
        axes.set_xlabel(label)
        axes.set_ylabel(metric.replace("_", " "))
        axes.legend(fontsize=8)

    last = [(c.line.method, cell_of(c.rows).value) for c in cells if c.rows and c.column.amount == amounts[-1]]
    best = max(last, key=lambda pair: pair[1], default=("none", float("nan")))
    alt = (
        f"{metric} on {name} against {label} for {len(methods)} methods; at {amounts[-1]} the highest of ours is "
        f"{best[0]} with {best[1]:.3f}. Dashed: the paper's values."
    )
    return draw(paint, alt)
