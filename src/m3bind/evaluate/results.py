"""Results as rows: one figure per row, saved as the list that `results.json` is.

* `Context`: what all rows of one evaluation share; `Context.row` turns an `Estimate` into a `Row`.
* `Row`: protocol, dataset, modality, split, text path, metric, value, interval, n, chance, seed, stage, prompts hash.
* `ResultTable`: rows with load, save and selection.
* `pivot`: before and after, one line per figure, one column per stage (seeds averaged); `headline`: the main lines;
  `console` for the terminal, `html_table` for the page.
"""

import html
import math
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NotRequired
from zipfile import BadZipFile, ZipFile

import numpy as np
from numpy.typing import NDArray
from rich.table import Table
from typing_extensions import TypedDict

from m3bind.core import sums
from m3bind.core.files import atomic_path, write_json
from m3bind.core.stored import checked, read_json
from m3bind.errors import M3BindError, ResultError
from m3bind.evaluate.metrics import Estimate
from m3bind.evaluate.tasks import title as modality_title

STAGES = ("unbound", "closed_form", "aligned", "distilled")
LOW_IS_GOOD = ("median_rank", "ece")
PROTOCOLS = {
    "zero_shot": "Zero-shot classification",
    "image_to_image": "Image to image, across modalities",
    "text_agreement": "Agreement of the text towers",
    "image_to_text": "Image to text",
    "text_to_image": "Text to image",
    "linear_probe": "Linear probe (supervised reference)",
    "few_shot": "Few-shot classification",
    "calibration": "Calibration",
}
_RANKS = ("median_rank",)  # printed with one decimal
_NEUTRAL = ("cos_other", "cos_within", "temperature", "coverage")  # neither high nor low is good by itself
_KEY = ("protocol", "task", "dataset", "modality", "split", "metric", "variant")  # rows that make one line
MOST_REPLICATES = 1 << 28  # bytes of resampled values
_NUMBERS = ("value", "ci_low", "ci_high", "chance")


@dataclass(frozen=True)
class Row:
    """One figure. NaN numbers (a figure that is undefined, a chance level that does not exist) are null in JSON."""

    protocol: str  # a key of `PROTOCOLS`
    dataset: str  # set name(s), joined by "+"
    modality: str  # one name, "a->b" for search across modalities, or "mean"
    split: str
    text_encoder: (
        str  # "teacher" (the modality's own), "teacher:ct" (another's), "student", or "" where no text takes part
    )
    metric: str  # auc | auroc | balanced_accuracy | accuracy | macro_f1 | kappa | R@10 | mrr | median_rank | cos | ...
    value: float
    ci_low: float
    ci_high: float
    n: int
    chance: float
    seed: int = 0
    stage: str = ""  # one of STAGES, or a name of one's own
    prompts: str = ""  # hash of the prompt file
    task: str = ""  # name of the task or concept
    variant: str = ""  # e.g. "gap-corrected"
    gallery: int | None = None  # items searched
    shots: str = ""  # hash of the list of training files (few-shot)
    replicates: NDArray[np.float64] | None = field(default=None, repr=False, compare=False)  # (b,) resampled values


@dataclass(frozen=True)
class Context:
    """What the rows of one evaluation share."""

    dataset: str = ""
    modality: str = ""
    split: str = "test"
    text_encoder: str = ""
    stage: str = ""
    seed: int = 0
    prompts: str = ""
    task: str = ""
    variant: str = ""

    def row(self, protocol: str, metric: str, estimate: Estimate, gallery: int | None = None, **changes: Any) -> Row:
        """A `Row` with this context; `changes` replace fields of it."""
        numbers = {name: float(getattr(estimate, name)) for name in _NUMBERS}
        return Row(
            **{
                **asdict(self),
                **numbers,
                "n": estimate.n,
                "protocol": protocol,
                "metric": metric,
                "gallery": gallery,
                "replicates": estimate.replicates,
                **changes,
            }
        )


