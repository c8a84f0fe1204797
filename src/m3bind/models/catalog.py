"""All models in one table, from their cards: for the terminal, as JSON, and in docs/models.md.

* `rows`: one `CatalogRow` per registered name. `print_table`, `as_dict`, `as_markdown`: their forms.
* `update_document`: the table in a Markdown file.
"""

import re
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from m3bind.core.files import replace_between
from m3bind.models import registry
from m3bind.models.published import PublishedModel
from m3bind.models.weights.reference import reference_path

START, END = "<!-- table: written by `m3bind models --markdown FILE` -->", "<!-- end of table -->"
_HEADS = ("name", "for", "input", "dim", "licence of code", "licence of weights", "weights and notes", "verified")
_AUTHORS = "authors' code, generated weights"
_OURS = "own tests"
_MAX_CELL = 60  # characters of a cell in the terminal


@dataclass(frozen=True)
class CatalogRow:
    """One model. `weights`: the names of the files and their source."""

    name: str
    use: str
    input: str
    joint_dim: int
    licence_code: str
    licence_weights: str
    weights: str
    verified: str
    source: str
    revision: str
    published: bool
    reference: bool  # whether `m3bind check-model` has a stored reference


def rows() -> list[CatalogRow]:
    """Published models first, each group by name."""
    return sorted(map(_row, registry.names()), key=lambda row: (not row.published, row.name))


def _row(name: str) -> CatalogRow:
    cls, card = registry.get(name), registry.card(name)
    published = issubclass(cls, PublishedModel)
    return CatalogRow(
        name,
        card.use or _use(cls, published),
        card.input,
        card.joint_dim,
        card.licence_code,
        card.licence_weights,
        card.notes.rstrip(".") or "none",
        card.verified or (_AUTHORS if published else _OURS),
        card.source,
        card.revision,
        published,
        reference_path(name).is_file(),
    )


def _use(cls: type, published: bool) -> str:
    """From the first line of the module's docstring: "FLAIR (retina): ResNet-50 ..." -> "retina"."""
    line = (sys.modules[cls.__module__].__doc__ or "").strip().split("\n")[0]
    inside = re.match(r"[^:(]*\(([^)]*)\)", line)
    if published and inside:
        return inside.group(1)
    return re.split(r"[:,(]", line)[0].strip().rstrip(".")


def as_dict(table_rows: list[CatalogRow]) -> dict[str, Any]:
    """For JSON."""
    return {"models": [asdict(row) for row in table_rows]}


def print_table(table_rows: list[CatalogRow]) -> None:
    """Print to the terminal, long cells shortened; `as_dict` and docs/models.md have their full text."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    table = Table(box=SIMPLE, header_style="bold", padding=(0, 1))
    for head in _HEADS:
        table.add_column(head, justify="right" if head == "dim" else "left", no_wrap=head in ("name", "dim"))
    for row in table_rows:
        name, use, shape, dim, *rest = _cells(row)
        shape = re.split(r"[;:,]|(?<=\d) \(| at (?=\d)", shape)[0]
        table.add_row(name, use, shape, dim, *map(_shortened, rest))
    Console(width=None if sys.stdout.isatty() else 180, markup=False, highlight=False).print(table)


def _shortened(text: str) -> str:
    """The first sentence or clause, up to `_MAX_CELL` characters."""
    text = re.split(r"(?<=[\w)'])[.;:] ", text)[0]
    return text if len(text) <= _MAX_CELL else text[: _MAX_CELL - 3].rpartition(" ")[0] + " ..."


def as_markdown(table_rows: list[CatalogRow]) -> str:
    """The table of docs/models.md."""
    lines = ["| " + " | ".join(_HEADS) + " |", "|" + "---|" * len(_HEADS)]
    for row in table_rows:
        cells = [cell.replace("|", "\\|") for cell in _cells(row)]
        if row.source.startswith("https://"):
            cells[0] = f"[{row.name}]({row.source.split()[0].rstrip(',.')})"
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cells(row: CatalogRow) -> list[str]:
    dim = str(row.joint_dim) if row.joint_dim else "any"
    return [row.name, row.use, row.input, dim, row.licence_code, row.licence_weights, row.weights, row.verified]


def update_document(path: Path) -> None:
    """Replace the table between the two marks of a Markdown file.

    Raises:
        ConfigError: the file or its marks are missing.
    """
    replace_between(path, START, END, as_markdown(rows()))
