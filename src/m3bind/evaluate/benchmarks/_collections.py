"""Collections of open data sets that are downloaded and prepared together.

* `COLLECTIONS`: name -> data sets. * `sets_of`: the data sets of a collection, or a single one.
* `prepare_together`: each set's own prepared folder, and one manifest of all.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from m3bind.core.files import write_text
from m3bind.core.stored import read_text
from m3bind.data.tables import csv_text
from m3bind.evaluate.benchmarks.base import COLUMNS, PreparedDataset, get, prepare

COLLECTIONS: Mapping[str, tuple[str, ...]] = {
    "open5": (
        "medmnist_pneumoniamnist", "medmnist_nodulemnist3d", "medmnist_retinamnist", "medmnist_pathmnist", "ptbxl",
    ),
}  # fmt: skip
MAX_MANIFEST = 1 << 30  # bytes of one set's manifest, which `prepare` wrote


def sets_of(name: str) -> tuple[str, ...]:
    """The data sets of the collection `name`; of any other name: itself."""
    return COLLECTIONS.get(name, (name,))


def prepare_together(
    name: str, roots: Mapping[str, Path], out: Path, limit: int | None = None
) -> tuple[list[PreparedDataset], Path]:
    """Prepare data sets into `out`/SET each, and write `out`/`name`/manifest.csv with paths relative to `out`.

    Ids and patients get their set's name in front, since several sets count from 1.

    Args:
        name: of the collection.
        roots: data set -> its folder in the official layout.
        out: folder of all prepared data sets.
        limit: maximum number of rows per set and split.

    Returns:
        The prepared data sets, and the path of the joint manifest.

    Raises:
        ManifestError: a folder is incomplete.
    """
    done = [prepare(get(each), root, out / each, limit) for each, root in roots.items()]
    rows: list[dict[str, str]] = []
    for part in done:
        rows += _joined(part.benchmark, part.manifest)
    path = out / name / "manifest.csv"
    write_text(path, csv_text(COLUMNS, rows))
    return done, path


def _joined(name: str, manifest: Path) -> Sequence[dict[str, str]]:
    """The rows of one set for the joint manifest."""
    rows = list(csv.DictReader(io.StringIO(read_text(manifest, MAX_MANIFEST))))
    for row in rows:
        row["path"] = f"{name}/{row['path']}"
        for column in ("id", "patient", "visit"):
            row[column] = f"{name}/{row[column]}" if row[column] else ""
    return rows
