"""Summary of an index: items per modality, size, pending changes.

* `summary`: as JSON values. * `as_text`: as a few lines.
"""

from pathlib import Path
from typing import Any

from m3bind.index.base import Index


def about(index: Index) -> dict[str, Any]:
    """JSON values that describe an index; `bytes` of one in a folder include files not yet removed."""
    folder = Path(index.uri)
    return {
        "uri": index.uri,
        "items": len(index),
        "modalities": index.counts(),
        "dim": index.dim,
        "columns": index.columns,
        "space": index.fingerprint,
        "gap_corrected": index.gap_corrected,
        "pending": index.pending,
        "notes": sorted(index.metadata),
        "bytes": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else None,
    }


def as_text(summary: dict[str, Any]) -> str:
    """A few lines."""
    size = "" if summary["bytes"] is None else f", {summary['bytes'] / 2**20:.1f} MiB"
    lines = [f"{summary['uri']}: {summary['items']} items of {summary['dim']} numbers{size}"]
    lines += [f"  {name}: {n}" for name, n in summary["modalities"].items()]
    lines.append(f"columns {', '.join(summary['columns'])}; space {summary['space'][:12]}")
    if summary["gap_corrected"]:
        lines.append("without the modalities' means (gap-corrected)")
    if summary["pending"]:
        lines.append(f"{summary['pending']} changes are searched beside the committed segment; --commit merges them")
    return "\n".join(lines)