@dataclass
class ResultTable:
    """Rows in the order they were measured."""

    rows: list[Row] = field(default_factory=list)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def extend(self, rows: Iterable[Row]) -> None:
        """Append `rows`."""
        self.rows.extend(rows)

    def where(self, **values: Any) -> "ResultTable":
        """The rows whose fields equal `values`."""
        return ResultTable([row for row in self.rows if all(getattr(row, k) == v for k, v in values.items())])

    def one(self, **values: Any) -> Row:
        """The only row whose fields equal `values`.

        Raises:
            M3BindError: none or several.
        """
        found = self.where(**values).rows
        if len(found) != 1:
            raise M3BindError(f"{len(found)} result rows match {values}, expected one; name more fields.")
        return found[0]

    def save(self, path: Path | str) -> None:
        """Write the rows as a JSON list, atomically; numbers that do not exist become null.

        Resampled values go into a file beside it (`.npz`), for paired comparisons of two runs.
        """
        path = Path(path)
        beside = path.with_suffix(".npz")
        kept = {str(i): r.replicates.astype(np.float32) for i, r in enumerate(self.rows) if r.replicates is not None}
        with sums.writing(path.parent, path.name, beside.name):
            if kept:
                with atomic_path(beside) as temporary, open(temporary, "wb") as handle:
                    np.savez_compressed(handle, **kept)  # type: ignore[arg-type]
            else:
                beside.unlink(missing_ok=True)
            write_json(path, [plain(row) for row in self.rows])

    @classmethod
    def load(cls, path: Path | str) -> "ResultTable":
        """Read what `save` wrote; fields a newer version added are ignored.

        Raises:
            ResultError: a file is missing or not as it was written, is no JSON list of rows, or a row lacks a field.
        """
        path = Path(path)
        beside = path.with_suffix(".npz")
        sums.check(path.parent, [path.name, beside.name])
        try:
            rows = [row_of(entry) for entry in checked(list[_Entry], read_json(path), path)]
            if beside.is_file():
                _check_size(beside)
                with np.load(beside, allow_pickle=False) as kept:
                    known = {int(name) for name in kept.files}
                    rows = [replace(r, replicates=kept[str(i)]) if i in known else r for i, r in enumerate(rows)]
            return cls(rows)
        except OSError as error:
            raise ResultError(f"cannot read {path}: {error.strerror}; run `m3bind evaluate` first.") from error
        except (ValueError, TypeError, KeyError, EOFError, MemoryError, BadZipFile, zlib.error):
            raise ResultError(f"{path} is not a list of result rows; run the command that wrote it again.") from None


def plain(row: Row) -> dict[str, Any]:
    """A row as JSON values; numbers that do not exist become null."""
    values = {f.name: getattr(row, f.name) for f in fields(row) if f.name != "replicates"}
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}


class _Entry(TypedDict):
    """A row in JSON; fields a newer version added are left out."""

    protocol: str
    dataset: str
    modality: str
    split: str
    text_encoder: str
    metric: str
    value: float | None
    ci_low: float | None
    ci_high: float | None
    n: int
    chance: float | None
    seed: NotRequired[int]
    stage: NotRequired[str]
    prompts: NotRequired[str]
    task: NotRequired[str]
    variant: NotRequired[str]
    gallery: NotRequired[int | None]
    shots: NotRequired[str]


def _check_size(path: Path) -> None:
    """Refuse a file of resampled values that unpacks to more than it may.

    Raises:
        ValueError: it does.
    """
    with ZipFile(path) as archive:
        if sum(info.file_size for info in archive.infolist()) > MOST_REPLICATES:
            raise ValueError("too large")


def row_of(entry: Mapping[str, Any]) -> Row:
    """What `plain` wrote; fields a newer version added are ignored."""
    known = {f.name for f in fields(Row)}
    values = {k: v for k, v in entry.items() if k in known}
    return Row(**{**values, **{k: float("nan") if values[k] is None else float(values[k]) for k in _NUMBERS}})


# ---------------------------------------------------------------------------------------------- before and after


@dataclass(frozen=True)
class PivotCell:
    """One figure at one stage. Over several seeds: mean, spread (standard deviation) and the widest interval."""

    value: float
    ci_low: float
    ci_high: float
    n: int
    chance: float
    seeds: int = 1
    spread: float = 0.0


