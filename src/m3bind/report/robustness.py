"""The section "Robustness" of the report: test files passed through shifts.

* `robustness_section`: a plot and a table of `evaluate/robustness.py`'s rows, as HTML.
"""

import html
from collections.abc import Iterable, Sequence
from itertools import groupby

from matplotlib.figure import Figure

from m3bind.evaluate.pivot import number
from m3bind.evaluate.results import Row
from m3bind.evaluate.robustness import RobustnessLine, robustness_lines
from m3bind.evaluate.tasks import title
from m3bind.report.page import figure
from m3bind.report.plots import Plot, Theme, color, draw

LOSS = 0.05  # of the metric, from which a shift is named in the plot,
FLAGGED = 0.9  # unless at least this share of the files is flagged
INTRODUCTION = (
    "Every test file as shipped and under each shift. Flagged: unlike the training data, so classification abstains. "
    "ECE: expected calibration error of all files with the model's scale, then of answered ones (not flagged) with the "
    "space's temperature. Change: to the files as shipped, with the half-width of its 95 % interval."
)
HEADS = ("value", "change", "flagged", "ECE, all", "ECE, answered")


def robustness_section(rows: Iterable[Row]) -> str:
    """Empty without rows."""
    lines = robustness_lines(rows)
    if not lines:
        return ""
    caption = "Below 0 and to the left: shifts that make answers worse and are not flagged."
    plot = figure(robustness_plot(lines), "Change of the metric and share flagged", caption)
    return f'<p class="caption">{INTRODUCTION}</p><div class="plots">{plot}</div>{_table(lines)}'


def robustness_plot(lines: Sequence[RobustnessLine]) -> Plot:
    """One marker per task and shift: share of flagged files, change of the metric."""
    shifted = [(line, line.change.change) for line in lines if line.change is not None]
    large = [(line, change) for line, change in shifted if change < -LOSS]

    def paint(picture: Figure, theme: Theme) -> None:
        axes = picture.subplots()
        for modality in dict.fromkeys(line.row.modality for line, _ in shifted):
            own = [(line.flagged, change) for line, change in shifted if line.row.modality == modality]
            flagged, changes = zip(*own)
            axes.scatter(flagged, changes, color=color(modality), label=title(modality), s=24)
        for line, change in large:
            if line.flagged >= FLAGGED:
                continue
            axes.annotate(line.row.variant, (line.flagged, change), (4, 2), textcoords="offset points", fontsize=7)
        axes.axhline(0, color=theme.grid)
        axes.set(xlabel="share flagged as unlike the training data", ylabel="change of the metric", xlim=(-0.03, 1.2))
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
        axes.grid(color=theme.grid, linewidth=0.6)
        picture.legend(*axes.get_legend_handles_labels(), loc="outside lower center", fontsize=8, ncols=3)

    silent = sum(line.flagged < 0.5 for line, _ in large)
    alt = (
        f"{len(shifted)} tasks under shifts: the metric falls by more than {LOSS} in {len(large)}, "
        f"of which fewer than half of the files are flagged in {silent}."
    )
    return draw(paint, alt, (6.4, 4.8))


def _table(lines: Sequence[RobustnessLine]) -> str:
    heads = "".join(f'<th scope="col" class="num">{head}</th>' for head in HEADS)
    body = []
    for (modality, task), group in groupby(lines, lambda line: (line.row.modality, line.row.task)):
        own = list(group)
        name = f"{title(modality)}: {task.replace('_', ' ')}, {own[0].row.metric.replace('_', ' ')}, n {own[0].row.n:,}"
        heading = f'<th colspan="{1 + len(HEADS)}" scope="colgroup"><span>{html.escape(name)}</span></th>'
        body += [f'<tr class="group">{heading}</tr>', *map(_table_row, own)]
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Robustness"><table aria-label="Robustness"><thead>'
        f'<tr><th scope="col">shift</th>{heads}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'
    )


def _table_row(line: RobustnessLine) -> str:
    row, change, kind, moved = line.row, line.change, "num", ""
    if change is not None:
        kind += (" up" if change.better else " down") if change.significant else ""
        moved = f"{change.change:+.3f}<small>± {number(change.half_width)}</small>"
    cells = (
        f"{number(row.value)}<small>{number(row.ci_low)}…{number(row.ci_high)}</small>",
        f"{line.flagged:.0%}",
        number(line.ece),
        number(line.ece_answered),
    )
    value, *others = (f'<td class="num">{cell}</td>' for cell in cells)
    named = f'<th scope="row">{html.escape(row.variant)}</th>'
    return f'<tr>{named}{value}<td class="{kind}">{moved}</td>{"".join(others)}</tr>'
