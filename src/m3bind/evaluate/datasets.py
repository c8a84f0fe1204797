"""A data set ready to be measured on: the records of a prepared folder, or of some sets of any manifest.

* `DatasetSource`: where it is. * `Dataset`: its records by split. * `load_dataset`.
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
    """Where a data set is: a folder that `m3bind prepare` wrote, or a manifest and the sets to take from it."""

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
        """Names of the modalities that occur."""
        return tuple(dict.fromkeys(record.modality for record in self.records))

    def split(self, name: str, modality: str = "") -> list[Record]:
        """The records of a split, of one modality where it is given."""
        return [r for r in self.records if r.split == name and modality in ("", r.modality)]


def load_dataset(name: str, source: DatasetSource) -> Dataset:
    """The data set of `source`.

    Raises:
        ManifestError: there is no manifest; says how to prepare one.
    """
    path = Path(source.manifest)
    if not path.is_file():
        raise ManifestError(f"{path}: not there; make it with: m3bind prepare {name} --root FOLDER")
    found = read_manifest(path, root=source.root, sets=source.sets or None)
    return Dataset(name, found.records, found.bad, sha256_text(sha256_file(path), *source.sets))
