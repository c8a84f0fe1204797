"""A data set for evaluation: the records of a prepared folder, or of some sets of any manifest.

* `DatasetSource`: its location. `Dataset`: its records by split. `load_dataset`: from one to the other.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from m3bind.core.files import sha256_file, sha256_text
from m3bind.core.stored import Strict
from m3bind.data.manifest import read_manifest
from m3bind.data.records import BadRow, Record
from m3bind.errors import ManifestError


class DatasetSource(Strict, frozen=True):
    """Location of a data set: the manifest that `m3bind prepare` wrote, or any manifest and the sets to use from it."""

    manifest: str
    sets: tuple[str, ...] = ()  # values of the column `set`; empty: all
    root: str | None = None


@dataclass(frozen=True)
class Dataset:
    """Records with their splits; `hash` is of the manifest and the choice of sets."""

    name: str
    records: Sequence[Record]
    bad: Sequence[BadRow]
    hash: str

    @cached_property
    def modalities(self) -> tuple[str, ...]:
        """Names of the modalities present."""
        return tuple(dict.fromkeys(record.modality for record in self.records))

    def split(self, name: str, modality: str = "") -> list[Record]:
        """The records of a split; with `modality` only those of that modality."""
        return [r for r in self.records if r.split == name and modality in ("", r.modality)]


def load_dataset(name: str, source: DatasetSource) -> Dataset:
    """The data set of `source`.

    Raises:
        ManifestError: the manifest is missing; the message states how to prepare it.
    """
    path = Path(source.manifest)
    if not path.is_file():
        raise ManifestError(f"{path}: file not found; create it with: m3bind prepare {name} --root FOLDER")
    manifest = read_manifest(path, root=source.root, sets=source.sets or None)
    return Dataset(name, manifest.records, manifest.bad, sha256_text(sha256_file(path), *source.sets))
