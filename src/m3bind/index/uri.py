"""Opens an index by its URI, the only difference between one folder and a cluster.

    FOLDER                                   embedded, in one folder
    milvus:FILE.db#COLLECTION                Milvus Lite, in one file
    milvus+http://HOST:PORT#COLLECTION       a Milvus server or cluster (also https; token in M3BIND_MILVUS_TOKEN)

The default collection is "m3bind".

* `create_index`, `open_index`, `exists`.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from m3bind.index.base import Index

if TYPE_CHECKING:
    from m3bind.index.embedded import EmbeddedIndex
    from m3bind.index.milvus import MilvusIndex

MILVUS = "milvus"


def create_index(uri: str | Path, dim: int, fingerprint: str, gap_corrected: bool = False) -> Index:
    """A new empty index of d = `dim` numbers, opened for writing.

    Args:
        uri: see above.
        dim: length of the rows.
        fingerprint: of the space of the embeddings (`Space.fingerprint`).
        gap_corrected: the embeddings are without their modality's mean.

    Raises:
        ConfigError: it exists already, or the folder holds other files.
        DiskError: the file system refused.
    """
    return _backend(uri).create(str(uri), dim, fingerprint, gap_corrected)


def open_index(uri: str | Path, writable: bool = False) -> Index:
    """Open an index after verifying its hashes; with `writable`, as its only writer.

    Raises:
        SpaceError: no index, or damaged: names the file and the command that repairs it.
        ConfigError: another process is writing.
    """
    return _backend(uri).open(str(uri), writable)


def exists(uri: str | Path) -> bool:
    """Whether the URI holds an index, or a folder any files."""
    return _backend(uri).exists(str(uri))


def _backend(uri: str | Path) -> "type[EmbeddedIndex | MilvusIndex]":
    if isinstance(uri, str) and uri.startswith((f"{MILVUS}:", f"{MILVUS}+")):
        from m3bind.index.milvus import MilvusIndex

        return MilvusIndex
    from m3bind.index.embedded import EmbeddedIndex

    return EmbeddedIndex
