"""Where an index lives, by its URI; nothing else changes between one folder and a cluster.

    FOLDER                                   embedded, in one folder
    milvus:FILE.db#COLLECTION                Milvus Lite, in one file
    milvus+http://HOST:PORT#COLLECTION       a Milvus server or cluster (also https; token in M3BIND_MILVUS_TOKEN)

The collection may be left out: "m3bind".

* `create_index`, `open_index`, `exists`.
"""

from pathlib import Path

from m3bind.index.base import Index

MILVUS = "milvus"


def create_index(uri: str | Path, dim: int, fingerprint: str, gap_corrected: bool = False) -> Index:
    """A new empty index of d = `dim` numbers, opened for writing.

    Args:
        uri: see above.
        dim: length of the rows.
        fingerprint: of the space that makes the embeddings (`Space.fingerprint`).
        gap_corrected: the embeddings are without their modality's mean.

    Raises:
        ConfigError: something is there already.
        DiskError: the file system refused.
    """
    if _is_milvus(uri):
        from m3bind.index.milvus import MilvusIndex

        return MilvusIndex.create(str(uri), dim, fingerprint, gap_corrected)
    from m3bind.index.embedded import EmbeddedIndex

    return EmbeddedIndex.create(uri, dim, fingerprint, gap_corrected)


def open_index(uri: str | Path, writable: bool = False) -> Index:
    """Open an index after verifying its hashes; with `writable`, as its one writer.

    Raises:
        SpaceError: there is no index, or it is damaged: names the file and the command that repairs it.
        ConfigError: another process is writing.
    """
    if _is_milvus(uri):
        from m3bind.index.milvus import MilvusIndex

        return MilvusIndex.open(str(uri), writable)
    from m3bind.index.embedded import EmbeddedIndex

    return EmbeddedIndex.open(uri, writable)


def exists(uri: str | Path) -> bool:
    """Whether an index is there."""
    if _is_milvus(uri):
        from m3bind.index.milvus import MilvusIndex

        return MilvusIndex.exists(str(uri))
    return Path(uri).is_dir() and any(Path(uri).iterdir())


def _is_milvus(uri: str | Path) -> bool:
    return isinstance(uri, str) and uri.startswith((f"{MILVUS}:", f"{MILVUS}+"))
