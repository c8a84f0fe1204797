"""All data sets in one table, from their files: for the terminal and docs/experiments.md."""

from pathlib import Path

from m3bind.core.files import replace_between
from m3bind.evaluate.benchmarks.base import Benchmark, get, names

START, END = "<!-- table: written by `m3bind datasets --markdown FILE` -->", "<!-- end of table -->"
_HEADS = ("name", "data set", "modality", "used for", "known size", "licence", "how to get it")


def cells(benchmark: Benchmark, name: str) -> list[str]:
    """One data set as texts, in the order of the heads."""
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
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths)).rstrip() for row in rows)


def describe(name: str) -> str:
    """Everything about one data set: licence, how to get it, layout, odd cases."""
    one = get(name)
    parts = [
        f"{one.title} ({', '.join(one.modalities)}; {one.role})",
        f"licence: {one.licence}",
        f"get it: {one.access} {one.url}",
        f"layout:\n{one.layout.strip(chr(10))}",
    ]
    if one.classes:
        parts.append(f"classes: {', '.join(one.classes)}")
    if one.known:
        parts.append("published counts: " + ", ".join(f"{key} {count:,}" for key, count in one.known.items()))
    if one.notes:
        parts.append(f"notes: {one.notes}")
    return "\n\n".join([*parts, f"m3bind prepare {name} --root FOLDER"])


def update_document(path: Path) -> None:
    """Replace the table between the two marks of a Markdown file.

    Raises:
        ConfigError: the file or its marks are missing.
    """
    lines = ["| " + " | ".join(_HEADS) + " |", "|" + "---|" * len(_HEADS)]
    for name in names():
        one = get(name)
        shown = [cell.replace("|", "\\|").replace("\n", " ") for cell in cells(one, name)]
        shown[1] = f"[{shown[1]}]({one.url})" if one.url.startswith("https://") else shown[1]
        lines.append("| " + " | ".join(shown) + " |")
    replace_between(path, START, END, "\n".join(lines))
