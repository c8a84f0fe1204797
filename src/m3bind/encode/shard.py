"""A shard that is being encoded: its decoded items and the embeddings of their parts, until all are there.

Shapes: k parts of an item, d dimension of the space.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from m3bind.core.files import sha256_text
from m3bind.encode.decode_pool import DecodedItem
from m3bind.encode.items import Row
from m3bind.encode.journal import Shard
from m3bind.encode.towers import Embedded
from m3bind.models.embedding import Array, correct_gap
from m3bind.space.bundle import Space
from m3bind.space.unlike import UNLIKE, unlike_of


@dataclass
class ShardDraft:
    """A shard that is being encoded."""

    number: int
    rows: list[Row]
    version: str
    prepared: dict[int, DecodedItem] = field(default_factory=dict)  # by position in `rows`, without inputs
    values: dict[int, dict[int, Embedded | str]] = field(
        default_factory=dict
    )  # by position and number; a text: why it failed
    missing: int = 0  # inputs without a value
    full: bool = False  # all rows are decoded

    def take(self, position: int, prepared: DecodedItem) -> list[Tensor]:
        """Record a decoded item; returns its inputs."""
        inputs, prepared.inputs = prepared.inputs, []
        self.prepared[position] = prepared
        self.missing += len(inputs)
        self.full = len(self.prepared) == len(self.rows)
        return inputs

    def put(self, position: int, number: int, value: Embedded | str) -> None:
        """Record the result of one input, or the reason why it failed."""
        self.values.setdefault(position, {})[number] = value
        self.missing -= 1

    def finish(self, space: Space, settings: dict[str, Any]) -> Shard:
        """The shard, with parts averaged and, if set, gaps corrected."""
        items: list[dict[str, str]] = []
        bad: list[dict[str, str]] = []
        doubts: list[dict[str, str]] = []
        rows: list[Array] = []
        parts: list[Array] = []
        part_of: list[int] = []
        places: list[list[float]] = []
        for position, row in enumerate(self.rows):
            prepared, values = self.prepared[position], self.values.get(position, {})
            reasons = [prepared.reason] if prepared.reason else [v for v in values.values() if isinstance(v, str)]
            if reasons:
                bad.append({"path": row["path"], "modality": prepared.modality, "reason": reasons[0]})
                continue
            inputs = [value for _, value in sorted(values.items()) if not isinstance(value, str)]
            own = np.stack([value.row for value in inputs])
            if settings["gap_correct"]:
                own = correct_gap(own, space.image_mean(prepared.modality))
            if prepared.places is not None:
                part_of += [len(items)] * len(own)
                places += [[*place, np.nan][:2] for place in prepared.places]
                parts += [*own] if settings["part_embeddings"] else []
            doubts += [{"path": row["path"], "modality": prepared.modality, "doubt": text} for text in prepared.doubts]
            item = _described(row, prepared.modality, settings["keep"])
            items.append(
                item | ({UNLIKE: unlike_of([value.unlike for value in inputs])} if settings.get(UNLIKE) else {})
            )
            rows.append(_mean(own))
        return Shard(
            rows=np.array(rows, np.float32).reshape(-1, space.dim),
            items=items,
            bad=bad,
            doubts=doubts,
            version=self.version,
            part_of=np.array(part_of, np.int64),
            places=np.array(places, np.float64).reshape(-1, 2),
            part_rows=np.array(parts, np.float32).reshape(-1, space.dim),
        )


def _described(row: Row, modality: str, keep: Sequence[str]) -> dict[str, str]:
    """The stored columns of an item; its id is the record's if in `keep`, else a hash of modality and path."""
    fields = {name: row[name] for name in keep}
    name = fields.pop("id", "") or sha256_text(modality, row["path"])[:32]
    return {"id": name, "modality": modality, "path": row["path"], **fields}


def _mean(rows: Array) -> Array:
    """(k, d) unit rows of the parts of an item -> their mean (d,), normalised."""
    if len(rows) > 1:
        mean = rows.mean(axis=0, dtype=np.float64)
        rows = (mean / max(float(np.linalg.norm(mean)), 1e-12)).astype(np.float32)[None]
    row: Array = rows[0]
    return row