@dataclass(frozen=True)
class PivotLine:
    """One figure at all stages; `cells` has a key per column of the pivot that measured it."""

    protocol: str
    task: str
    dataset: str
    modality: str
    split: str
    metric: str
    variant: str
    text_encoder: str  # "" unless another tower's text was used
    cells: Mapping[str, PivotCell]
    gallery: int | None = None

    @property
    def change(self) -> float:
        """Last column measured minus the first; NaN with one column."""
        values = [cell.value for cell in self.cells.values()]
        return values[-1] - values[0] if len(values) > 1 else float("nan")


@dataclass(frozen=True)
class Pivot:
    """Lines (figures) by columns (stages, in the order of training)."""

    columns: tuple[str, ...]
    lines: tuple[PivotLine, ...]


def column(row: Row) -> str:
    """Column a row belongs to: its stage; the student's text has its own ("distilled, student text")."""
    name = row.stage.replace("_", " ") or "measured"
    return f"{name}, student text" if row.text_encoder == "student" else name


def pivot(rows: Iterable[Row]) -> Pivot:
    """Bring rows into lines and stage columns; rows that differ in seed only are averaged."""
    rows = list(rows)
    order = {stage: i for i, stage in enumerate(STAGES)}
    found = {column(row): (order.get(row.stage, len(order)), row.text_encoder == "student") for row in rows}
    columns = sorted(found, key=lambda name: found[name])
    groups: dict[tuple[Any, ...], dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        other = row.text_encoder if row.text_encoder.startswith("teacher:") else ""
        key = (*(getattr(row, name) for name in _KEY), other)
        groups[key][column(row)].append(row)
    lines = []
    for key, cells in groups.items():
        names: dict[str, Any] = dict(zip((*_KEY, "text_encoder"), key))
        size = next(iter(cells.values()))[0].gallery
        lines.append(PivotLine(**names, cells={c: cell_of(cells[c]) for c in columns if c in cells}, gallery=size))
    return Pivot(tuple(columns), tuple(lines))


def cell_of(rows: Sequence[Row]) -> PivotCell:
    """Rows that differ in seed alone as one figure."""
    values = np.array([row.value for row in rows])
    spread = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    low, high = min(row.ci_low for row in rows), max(row.ci_high for row in rows)
    return PivotCell(
        float(values.mean()), low, high, rows[0].n, float(np.mean([r.chance for r in rows])), len(rows), spread
    )


def number(value: float, metric: str = "") -> str:
    """A figure as printed: three decimals, ranks with one, a dash where undefined."""
    if not math.isfinite(value):
        return "–"
    return f"{value:.1f}" if metric in _RANKS else f"{value:.3f}"


def _primary(lines: Sequence[PivotLine]) -> list[PivotLine]:
    """Per zero-shot task the metric that stands for it: AUC with two classes, AUROC with several labels, else ACA."""
    wanted: dict[tuple[str, ...], str] = {}
    for line in lines:
        if line.metric == "auc" or "threshold=" in line.variant:
            wanted[line.task, line.dataset, line.modality] = "auc" if line.metric == "auc" else "auroc"
    usual = "balanced_accuracy"
    return [line for line in lines if line.metric == wanted.get((line.task, line.dataset, line.modality), usual)]


def headline(rows: Iterable[Row]) -> Pivot:
    """The lines that tell the story: zero-shot by task, search across modalities (mean over pairs), text agreement."""
    data = pivot(rows)
    own = [line for line in data.lines if not line.text_encoder]
    kept = _primary([line for line in own if line.protocol == "zero_shot"])
    across = [line for line in own if line.protocol == "image_to_image" and line.modality == "mean"]
    kept += [line for line in across if line.metric in ("auc", "R@10")]
    kept += [line for line in own if line.protocol == "text_agreement"]
    used = {column for line in kept for column in line.cells}
    return Pivot(tuple(column for column in data.columns if column in used), tuple(kept))


def console(rows: Iterable[Row], title: str = "Results", intervals: bool = True) -> Table:
    """The pivot as a rich table for the terminal."""
    data = pivot(rows)
    table = Table(title=title, caption="value [95 % interval]; chance: a scorer without knowledge")
    for name in ("figure", "modality", "metric"):
        table.add_column(name, overflow="fold")
    for name in ("n", "chance", *data.columns, "change"):
        table.add_column(name, justify="right", no_wrap=True)
    for line in data.lines:
        cells = list(line.cells.values())
        change = f"{line.change:+.3f}" if math.isfinite(line.change) else "–"
        name = " ".join(filter(None, (line.protocol.replace("_", " "), line.task, line.variant, line.text_encoder)))
        shown = [_shown(line.cells.get(c), line.metric, intervals) for c in data.columns]
        table.add_row(
            name, line.modality, line.metric, str(cells[0].n), number(cells[0].chance, line.metric), *shown, change
        )
    return table


def _shown(cell: PivotCell | None, metric: str, intervals: bool) -> str:
    if cell is None:
        return "–"
    text = number(cell.value, metric)
    if cell.seeds > 1:
        return f"{text} ± {number(cell.spread, metric)}"
    return f"{text}\n\\[{number(cell.ci_low, metric)}, {number(cell.ci_high, metric)}]" if intervals else text


# ---------------------------------------------------------------------------------------------- page


def _html_cell(cell: PivotCell | None, metric: str) -> str:
    if cell is None:
        return '<td class="num none">–</td>'
    small = f"{number(cell.ci_low, metric)}…{number(cell.ci_high, metric)}"
    if cell.seeds > 1:
        small = f"± {number(cell.spread, metric)} over {cell.seeds} seeds<br>{small}"
    return f'<td class="num">{number(cell.value, metric)}<small>{small}</small></td>'


def _change(line: PivotLine) -> str:
    """Last minus first; called better or worse only when the new value lies outside the first one's interval."""
    if not math.isfinite(line.change):
        return '<td class="num none">–</td>'
    first, *_, last = line.cells.values()
    sure = not first.ci_low <= last.value <= first.ci_high and line.metric not in _NEUTRAL
    better = (line.change > 0) != (line.metric in LOW_IS_GOOD)
    kind, word = (("up", "better") if better else ("down", "worse")) if sure else ("same", "")
    arrow = "▲" if line.change > 0 else "▼" if line.change < 0 else ""
    text = f"{line.change:+.1f}" if line.metric in _RANKS else f"{line.change:+.3f}"
    return f'<td class="num {kind}">{arrow} {text}<small>{word}</small></td>'


def _what(line: PivotLine) -> str:
    parts = [
        line.task.replace("_", " "),
        line.variant,
        f"text of {line.text_encoder.removeprefix('teacher:')}" if line.text_encoder else "",
    ]
    name = " · ".join(html.escape(part) for part in parts if part) or html.escape(
        PROTOCOLS.get(line.protocol, line.protocol)
    )
    return f"{name}<small>{html.escape(_place(line))}</small>"


def _place(line: PivotLine) -> str:
    names = " → ".join(modality_title(m) for m in line.modality.split("->"))
    named = "mean over ordered pairs" if line.protocol == "image_to_image" else "mean over pairs of towers"
    where = named if line.modality == "mean" else names
    if line.task.startswith("student"):
        where = "student and mean teacher"
    return ", ".join(filter(None, (where, line.dataset.replace("+", " + "), line.split)))


def html_table(data: Pivot, caption: str, group: bool = True, change: bool = True) -> str:
    """A pivot as an HTML table that scrolls sideways on small screens.

    `group`: a heading per protocol. `change`: with a last column for last minus first, where columns are stages.
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
        searched = f"<small>of {line.gallery:,}</small>" if line.gallery else ""
        body.append(
            f'<tr><th scope="row">{_what(line)}</th><td>{html.escape(line.metric.replace("_", " "))}</td>'
            f'<td class="num">{first.n:,}{searched}</td><td class="num">{number(first.chance, line.metric)}</td>'
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
        f'<th scope="col">figure</th><th scope="col">metric</th><th scope="col" class="num">n</th>'
        f'<th scope="col" class="num">chance</th>{heads}{last}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )
