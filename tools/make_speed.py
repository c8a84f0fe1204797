"""The tables of docs/speed.md from what benchmarks/gpu.py measured.

    python tools/make_speed.py runs/gpu/gpu.json docs/speed.md      replaces what is between the page's markers

A page without markers, or one that is not there yet, becomes the tables alone.
"""

import json
import sys
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
COLUMNS = {  # of a row: heading and form of its numbers
    "tflops": ("TFLOP/s", "{:,.0f}"),
    "ms": ("ms", "{:,.1f}"),
    "ms_new_shape": ("ms, new shape", "{:,.1f}"),
    "items_per_s": ("items/s", "{:,.0f}"),
    "files_per_s": ("files/s", "{:,.0f}"),
    "mb_per_s": ("MB/s", "{:,.0f}"),
    "share_of_rate": ("share of the matrix rate", "{:.0%}"),
    "waiting": ("waiting for data", "{:.0%}"),
    "peak_gb": ("peak GB", "{:,.1f}"),
    "cosine": ("smallest cosine", "{:.5f}"),
}


def tables(result: dict[str, Any]) -> str:
    """Markdown of all sections."""
    known = result["conditions"]
    where = known.get("gpu", known["device"])
    lines = [f"{where}, {known['cores']} cores, torch {known['torch']}, transformers {known['transformers']}, "
             f"{known['date']}. Median of the runs; random weights and inputs."]  # fmt: skip
    if result["tiny"]:
        lines.append("\n**A test of the script on small networks: no measurement.**")
    for name, section in result["sections"].items():
        lines += ["", f"### {name.replace('_', ' ').capitalize()}", "", " ".join(section["about"].split()), ""]
        lines += _table(section["rows"])
    if result["failed"]:
        lines += ["", "Not measured:", "", *(f"* {failure}" for failure in result["failed"])]
    return "\n".join(lines) + "\n"


def _table(rows: list[dict[str, Any]]) -> list[str]:
    used = [key for key in COLUMNS if any(key in row for row in rows)]
    lines = ["| | " + " | ".join(COLUMNS[key][0] for key in used) + " |", "|---|" + "---:|" * len(used)]
    for row in rows:
        cells = [COLUMNS[key][1].format(row[key]) if key in row else "" for key in used]
        lines.append(f"| {row['form']}{' (failed)' if 'error' in row else ''} | " + " | ".join(cells) + " |")
    return lines


def main(source: str, page: str) -> None:
    """Write the tables of the JSON file `source` into `page`."""
    target, text = Path(page), tables(json.loads(Path(source).read_text()))
    old = target.read_text() if target.is_file() else ""
    if BEGIN in old and END in old:
        before, _, rest = old.partition(BEGIN)
        text = f"{before}{BEGIN}\n\n{text}\n{END}{rest.partition(END)[2]}"
    target.write_text(text)


if __name__ == "__main__":
    main(*sys.argv[1:])
