"""Table of all data sets for the terminal and docs/experiments.md.

* `as_text`, `describe`: the table, and one data set, for the terminal. `update_document`: the table in Markdown.
"""

from pathlib import Path

from m3bind.core.files import replace_between
from m3bind.evaluate.benchmarks.base import Benchmark, get, names

START, END = "<!-- table: written by `m3bind datasets --markdown FILE` -->", "<!-- end of table -->"
_HEADS = ("name", "data set", "modality", "used for", "known size", "licence", "how to get it")


def cells(benchmark: Benchmark, name: str) -> list[str]:
    """One data set as cells, in the order of the heads."""
    sizes = [f"{benchmark.known[split]:,} {split}" for split in ("train", "valid", "test") if split in benchmark.known]
    use = "training and evaluation" if benchmark.role == "both" else benchmark.role
    return [
        name,
        benchmark.title,
        ", ".join(benchmark.modalities),
        use,
        ", ".join(sizes) or "not stated by split",
        benchmark.licence,
        benchmark.access,
    ]


def as_text() -> str:
    """Name, title, modality, use and size, for the terminal."""
    rows = [_HEADS[:5], *(cells(get(name), name)[:5] for name in names())]
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = []
    for row in rows:
        lines.append("  ".join(map(str.ljust, row, widths)).rstrip())
    return "\n".join(lines)


def describe(name: str) -> str:
    """One data set: licence, access, layout, classes, counts, notes."""
    benchmark = get(name)
    parts = [
        f"{benchmark.title} ({', '.join(benchmark.modalities)}; {benchmark.role})",
        f"licence: {benchmark.licence}",
        f"get it: {benchmark.access} {benchmark.url}",
        f"layout:\n{benchmark.layout.strip(chr(10))}",
    ]
    if benchmark.classes:
        parts.append(f"classes: {', '.join(benchmark.classes)}")
    if benchmark.known:
        parts.append("published counts: " + ", ".join(f"{key} {count:,}" for key, count in benchmark.known.items()))
    if benchmark.notes:
        parts.append(f"notes: {benchmark.notes}")
    return "\n\n".join([*parts, f"m3bind prepare {name} --root FOLDER"])


def update_document(path: Path) -> None:
    """Replace the table between the two marks of a Markdown file.

    Raises:
        ConfigError: the file or its marks are missing.
    """
    lines = ["| " + " | ".join(_HEADS) + " |", "|" + "---|" * len(_HEADS)]
    for name in names():
        benchmark = get(name)
        row = [cell.replace("|", "\\|").replace("\n", " ") for cell in cells(benchmark, name)]
        row[1] = f"[{row[1]}]({benchmark.url})" if benchmark.url.startswith("https://") else row[1]
        lines.append("| " + " | ".join(row) + " |")
    replace_between(path, START, END, "\n".join(lines))
