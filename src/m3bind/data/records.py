"""The content of a manifest: `Record` (a usable row), `BadRow` (a quarantined one), `Manifest` (all rows)."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from m3bind.privacy import redact_path

SPLITS = ("train", "valid", "test")  # by ascending precedence: a patient in two splits belongs to the later one


@dataclass(frozen=True)
class Record:
    """One file with its texts. `captions[0]` is the canonical text; `concepts` are shared across modalities."""

    id: str
    modality: str
    path: Path
    label: str
    labels: tuple[str, ...]
    captions: tuple[str, ...]
    concepts: tuple[str, ...]
    patient: str
    split: str
    set: str
    visit: str = ""  # files of one visit belong together; "" if unknown
    rescale: tuple[float, float] | None = None  # slope and intercept that a CT's values still need
    row: int = field(default=0, compare=False)  # of the manifest, as in `BadRow`


@dataclass(frozen=True)
class BadRow:
    """A quarantined row. `row` is its line in the file (CSV, JSONL; the header is 1) or its count (Parquet)."""

    row: int
    reason: str
    path: str = ""
    kind: str = ""  # type of fault, common to several rows


@dataclass
class Manifest:
    """The content of a manifest: usable records and quarantined rows."""

    records: list[Record]
    bad: list[BadRow]
    path: Path = field(default_factory=Path)
    notes: list[str] = field(default_factory=list)  # merged labels, and patients that may be identical

    def counts(self) -> dict[str, dict[str, int]]:
        """Number of records: modality -> split -> count."""
        table: dict[str, dict[str, int]] = {}
        for r in self.records:
            table.setdefault(r.modality, dict.fromkeys(SPLITS, 0))[r.split] += 1
        return table

    def report(self, limit: int = 20) -> str:
        """Counts by modality, then the quarantined rows (`format_bad_rows`)."""
        lines = [f"{self.path.name}: {len(self.records)} usable rows"]
        for modality, splits in self.counts().items():
            lines.append(f"  {modality}: " + ", ".join(f"{n} {split}" for split, n in splits.items() if n))
        lines += [f"  ! {note}" for note in self.notes]
        return "\n".join(lines + ([format_bad_rows(self.bad, limit)] if self.bad else []))


def format_bad_rows(bad: Sequence[BadRow], limit: int = 20) -> str:
    """The first `limit` quarantined rows with their reasons, and the number of each kind."""
    if not bad:
        return "no bad rows"
    counts = Counter(row.kind or "other" for row in bad)
    kinds = ", ".join(f"{count} {kind}" for kind, count in counts.most_common())
    lines = [f"{len(bad)} rows quarantined ({kinds})"]
    for row in sorted(bad, key=lambda row: row.row)[:limit]:
        lines.append(f"  row {row.row}: {row.reason}" + (f"  [{redact_path(row.path)}]" if row.path else ""))
    if len(bad) > limit:
        lines.append(f"  ... and {len(bad) - limit} more")
    return "\n".join(lines)
